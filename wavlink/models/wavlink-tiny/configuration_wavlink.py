"""WavLinkConfig: a Whisper, HTS-AT or PaSST audio tower, any text tower, and one shared space with nested dims."""

import copy
import math
from collections.abc import Sequence

from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    ClapAudioConfig,
    CLIPTextConfig,
    PretrainedConfig,
    WhisperConfig,
)

from .config_checks_wavlink import _POSITIONS_START_AFTER_PADDING as _POSITIONS_START_AFTER_PADDING
from .config_checks_wavlink import AUDIO_TOWERS as AUDIO_TOWERS
from .config_checks_wavlink import LOSS_TYPES as LOSS_TYPES
from .config_checks_wavlink import POOLINGS as POOLINGS
from .config_checks_wavlink import TEXT_POOLINGS as TEXT_POOLINGS
from .config_checks_wavlink import check_audio_config, check_loss, check_numbers, check_poolings, check_text_config
from .config_checks_wavlink import check_optional as check_optional
from .config_checks_wavlink import frame_pooling as frame_pooling
from .config_checks_wavlink import nested_dims as nested_dims
from .config_checks_wavlink import one_line as one_line
from .config_checks_wavlink import text_max_length as text_max_length
from .passt_configuration_wavlink import WavLinkPasstConfig

# The entry of a saved config for `pipeline(trust_remote_code=True)`: the stock class cannot batch clips of different
# lengths.
CUSTOM_PIPELINES = {
    "zero-shot-audio-classification": {
        "impl": "pipeline_wavlink.WavLinkZeroShotAudioClassificationPipeline",
        "pt": ["AutoModel"],
        "type": "multimodal",
    }
}

# Fields by which a file could make transformers run somebody else's kernel or pipeline. The first four are options of
# a call and never saved.
_NAMES_CODE = (
    *("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"),
    "custom_pipelines",
)

# (Whisper width, layers, heads, mel bins, vocabulary), (CLIP text width, heads): Table 1 of arXiv 2601.15118.
_SIZES = {
    "base": ((512, 6, 8, 80, 51864), (512, 8)),  # whisper-base.en + CLIP ViT-B/32
    "small": ((768, 12, 12, 80, 51864), (512, 8)),  # whisper-small.en + CLIP ViT-B/32
    "large": ((1280, 32, 20, 128, 51866), (768, 12)),  # whisper-large-v3 + CLIP ViT-L/14
}


class WavLinkAudioConfig(WhisperConfig):
    """Config of a `WavLinkAudioModel` that is saved by itself; within a `WavLinkConfig` it is a `WhisperConfig`."""

    model_type = "wavlink_audio_model"
    is_encoder_decoder: bool = False


class WavLinkClapAudioConfig(ClapAudioConfig):
    """Config of a `WavLinkClapAudioModel` that is saved by itself; within a `WavLinkConfig`, a `ClapAudioConfig`."""

    model_type = "wavlink_clap_audio_model"


# By model type, since code of the Hub may define these classes a second time.
_ALONE = {"whisper": WavLinkAudioConfig, "clap_audio_model": WavLinkClapAudioConfig}
_WITHIN = {"wavlink_audio_model": WhisperConfig, "wavlink_clap_audio_model": ClapAudioConfig}
_OWN = {**_WITHIN, WavLinkPasstConfig.model_type: WavLinkPasstConfig}


def saved_alone(config: PretrainedConfig) -> PretrainedConfig:
    """Return the config of an audio tower that is saved without a WavLink, whose model type is the tower's own."""
    return _as_class(config, _ALONE)


def _as_class(config: PretrainedConfig, classes: dict[str, type]) -> PretrainedConfig:
    config_class = classes.get(type(config).model_type)
    if config_class is None:
        return config
    config = copy.deepcopy(config)
    config.__class__ = config_class  # the fields are the same
    vars(config).pop("model_type", None)  # which a file sets on the instance too
    config.is_encoder_decoder = config_class is WhisperConfig
    return config


