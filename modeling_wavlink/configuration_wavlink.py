"""WavLinkConfig: a Whisper or HTS-AT audio tower, any text tower, and one shared space with nested dims."""

import copy
import math

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    ClapAudioConfig,
    CLIPTextConfig,
    PretrainedConfig,
    WhisperConfig,
)

AUDIO_TOWERS = ("whisper", "clap_audio_model")
LOSS_TYPES = ("info_nce", "sigmoid")
POOLINGS = ("token", "mean", "token_mean")
TEXT_POOLINGS = ("eos", "cls", "mean")
_TEXT_TOWERS = ("clip_text_model", "bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "modernbert")  # tried
MOST_LAYERS = 1000  # of a tower; a config that says more would be built for hours before its weights do not fit

# What a saved config says of `pipeline(trust_remote_code=True)`: the stock class cannot batch clips of two lengths.
CUSTOM_PIPELINES = {
    "zero-shot-audio-classification": {
        "impl": "pipeline_wavlink.WavLinkZeroShotAudioClassificationPipeline",
        "pt": ["AutoModel"],
        "type": "multimodal",
    }
}

# RoBERTa's family numbers positions from pad_token_id + 1, so that many of its position embeddings are never used.
_POSITIONS_START_AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "data2vec-text")

# Fields by which a file could have transformers run a kernel or a pipeline of anybody's. The first four are options of
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


def nested_dims(projection_dim: int, levels: int = 4) -> list[int]:
    """`projection_dim` and its halves, largest first: 512 -> [512, 256, 128, 64] (the paper's K = 4)."""
    return [projection_dim >> level for level in range(levels)]


class WavLinkAudioConfig(WhisperConfig):
    """The config of a `WavLinkAudioModel` saved by itself; within a `WavLinkConfig` it is a `WhisperConfig`."""

    model_type = "wavlink_audio_model"
    is_encoder_decoder: bool = False


class WavLinkClapAudioConfig(ClapAudioConfig):
    """The config of a `WavLinkClapAudioModel` saved by itself; within a `WavLinkConfig`, a `ClapAudioConfig`."""

    model_type = "wavlink_clap_audio_model"


# By model type, since code of the Hub may bring these classes a second time.
_ALONE = {"whisper": WavLinkAudioConfig, "clap_audio_model": WavLinkClapAudioConfig}
_WITHIN = {"wavlink_audio_model": WhisperConfig, "wavlink_clap_audio_model": ClapAudioConfig}


def saved_alone(config: PretrainedConfig) -> PretrainedConfig:
    """The config of an audio tower that is saved without a WavLink, whose model type is the tower's own."""
    return _as_class(config, _ALONE)


def _as_class(config: PretrainedConfig, classes: dict[str, type]) -> PretrainedConfig:
    new = classes.get(type(config).model_type)
    if new is None:
        return config
    config = copy.deepcopy(config)
    config.__class__ = new  # the fields are the same
    vars(config).pop("model_type", None)  # which a file sets on the instance too
    config.is_encoder_decoder = new is WhisperConfig
    return config


