"""Pooling of a text tower's states, and the pooling that a sentence-transformers folder was trained with."""

import json
import re

import torch
from torch import Tensor
from transformers import PretrainedConfig

from .compat_wavlink import optional_file
from .configuration_wavlink import one_line

_BY_HAND = "WavLinkModel.from_audio_text_pretrained(..., text_pooling=mean, cls or eos) takes its encoder alone"
_KEEP_DIRECTION = ("Normalize", "Dropout")  # modules that do not change the direction of a vector
_LEGACY_MODES = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}


def masked_mean(hidden_states: Tensor, mask: Tensor | None) -> Tensor:
    """Compute the mean of the states where `mask` `[B, L]` is 1, `[B, L, D] -> [B, D]`, summed in fp32 at least."""
    dtype = hidden_states.dtype
    wide = torch.promote_types(dtype, torch.float32)  # a sum of many frames exceeds fp16's range and bf16's precision
    if mask is None:
        return hidden_states.mean(1, dtype=wide).to(dtype)
    mask = mask[..., None].to(dtype)
    return ((hidden_states * mask).sum(1, dtype=wide) / mask.sum(1, dtype=wide)).to(dtype)


def pool_text(
    hidden_states: Tensor, input_ids: Tensor, attention_mask: Tensor | None, pooling: str, config: PretrainedConfig
) -> Tensor:
    """Pool a text tower's states, `[B, L, D] -> [B, D]`.

    Args:
        input_ids, attention_mask: `[B, L]`; without a mask all are tokens.
        pooling: `"mean"` of the tokens, or the state of the first token (`"cls"`) or of the end of the text (`"eos"`).
        config: the text tower's.
    """
    if pooling == "mean":
        return masked_mean(hidden_states, attention_mask)
    if pooling == "cls" and attention_mask is None:
        return hidden_states[:, 0]
    if pooling == "cls":
        positions = attention_mask.int().argmax(-1)  # padding may be on the left
    else:
        positions = end_of_text(input_ids, attention_mask, config)
    return hidden_states[torch.arange(hidden_states.shape[0], device=hidden_states.device), positions]


def end_of_text(input_ids: Tensor, attention_mask: Tensor | None, config: PretrainedConfig) -> Tensor:
    """Return the position of a text's first end-of-text token, else of its last token, `[B, L] -> [B]`.

    Args:
        attention_mask: `[B, L]`, 1 for tokens and 0 for padding, whose id may be that of the end of text.
        config: the text tower's.
    """
    tokens = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    eos = config.eos_token_id
    if eos == 2 and config.model_type == "clip_text_model":
        # CLIP configs from before transformers 4.31 have 2 for any tokenizer; the end of text is the highest id.
        return input_ids.masked_fill(tokens == 0, -1).argmax(-1)
    ends = ((input_ids == eos) & (tokens != 0)).int()
    last = input_ids.shape[-1] - 1 - tokens.int().flip(-1).argmax(-1)
    return torch.where(ends.any(-1), ends.argmax(-1), last)


def sentence_transformers_pooling(source: str) -> str | None:
    """Return the `text_pooling` of a sentence-transformers folder or Hub id, None where it is of another library.

    Raises:
        ValueError: a pooling that WavLink does not have, or a step that it would leave out: another module, a default
            prompt, lower-casing before a tokenizer that does not lower-case itself.
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
    """Return the content of a JSON file of a folder or Hub id, None where there is no such file."""
    if (path := optional_file(source, name)) is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {one_line(error)}") from error


def _refuse_changed_texts(source: str) -> None:
    """Refuse changes to every text before the tokenizer, which sentence-transformers makes and WavLink does not."""
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
    if isinstance(transformer, dict) and transformer.get("do_lower_case") and not _lower_cases(source):
        raise ValueError(
            f"{source} makes every text lower case (do_lower_case in {name}), which its tokenizer alone does not: set "
            f"it in tokenizer_config.json, or to false here; {_BY_HAND}"
        )


def _lower_cases(source: str) -> bool:
    """Whether a tokenizer lower-cases texts itself."""
    config, tokenizer = _json(source, "tokenizer_config.json"), _json(source, "tokenizer.json")
    steps = json.dumps(tokenizer.get("normalizer")) if isinstance(tokenizer, dict) else ""
    by_config = isinstance(config, dict) and config.get("do_lower_case")
    return bool(by_config) or '"lowercase": true' in steps or '"Lowercase"' in steps


def _pooling_folder(source: str, modules) -> str:
    """Return the folder of the only Pooling module; only an encoder in the root folder may come before it."""
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ValueError(f"modules.json of {source} is not a list of modules; {_BY_HAND}")
    folders = []
    for module in sorted(modules, key=lambda module: module.get("idx") or 0):
        kind, path = str(module.get("type")).rsplit(".", 1)[-1], str(module.get("path") or "")
        if kind in ("Transformer", "Pooling") and not str(module["type"]).startswith("sentence_transformers."):
            kind = module["type"]  # a custom class
        if kind == "Pooling" and re.fullmatch(r"\w[\w.-]*", path):
            folders.append(path)
        elif not (kind == "Transformer" and not path and not folders) and kind not in _KEEP_DIRECTION:
            raise ValueError(
                f"{source} has a module {path or kind!r} ({kind}) that WavLink would leave out; {_BY_HAND}"
            )
    if len(folders) != 1:
        raise ValueError(f"{source} has {len(folders) or 'no'} Pooling modules in its modules.json; {_BY_HAND}")
    return folders[0]


def _pooling_mode(path: str, config) -> str:
    """Return `"mean"` or `"cls"` from either of the formats that sentence-transformers writes, with its default."""
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a pooling's config; {_BY_HAND}")
    prefix = "pooling_mode_"  # the format until version 5: a flag for each mode
    flags = [name.removeprefix(prefix) for name, active in config.items() if name.startswith(prefix) and active]
    modes = config.get("pooling_mode", [_LEGACY_MODES.get(name, name) for name in flags] or ["mean"])
    modes = [str(mode).lower() for mode in (modes if isinstance(modes, list) else [modes])]
    if modes not in (["mean"], ["cls"]):
        raise ValueError(f"{path} pools by {' and '.join(modes) or 'none'}, which is neither mean nor cls; {_BY_HAND}")
    return modes[0]