class WavLinkConfig(PretrainedConfig):
    """Configuration of a `WavLinkModel`: its two towers, the shared space and the loss.

    Args:
        audio_config (`WhisperConfig`, `ClapAudioConfig`, `WavLinkPasstConfig` or `dict`, *optional*): the audio tower:
            a Whisper, of which only the encoder half is used, CLAP's HTS-AT (`"clap_audio_model"`) without fusion, or
            PaSST (`"passt"`). Defaults to the sizes of `openai/whisper-base.en`. A Whisper's config may have two
            additional fields: with `frame_pooling=n` every n neighbouring frames become their mean after the first
            `frame_pooling_layer` layers (default 1), and with a list of several, such as `[1, 2]`, after each of
            them.
        text_config (`PretrainedConfig` or `dict`, *optional*): the text tower, any encoder that
            `AutoModel.from_config` builds (CLIP text, ModernBERT, BERT-like). Defaults to the text half of
            `openai/clip-vit-base-patch32`.
        projection_dim (`int`): width of the shared space.
        matryoshka_dims (`list[int]`, *optional*): the nested dims the loss trains, each at most `projection_dim`;
            defaults to the full width and its three halves.
        loss_type (`str`): `"info_nce"` (CLIP's) or `"sigmoid"` (SigLIP's).
        pooling (`str`): a Whisper's vector of a clip: `"token"`, the global token's last state (the paper's);
            `"mean"`, the mean of the clip's frames, without a token; `"token_mean"`, the sum. HTS-AT and PaSST have
            their own.
        text_pooling (`str`, *optional*): `"eos"`, `"cls"` or `"mean"`; defaults to `"eos"` for CLIP, else `"cls"`.
        logit_scale_init_value (`float`, *optional*): start of the *log* of the scale; log(1 / 0.07) for InfoNCE
            (arXiv 2103.00020), log(10) for SigLIP (arXiv 2303.15343).
        logit_bias_init_value (`float`, *optional*): start of the bias added to the logits: 0, or -10 for SigLIP.
        logit_scale_max (`float`): the scale, not its log, never exceeds this.
        label_smoothing (`float`): the share of each target that InfoNCE spreads evenly over all pairs that are not
            ignored, at least 0 and below 1 (arXiv 1512.00567, section 7).
        initializer_range (`float`): standard deviation of new projections and of the global token.
        label_prompts (`list[str]`, *optional*): the texts with `{}` for a label that zero-shot classification uses
            where a caller gives none; the vectors of several are averaged. None: `"This is a sound of {}."`.
        match_calibration (`dict`, *optional*): the probability that a sound matches a text, as a logistic in their
            cosine (Platt, 1999): `{"prior": 0.01, "data": "...", "pairs": n, "dims": {"512": {"slope": a,
            "intercept": b}, ...}}`, so that P = 1 / (1 + exp(-(a * cosine + b))) where `prior` of the pairs match.
            `wavlink calibrate` writes it.

    Raises:
        ValueError: dims that do not fit, an unknown loss or pooling, or towers that a WavLink cannot have.

    Example:

    ```python
    >>> from wavlink import WavLinkConfig
    >>> WavLinkConfig.for_size("base").matryoshka_dims
    [512, 256, 128, 64]

    ```
    """

    model_type = "wavlink"
    sub_configs = {"audio_config": AutoConfig, "text_config": AutoConfig}
    # Trainer's metrics then get (audio_embeds, text_embeds), not a square of logits per batch.
    keys_to_ignore_at_inference = ["logits_per_audio", "logits_per_text", "audio_model_output", "text_model_output"]

    def __init__(
        self,
        audio_config: PretrainedConfig | dict | None = None,
        text_config: PretrainedConfig | dict | None = None,
        projection_dim: int = 512,
        matryoshka_dims: Sequence[int] | None = None,
        loss_type: str = "info_nce",
        text_pooling: str | None = None,
        logit_scale_init_value: float | None = None,
        logit_bias_init_value: float | None = None,
        logit_scale_max: float = 100.0,
        initializer_range: float = 0.02,
        label_smoothing: float = 0.0,
        pooling: str = "token",
        label_prompts: Sequence[str] | None = None,
        match_calibration: dict | None = None,
        **kwargs: object,
    ):
        sigmoid = loss_type == "sigmoid"
        scale_default = math.log(10.0) if sigmoid else math.log(1 / 0.07)
        bias_default = -10.0 if sigmoid else 0.0
        self.audio_config = _sub_config(audio_config, WhisperConfig, whisper_fields(*_SIZES["base"][0]))
        self.text_config = _sub_config(text_config, CLIPTextConfig, clip_fields(*_SIZES["base"][1]))
        self.projection_dim = projection_dim
        self.matryoshka_dims = list(nested_dims(projection_dim) if matryoshka_dims is None else matryoshka_dims)
        self.loss_type = loss_type
        clip_text = self.text_config.model_type == "clip_text_model"
        self.text_pooling = text_pooling or ("eos" if clip_text else "cls")
        self.logit_scale_init_value = scale_default if logit_scale_init_value is None else logit_scale_init_value
        self.logit_bias_init_value = bias_default if logit_bias_init_value is None else logit_bias_init_value
        self.logit_scale_max = logit_scale_max
        self.initializer_range = initializer_range
        self.label_smoothing = label_smoothing
        self.pooling = pooling
        self.label_prompts = list(label_prompts) if isinstance(label_prompts, tuple) else label_prompts
        self.match_calibration = match_calibration
        self.check()
        super().__init__(**kwargs)
        if getattr(self, "custom_pipelines", None):
            self.custom_pipelines = _Pipelines(self.custom_pipelines)

    @classmethod
    def for_size(cls, size: str, **kwargs: object) -> "WavLinkConfig":
        """Return the config of the paper's `"base"` (84.28M parameters), `"small"` (151.98M) or `"large"` (761.60M).

        Args:
            size: one of the three.
            kwargs: fields of the config that differ.
        """
        if size not in _SIZES:
            raise ValueError(f"size must be one of {', '.join(_SIZES)}, got {size!r}")
        whisper, clip = _SIZES[size]
        kwargs.setdefault("audio_config", whisper_fields(*whisper))
        kwargs.setdefault("text_config", clip_fields(*clip))
        kwargs.setdefault("projection_dim", clip[0])
        return cls(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **kwargs: object) -> "WavLinkConfig":
        """Load a config as transformers does; a file with wrong contents is a ValueError that names it."""
        try:
            config = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (OSError, ImportError):  # which name it
            raise
        except Exception as error:
            raise ValueError(
                f"the config of {pretrained_model_name_or_path} is not a WavLink's: {one_line(error)}"
            ) from error
        (config[0] if isinstance(config, tuple) else config).check()  # fields that `kwargs` set instead of the file's
        return config

    def save_pretrained(self, save_directory: str, **kwargs: object) -> None:
        """Save the config as transformers does, with an entry for the pipeline that a saved `WavLinkModel` brings."""
        loaded = vars(self).get("custom_pipelines")
        self.custom_pipelines = _PipelinesToSave(CUSTOM_PIPELINES)
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.custom_pipelines = loaded
            if loaded is None:
                del self.custom_pipelines

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs: object) -> "WavLinkConfig":
        """Make a config from a dict as transformers does, without the fields that name foreign code.

        Raises:
            ValueError: the dict is another model's config, or `check` refuses it.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"this is the checkpoint of a {model_type!r} model, not of a WavLink model; to start a WavLink from "
                "pretrained towers call WavLinkModel.from_audio_text_pretrained(audio, text)"
            )
        return super().from_dict(_without_code(config_dict), **kwargs)

    def to_dict(self) -> dict:
        """Return the fields, without the pipeline of the folder that they were loaded from."""
        output = super().to_dict()
        output.pop("custom_pipelines", None)
        return output

    def to_diff_dict(self) -> dict:
        """Return the fields to save, without the folders that the towers were loaded from."""
        output = super().to_diff_dict()
        if isinstance(vars(self).get("custom_pipelines"), _PipelinesToSave):
            output["custom_pipelines"] = self.custom_pipelines
        for tower in (output.get(name) for name in self.sub_configs):
            if isinstance(tower, dict):
                tower.pop("_name_or_path", None)
        return output

    def check(self) -> None:
        """Check the fields. A model calls this again, since they may have been set after construction.

        Raises:
            ValueError: names the field.
        """
        for name in self.sub_configs:
            if not isinstance(getattr(self, name), PretrainedConfig):
                raise ValueError(f"{name} must be a config, got {getattr(self, name)!r}")
        check_numbers(self)
        check_audio_config(self.audio_config)
        check_text_config(self.text_config)
        check_poolings(self)
        check_loss(self)
        check_optional(self)


class _Pipelines(dict):
    """Pipelines by task, given out as copies: `pipeline()` writes classes into an entry, which no JSON can hold."""

    def __getitem__(self, task: str) -> dict:
        return dict(super().__getitem__(task))


class _PipelinesToSave(_Pipelines):
    """The pipelines of a config that is being saved."""


def _without_code(config_dict: dict) -> dict:
    """Return a copy without the fields that name code, except those of the shipped classes.

    What is saved from it names no foreign code either.
    """
    pipelines = config_dict.get("custom_pipelines")
    config_dict = {name: value for name, value in config_dict.items() if name not in _NAMES_CODE}
    if _is_shipped_pipeline(pipelines):
        config_dict["custom_pipelines"] = CUSTOM_PIPELINES  # of the folder itself: no other repository is named
    if isinstance(config_dict.get("auto_map"), dict):
        auto_map = config_dict["auto_map"]
        config_dict["auto_map"] = {name: auto_map[name] for name in ("AutoConfig", "AutoModel") if name in auto_map}
    for name in ("audio_config", "text_config"):
        if isinstance(config_dict.get(name), dict):
            config_dict[name] = {k: v for k, v in config_dict[name].items() if k not in (*_NAMES_CODE, "auto_map")}
    return config_dict


def _is_shipped_pipeline(pipelines) -> bool:
    """Whether a file names the shipped pipeline and no other; the Hub's client prefixes it with a repository."""
    if not isinstance(pipelines, dict) or set(pipelines) != set(CUSTOM_PIPELINES):
        return False
    classes = {task: entry.get("impl") if isinstance(entry, dict) else None for task, entry in pipelines.items()}
    return all(str(classes[task]).split("--")[-1] == entry["impl"] for task, entry in CUSTOM_PIPELINES.items())