class WavLinkConfig(PretrainedConfig):
    """Configuration of a `WavLinkModel`: its two towers, the shared space and the loss.

    Args:
        audio_config (`WhisperConfig`, `ClapAudioConfig` or `dict`, *optional*): the audio tower: a Whisper, of which
            only the encoder half is used, or CLAP's HTS-AT (`"clap_audio_model"`) without fusion. Defaults to the
            sizes of `openai/whisper-base.en`. A Whisper's may have two fields of ours: with `frame_pooling=n` every
            n neighbouring frames become their mean after the first `frame_pooling_layer` layers (default 1), and with
            a list of several, such as `[1, 2]`, at each of them.
        text_config (`PretrainedConfig` or `dict`, *optional*): the text tower, any encoder that
            `AutoModel.from_config` builds (CLIP text, ModernBERT, BERT-like). Defaults to the text half of
            `openai/clip-vit-base-patch32`.
        projection_dim (`int`): width of the shared space.
        matryoshka_dims (`list[int]`, *optional*): the nested dims the loss trains, each at most `projection_dim`;
            defaults to the full width and its three halves.
        loss_type (`str`): `"info_nce"` (CLIP's) or `"sigmoid"` (SigLIP's).
        pooling (`str`): a Whisper's vector of a clip: `"token"`, the global token's last state (the paper's);
            `"mean"`, the mean of the clip's own frames, without a token; `"token_mean"`, the sum. HTS-AT has its own.
        text_pooling (`str`, *optional*): `"eos"`, `"cls"` or `"mean"`; defaults to `"eos"` for CLIP, else `"cls"`.
        logit_scale_init_value (`float`, *optional*): start of the *log* of the scale; log(1 / 0.07) for InfoNCE
            (arXiv 2103.00020), log(10) for SigLIP (arXiv 2303.15343).
        logit_bias_init_value (`float`, *optional*): start of the bias added to the logits: 0, or -10 for SigLIP.
        logit_scale_max (`float`): the scale, not its log, never exceeds this.
        label_smoothing (`float`): the share of each target that InfoNCE spreads evenly over all pairs that are not
            ignored, at least 0 and below 1 (arXiv 1512.00567, section 7).
        initializer_range (`float`): standard deviation of new projections and of the global token.

    Raises:
        ValueError: dims that do not fit, an unknown loss or pooling, or towers that no WavLink can have.

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
        audio_config=None,
        text_config=None,
        projection_dim=512,
        matryoshka_dims=None,
        loss_type="info_nce",
        text_pooling=None,
        logit_scale_init_value=None,
        logit_bias_init_value=None,
        logit_scale_max=100.0,
        initializer_range=0.02,
        label_smoothing=0.0,
        pooling="token",
        **kwargs,
    ):
        sigmoid = loss_type == "sigmoid"
        scale_default = math.log(10.0) if sigmoid else math.log(1 / 0.07)
        bias_default = -10.0 if sigmoid else 0.0
        self.audio_config = _sub_config(audio_config, WhisperConfig, _whisper_kwargs(*_SIZES["base"][0]))
        self.text_config = _sub_config(text_config, CLIPTextConfig, _clip_kwargs(*_SIZES["base"][1]))
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
        self.check()
        super().__init__(**kwargs)
        if getattr(self, "custom_pipelines", None):
            self.custom_pipelines = _Pipelines(self.custom_pipelines)

    @classmethod
    def for_size(cls, size: str, **kwargs) -> "WavLinkConfig":
        """The paper's `"base"` (84.28M parameters), `"small"` (151.98M) or `"large"` (761.60M)."""
        if size not in _SIZES:
            raise ValueError(f"size must be one of {', '.join(_SIZES)}, got {size!r}")
        whisper, clip = _SIZES[size]
        kwargs.setdefault("audio_config", _whisper_kwargs(*whisper))
        kwargs.setdefault("text_config", _clip_kwargs(*clip))
        kwargs.setdefault("projection_dim", clip[0])
        return cls(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As transformers', but whatever is wrong with what a file says is a ValueError that names it."""
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

    def save_pretrained(self, save_directory, **kwargs):
        """As transformers', with the pipeline that `WavLinkModel.save_pretrained` puts beside it."""
        before = vars(self).get("custom_pipelines")
        self.custom_pipelines = _PipelinesToSave(CUSTOM_PIPELINES)
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.custom_pipelines = before
            if before is None:
                del self.custom_pipelines

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As transformers', but another model's config is refused, and what names code of others is left out."""
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"this is the checkpoint of a {model_type!r} model, not of a WavLink model; to start a WavLink from "
                "pretrained towers call WavLinkModel.from_audio_text_pretrained(audio, text)"
            )
        return super().from_dict(_without_code(config_dict), **kwargs)

    def to_dict(self) -> dict:
        """The fields, without the pipeline of the folder that they were loaded from."""
        output = super().to_dict()
        output.pop("custom_pipelines", None)
        return output

    def to_diff_dict(self) -> dict:
        """What is saved: not where the towers came from, which is a folder of one machine."""
        output = super().to_diff_dict()
        if isinstance(vars(self).get("custom_pipelines"), _PipelinesToSave):
            output["custom_pipelines"] = self.custom_pipelines
        for tower in (output.get(name) for name in self.sub_configs):
            if isinstance(tower, dict):
                tower.pop("_name_or_path", None)
        return output

    def check(self) -> None:
        """Refuses fields that no model has; a model checks them again, since they may have been set afterwards.

        Raises:
            ValueError: names the field.
        """
        for name in self.sub_configs:
            if not isinstance(getattr(self, name), PretrainedConfig):
                raise ValueError(f"{name} must be a config, got {getattr(self, name)!r}")
        _check_numbers(self)
        check_audio_config(self.audio_config)
        check_text_config(self.text_config)
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")
        if self.audio_config.model_type == "clap_audio_model" and self.pooling != "token":
            raise ValueError(f"HTS-AT pools its patches itself: leave pooling out, got {self.pooling!r}")
        if self.loss_type not in LOSS_TYPES:
            raise ValueError(f"loss_type must be one of {', '.join(LOSS_TYPES)}, got {self.loss_type!r}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")
        if self.label_smoothing and self.loss_type == "sigmoid":
            raise ValueError(
                f"label_smoothing={self.label_smoothing} needs loss_type='info_nce': the sigmoid loss has no softmax, "
                "so leave it at 0"
            )
        if self.text_pooling not in TEXT_POOLINGS:
            raise ValueError(f"text_pooling must be one of {', '.join(TEXT_POOLINGS)}, got {self.text_pooling!r}")
        if self.text_pooling == "cls" and _sees_only_the_past(self.text_config):
            raise ValueError(
                f"text_pooling='cls' is the first token's state, which in this {self.text_config.model_type!r} knows "
                "nothing of the text after it: use 'eos' or 'mean'"
            )
        if self.text_pooling == "eos" and self.text_config.eos_token_id is None:
            raise ValueError(
                f"text_pooling='eos' needs an eos_token_id, which this {self.text_config.model_type!r} config lacks: "
                "use 'cls' or 'mean'"
            )
        dims = self.matryoshka_dims
        if not dims or any(not 1 <= dim <= self.projection_dim for dim in dims) or len(set(dims)) != len(dims):
            raise ValueError(
                f"matryoshka_dims must be distinct and between 1 and projection_dim={self.projection_dim}, got {dims}"
            )


class _Pipelines(dict):
    """Gives copies of its entries: `pipeline()` writes classes into the one it takes, which no JSON can hold."""

    def __getitem__(self, task: str) -> dict:
        return dict(super().__getitem__(task))


class _PipelinesToSave(_Pipelines):
    """Those of a config that is being saved."""


def _check_numbers(config: WavLinkConfig) -> None:
    if not isinstance(config.matryoshka_dims, list | tuple):
        raise ValueError(f"matryoshka_dims must be a list of whole numbers, got {config.matryoshka_dims!r}")
    for value in (config.projection_dim, *config.matryoshka_dims):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"projection_dim and matryoshka_dims must be whole numbers, got {value!r}")
    for name in ("logit_scale_init_value", "logit_bias_init_value", "logit_scale_max", "initializer_range"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}")
    if isinstance(config.label_smoothing, bool) or not isinstance(config.label_smoothing, int | float):
        raise ValueError(f"label_smoothing must be a number, got {config.label_smoothing!r}")
    if config.logit_scale_max <= 0 or config.initializer_range < 0:
        raise ValueError(
            "logit_scale_max must be above 0 and initializer_range 0 or more, got "
            f"{config.logit_scale_max} and {config.initializer_range}"
        )


def check_audio_config(config: PretrainedConfig) -> None:
    """Refuses fields that neither audio tower has."""
    config = _as_class(config, _WITHIN)
    if config.model_type not in AUDIO_TOWERS:
        raise ValueError(f"audio_config must be a {' or '.join(AUDIO_TOWERS)} config, got {config.model_type!r}")
    _check_layers(config)
    _check_frame_pooling(config)
    if config.model_type == "clap_audio_model":
        _check_htsat(config)


def check_text_config(config: PretrainedConfig) -> None:
    """Refuses a text tower that `AutoModel` cannot build, or whose model does not encode a text by itself."""
    alone = isinstance(getattr(config, "vocab_size", None), int) and isinstance(
        getattr(config, "hidden_size", None), int
    )
    halves = config.is_encoder_decoder or getattr(type(config), "is_encoder_decoder", False)  # a T5EncoderModel's too
    if type(config) not in MODEL_MAPPING or halves or not alone:
        raise ValueError(
            f"a {config.model_type!r} cannot be the text tower, which is an encoder of text alone: "
            f"{', '.join(_TEXT_TOWERS)}, or another that AutoModel builds and that has no decoder"
        )
    _check_layers(config)


def _sees_only_the_past(config: PretrainedConfig) -> bool:
    """Whether a text tower is a decoder such as GPT-2, whose tokens attend to those before them alone."""
    if getattr(config, "is_decoder", False):
        return True
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    return causal and config.model_type != "xlnet" and not getattr(config, "use_bidirectional_attention", False)


def _check_layers(config: PretrainedConfig) -> None:
    depths = getattr(config, "depths", None) or []
    layers = [getattr(config, name, None) or 0 for name in ("num_hidden_layers", "encoder_layers")]
    if max(*layers, *depths, len(depths)) > MOST_LAYERS:
        raise ValueError(f"a {config.model_type!r} tower of more than {MOST_LAYERS} layers cannot be meant")


def one_line(error: Exception) -> str:
    """What an error says, for a message about a file: one line, not long, without control characters."""
    line = " ".join(str(error).split()) or type(error).__name__
    return "".join(x if x.isprintable() else ascii(x)[1:-1] for x in line[:300])


def frame_pooling(owner) -> tuple[int, tuple[int, ...]]:
    """How many neighbouring frames become one (1 keeps every frame, as the paper does), and after how many layers they
    do, once or several times, as an audio config or a `Recipe` has it."""
    factor, layers = getattr(owner, "frame_pooling", 1), getattr(owner, "frame_pooling_layer", 1)
    return factor, tuple(layers) if isinstance(layers, list | tuple) else (layers,)


def _check_frame_pooling(config: PretrainedConfig) -> None:
    factor, layers = frame_pooling(config)
    if not isinstance(factor, int) or factor < 1:
        raise ValueError(f"frame_pooling must be a whole number of frames, 1 or more, got {factor!r}")
    if factor == 1:
        return
    if config.model_type != "whisper":
        raise ValueError(f"frame_pooling={factor} is for a Whisper: HTS-AT pools its patches itself, so leave it out")
    places = range(config.encoder_layers)
    known = layers and all(isinstance(layer, int) and layer in places for layer in layers)
    if not known or list(layers) != sorted(set(layers)):
        raise ValueError(
            f"frame_pooling_layer must be one of 0 to {config.encoder_layers - 1}, the number of layers before frames "
            f"are pooled, or several of them in rising order, got {list(layers)}"
        )


def _check_htsat(config: PretrainedConfig) -> None:
    if config.enable_fusion:
        raise ValueError(
            "this HTS-AT has enable_fusion=True: its vectors depend on random crops, so take a checkpoint without "
            "fusion, such as laion/clap-htsat-unfused"
        )
    stages = len(config.depths)
    width = config.patch_embeds_hidden_size * 2 ** (stages - 1)
    if config.hidden_size != width:
        raise ValueError(
            f"hidden_size must be the last stage's width, {width} (patch_embeds_hidden_size="
            f"{config.patch_embeds_hidden_size} doubled {stages - 1} times), got {config.hidden_size}"
        )
    stride = config.patch_stride if isinstance(config.patch_stride, int) else config.patch_stride[0]
    grid = config.spec_size // stride >> stages - 1
    if grid < config.window_size:
        raise ValueError(
            f"the last stage has {grid} x {grid} patches (spec_size / patch_stride, halved {stages - 1} times), fewer "
            f"than an attention window of {config.window_size} x {config.window_size}: lower window_size or depths"
        )


def _without_code(config_dict: dict) -> dict:
    """A copy without the fields that name code, but for those of the classes that are shipped: what is saved from it
    names no code of others either."""
    pipelines = config_dict.get("custom_pipelines")
    config_dict = {name: value for name, value in config_dict.items() if name not in _NAMES_CODE}
    if _are_own(pipelines):
        config_dict["custom_pipelines"] = CUSTOM_PIPELINES  # of the folder itself: no other repository is named
    if isinstance(config_dict.get("auto_map"), dict):
        own = {name: value for name, value in config_dict["auto_map"].items() if name in ("AutoConfig", "AutoModel")}
        config_dict["auto_map"] = own
    for name in ("audio_config", "text_config"):
        if isinstance(config_dict.get(name), dict):
            config_dict[name] = {k: v for k, v in config_dict[name].items() if k not in (*_NAMES_CODE, "auto_map")}
    return config_dict


def _are_own(pipelines) -> bool:
    """Whether a file names the shipped pipeline and no other; the Hub's client puts a repository in front of it."""
    if not isinstance(pipelines, dict) or set(pipelines) != set(CUSTOM_PIPELINES):
        return False
    named = {task: about.get("impl") if isinstance(about, dict) else None for task, about in pipelines.items()}
    return all(str(named[task]).split("--")[-1] == about["impl"] for task, about in CUSTOM_PIPELINES.items())


def text_max_length(text_config: PretrainedConfig) -> int | None:
    """Tokens the text tower takes, special ones included; `None` where it has no limit."""
    limit = getattr(text_config, "max_position_embeddings", None)
    if limit and text_config.model_type in _POSITIONS_START_AFTER_PADDING:
        limit -= text_config.pad_token_id + 1
    return limit


def _whisper_kwargs(width: int, layers: int, heads: int, mel_bins: int, vocabulary: int) -> dict:
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


def _clip_kwargs(width: int, heads: int) -> dict:
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
    if model_type not in _WITHIN and model_type not in CONFIG_MAPPING:
        raise ValueError(f"transformers knows no model_type {model_type!r}")
    if model_type == WavLinkConfig.model_type:
        raise ValueError("a WavLink cannot be a tower of another")
    return (_WITHIN.get(model_type) or CONFIG_MAPPING[model_type]).from_dict({**config, "model_type": model_type})


WavLinkConfig.register_for_auto_class()
WavLinkAudioConfig.register_for_auto_class()
WavLinkClapAudioConfig.register_for_auto_class()
