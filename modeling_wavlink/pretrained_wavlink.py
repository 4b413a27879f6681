"""The towers out of pretrained checkpoints, whole or in part, with no weight left to chance unnoticed."""

import json
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AutoModel, ClapAudioModel, CLIPTextModelWithProjection, PretrainedConfig, PreTrainedModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import TransformersKwargs

from .compat_wavlink import optional_file
from .configuration_wavlink import one_line, saved_alone

# Weights of a pretrained text checkpoint that we leave out: CLIP's vision tower and temperature, the pooler and the
# pretraining heads of a text encoder, and buffers that old checkpoints stored.
_NO_TEXT_TOWER = re.compile(
    r"^vision_model\.|^visual_projection\.|^logit_scale$|(^|\.)pooler\."
    r"|^(cls|lm_head|head|decoder|(pre_)?classifier|qa_outputs|predictions|sop_classifier)\."
    r"|^(vocab_(transform|layer_norm|projector)|(discriminator|generator|lm|mask)_predictions|generator_lm_head)\."
    r"|position_ids$"
)

RECORDED = ("output_hidden_states", "output_attentions")  # what the towers give on request

_KNOWN_ARGUMENTS = {"inputs_embeds", "return_dict", *TransformersKwargs.__annotations__}

_IN_FP32 = {"output_loading_info": True, "dtype": torch.float32}


def given(kwargs: dict) -> dict:
    """Those keyword arguments of a model that are not None, which PEFT's wrappers hand on for what was not given.

    Raises:
        TypeError: an argument that transformers' models do not have.
        ValueError: `inputs_embeds`, which texts of tokens and sounds have no use for.
    """
    for name, value in kwargs.items():
        if name == "inputs_embeds" and value is not None:
            raise ValueError("inputs_embeds are not supported: give input_ids")
        if name not in _KNOWN_ARGUMENTS:
            raise TypeError(f"forward got an unexpected keyword argument {name!r}")
    return {name: value for name, value in kwargs.items() if value is not None}


def refuse_wrong_weights(source: str, info: dict, left_out: re.Pattern | None = None, new: tuple = ()) -> None:
    unexpected = [key for key in info["unexpected_keys"] if not (left_out and left_out.search(key))]
    missing = [key for key in info["missing_keys"] if not key.startswith(new or ("\0",))]
    if missing or unexpected:
        raise ValueError(
            f"the weights of {source} do not fit: missing {sorted(missing)}, unexpected {sorted(unexpected)}; "
            "a missing weight would start random, so load a checkpoint that has it"
        )


def refuse_adapter(source: str, **hub) -> None:
    """Refuses a model with an adapter beside it, for which transformers may load another model that a file names.

    Args:
        hub: options of `cached_file`, such as `revision`.
    """
    if optional_file(source, "adapter_config.json", **hub):
        raise ValueError(
            f"{source} holds an adapter_config.json, whose adapter and base would be loaded too: give a model without "
            "one, such as what hub_cards.push or peft's merge_and_unload makes of an adapter"
        )


def refuse_broken_weights(source: str, model: PreTrainedModel) -> None:
    """NaN or infinite weights, which would give every clip a vector of NaN."""
    for name, weight in model.named_parameters():
        checked = not weight.is_meta and weight.dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
        if checked and not _finite(weight):
            raise ValueError(
                f"{name} of {source} holds NaN or infinite weights in {weight.dtype}: take another checkpoint or dtype"
            )


def _finite(weight: Tensor) -> bool:
    """Whether all numbers are; a quantised tensor, which may not know the question, holds integers."""
    try:
        return bool(torch.isfinite(weight).all())
    except (NotImplementedError, RuntimeError, TypeError):
        if type(weight) in (nn.Parameter, Tensor):
            raise
        return True