def whisper_fields(width: int, layers: int, heads: int, mel_bins: int, vocabulary: int) -> dict:
    """Return the fields of a Whisper's config; the feed-forward width is four times the width."""
    return {
        "model_type": "whisper",
        "d_model": width,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "decoder_layers": layers,
        "decoder_attention_heads": heads,
        "decoder_ffn_dim": 4 * width,
        "num_mel_bins": mel_bins,
        "vocab_size": vocabulary,
    }


def clip_fields(width: int, heads: int) -> dict:
    """Return the fields of the config of a CLIP's text half (arXiv 2103.00020, Table 20)."""
    return {
        "model_type": "clip_text_model",
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 12,
        "projection_dim": width,
    }


def _sub_config(config, default_class: type, default_kwargs: dict) -> PretrainedConfig:
    if isinstance(config, PretrainedConfig):
        return _as_class(config, _WITHIN)
    if config is None:
        config = default_kwargs
    model_type = config.get("model_type", default_class.model_type)
    if model_type not in _OWN and model_type not in CONFIG_MAPPING:
        raise ValueError(f"transformers knows no model_type {model_type!r}")
    if model_type == WavLinkConfig.model_type:
        raise ValueError("a WavLink cannot be a tower of another")
    return (_OWN.get(model_type) or CONFIG_MAPPING[model_type]).from_dict({**config, "model_type": model_type})


WavLinkConfig.register_for_auto_class()
WavLinkAudioConfig.register_for_auto_class()
WavLinkClapAudioConfig.register_for_auto_class()