def from_safetensors(load: Callable, source: str | None, *args, use_safetensors: bool | None = None, **options):
    """`load(source, ...)`, a `from_pretrained`, of safetensors alone: a pickled file can run code when it is read."""
    advice = (
        f"{source} offers no weights in safetensors, and WavLink reads no others, since a pickled file such as "
        "pytorch_model.bin can run code: where you trust it, load it with its own class in transformers, and give "
        "the folder that its save_pretrained writes"
    )
    if use_safetensors is False:
        raise ValueError(advice)
    try:
        loaded = load(source, *args, use_safetensors=True, **options)
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        raise ValueError(advice) from error
    except (ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if _of_the_call(error) or isinstance(error, ValueError) and str(source) in str(error):
            raise
        shapes = isinstance(error, RuntimeError) and "ignore_mismatched_sizes" in str(error)
        why = "they have other shapes than its config says" if shapes else one_line(error)
        raise ValueError(f"the weights of {source} cannot be loaded: {why}") from error
    refuse_broken_weights(str(source), loaded[0] if isinstance(loaded, tuple) else loaded)
    return loaded


def _of_the_call(error: Exception) -> bool:
    """Whether an argument or the surroundings are at fault, and no file: the error itself then says what to do."""
    if type(error) is ValueError:  # a broken file gives its subclasses, such as UnicodeDecodeError
        return True
    if isinstance(error, TypeError):
        return "unexpected keyword argument" in str(error)
    return isinstance(error, RuntimeError) and torch.get_default_device().type == "meta"


class CheckedWeights:
    """A `PreTrainedModel` that starts from a checkpoint with all its weights, or not at all."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """As transformers', but of safetensors alone, and weights that are missing or unexpected are an error, never
        a random start."""
        source, kwargs = pretrained_model_name_or_path, {**kwargs, "output_loading_info": True}
        model, info = from_safetensors(super().from_pretrained, source, *args, **kwargs)
        if source is not None:  # without a checkpoint a `state_dict` may hold as much as the caller wants
            refuse_wrong_weights(str(source), info)
        return (model, info) if output_loading_info else model

    @classmethod
    def is_custom_code(cls) -> bool:
        """All is initialised by `transformers.initialization` here, so that transformers may ask each module, also
        those that have weights only in others, such as Whisper's encoder with its sinusoids."""
        return False


class SavedAlone(CheckedWeights):
    """An audio tower whose checkpoint, without a WavLink around it, has a model type of its own."""

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As transformers', with the config of `saved_alone`."""
        within, self.config = self.config, saved_alone(self.config)
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.config = within


# Weights of a whole model that its tower's class ignores; `refuse_wrong_weights` allows them by itself.
_NO_ENCODER = re.compile(r"^(model\.)?decoder\.|^proj_out\.")
_NO_HTSAT = re.compile(r"^text_model\.|^(text|audio)_projection\.|^logit_scale_[at]$")


class _WhisperEncoderAlone(WhisperEncoder):
    _keys_to_ignore_on_load_unexpected = [_NO_ENCODER.pattern]


class _ClapAudioAlone(ClapAudioModel):
    _keys_to_ignore_on_load_unexpected = [_NO_HTSAT.pattern]


class _CLIPTextAlone(CLIPTextModelWithProjection):
    _keys_to_ignore_on_load_unexpected = [_NO_TEXT_TOWER.pattern]


def load_whisper_encoder(source: str) -> WhisperEncoder:
    refuse_adapter(source)
    mapping = {r"^(model\.)?encoder\.": ""}
    encoder, info = from_safetensors(_WhisperEncoderAlone.from_pretrained, source, key_mapping=mapping, **_IN_FP32)
    refuse_wrong_weights(source, info, _NO_ENCODER)
    return encoder


def load_htsat(source: str, config: PretrainedConfig) -> ClapAudioModel:
    """The audio half, with its batch norm's statistics, of a CLAP that may be whole."""
    refuse_adapter(source)
    options = {"config": config, "key_mapping": {r"^audio_model\.": ""}, **_IN_FP32}
    tower, info = from_safetensors(_ClapAudioAlone.from_pretrained, source, **options)
    refuse_wrong_weights(source, info, _NO_HTSAT)
    return tower


def load_text_tower(source: str, config: PretrainedConfig) -> tuple[PreTrainedModel, Tensor | None]:
    """The encoder without a pooler, and CLIP's pretrained text projection `[projection_dim, hidden_size]`."""
    refuse_adapter(source)
    clip_text = config.model_type == "clip_text_model"
    loader = _CLIPTextAlone if clip_text else AutoModel
    options = {"config": config, "trust_remote_code": False, **_IN_FP32}
    tower, info = from_safetensors(loader.from_pretrained, source, **options)
    refuse_wrong_weights(source, info, _NO_TEXT_TOWER, new=("text_projection.", "pooler."))
    if not clip_text:
        if hasattr(tower, "pooler"):
            tower.pooler = None
        return tower, None
    has_projection = "text_projection.weight" not in info["missing_keys"]
    return tower.text_model, tower.text_projection.weight.data if has_projection else None


def end_of_text(input_ids: Tensor, attention_mask: Tensor | None, config: PretrainedConfig) -> Tensor:
    """The position of a text's first end-of-text token, or of its last token where it has none, `[B, L] -> [B]`.

    Args:
        attention_mask: `[B, L]`, 1 for tokens and 0 for padding, whose id may be that of the end of text.
        config: the text tower's.
    """
    tokens = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    eos = config.eos_token_id
    if eos == 2 and config.model_type == "clip_text_model":
        # CLIP configs from before transformers 4.31 say 2 whatever the tokenizer; the end of text is the highest id.
        return input_ids.masked_fill(tokens == 0, -1).argmax(-1)
    ends = ((input_ids == eos) & (tokens != 0)).int()
    last = input_ids.shape[-1] - 1 - tokens.int().flip(-1).argmax(-1)
    return torch.where(ends.any(-1), ends.argmax(-1), last)


def sentence_transformers_pooling(source: str) -> str | None:
    """The `text_pooling` of a sentence-transformers folder or Hub id, None where it is of another library.

    Raises:
        ValueError: a pooling that is not one of ours, or what would be left out: the work of another module, a default
            prompt, letters made lower case before a tokenizer that does not do so itself.
    """
    modules = _json(source, "modules.json")
    folder = "1_Pooling" if modules is None else _pooling_folder(source, modules)
    pooling = _json(source, f"{folder}/config.json")
    if pooling is None and modules is not None:
        raise ValueError(f"{source} has no {folder}/config.json, which its modules.json needs; {_BY_HAND}")
    if pooling is None:
        return None
    _refuse_changed_texts(source)
    return _pooling_mode(f"{source}/{folder}/config.json", pooling)


def _json(source: str, name: str):
    """What a JSON file of a folder or Hub id holds, None where there is no such file."""
    if (path := optional_file(source, name)) is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {one_line(error)}") from error


_BY_HAND = "WavLinkModel.from_audio_text_pretrained(..., text_pooling=mean, cls or eos) takes its encoder alone"
_DIRECTION_STAYS = ("Normalize", "Dropout")  # modules that do not turn the vector of a text


def _refuse_changed_texts(source: str) -> None:
    """Refuses what sentence-transformers does to every text before the tokenizer, and WavLink does not."""
    config = _json(source, name := "config_sentence_transformers.json") or {}
    prompts = (config.get("prompts") or {}) if isinstance(config, dict) else None
    if not isinstance(prompts, dict):
        raise ValueError(f"{name} of {source} is not a config of prompts; {_BY_HAND}")
    default = config.get("default_prompt_name")
    if default is not None and (prompt := prompts.get(str(default), default)):
        raise ValueError(
            f"{source} puts the prompt {prompt!r} before every text (default_prompt_name in {name}), which WavLink "
            f"would leave out: set it to null in a copy of the folder, or choose the pooling yourself; {_BY_HAND}"
        )
    transformer = _json(source, name := "sentence_bert_config.json")
    if isinstance(transformer, dict) and transformer.get("do_lower_case") and not _lowers(source):
        raise ValueError(
            f"{source} makes every text lower case (do_lower_case in {name}), which its tokenizer alone does not: set "
            f"it in tokenizer_config.json, or to false here; {_BY_HAND}"
        )


def _lowers(source: str) -> bool:
    """Whether a tokenizer makes letters lower case itself."""
    config, tokenizer = _json(source, "tokenizer_config.json"), _json(source, "tokenizer.json")
    steps = json.dumps(tokenizer.get("normalizer")) if isinstance(tokenizer, dict) else ""
    own = isinstance(config, dict) and config.get("do_lower_case")
    return bool(own) or '"lowercase": true' in steps or '"Lowercase"' in steps


def _pooling_folder(source: str, modules) -> str:
    """The folder of the one Pooling module, which only an encoder in the root comes before."""
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ValueError(f"modules.json of {source} is not a list of modules; {_BY_HAND}")
    folders = []
    for module in sorted(modules, key=lambda module: module.get("idx") or 0):
        kind, path = str(module.get("type")).rsplit(".", 1)[-1], str(module.get("path") or "")
        if kind in ("Transformer", "Pooling") and not str(module["type"]).startswith("sentence_transformers."):
            kind = module["type"]  # code of its own
        if kind == "Pooling" and re.fullmatch(r"\w[\w.-]*", path):
            folders.append(path)
        elif not (kind == "Transformer" and not path and not folders) and kind not in _DIRECTION_STAYS:
            raise ValueError(
                f"{source} has a module {path or kind!r} ({kind}) that WavLink would leave out; {_BY_HAND}"
            )
    if len(folders) != 1:
        raise ValueError(f"{source} has {len(folders) or 'no'} Pooling modules in its modules.json; {_BY_HAND}")
    return folders[0]


def _pooling_mode(path: str, config) -> str:
    """`"mean"` or `"cls"`, by either of the forms that sentence-transformers writes, with its own default."""
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a pooling's config; {_BY_HAND}")
    prefix = "pooling_mode_"  # the form until 5: a flag for each
    flags = [name.removeprefix(prefix) for name, active in config.items() if name.startswith(prefix) and active]
    modes = config.get("pooling_mode", [_LEGACY_MODES.get(name, name) for name in flags] or ["mean"])
    modes = [str(mode).lower() for mode in (modes if isinstance(modes, list) else [modes])]
    if modes not in (["mean"], ["cls"]):
        raise ValueError(f"{path} pools by {' and '.join(modes) or 'none'}, which is neither mean nor cls; {_BY_HAND}")
    return modes[0]


_LEGACY_MODES = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}
