"""Private functions of transformers that the shipped files use, each with a public fallback."""

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file


def from_config(cls: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Make a model with new weights in `dtype`.

    It calls `_from_config` (seen in transformers 5.6 to 5.23), or else the constructor, and casts the weights.
    """
    if hasattr(cls, "_from_config"):
        return cls._from_config(config, dtype=dtype)
    return cls(config).to(dtype)


def attention_of(config: PretrainedConfig) -> str:
    """Return the attention implementation that a model's config names (transformers 5.6 to 5.23), or `"eager"`."""
    return getattr(config, "_attn_implementation", None) or "eager"


def optional_file(source: str, name: str, **hub: object) -> str | None:
    """Return the path of a file of a folder or repository, None where it has no such file.

    `cached_file` has a private option for this; its errors carry the same information.

    Args:
        hub: options of `cached_file`, such as `revision`.

    Raises:
        OSError: the repository does not exist or cannot be reached.
    """
    try:
        return cached_file(source, name, **hub)
    except OSError as error:
        if error.__cause__ is None or "EntryNotFound" in type(error.__cause__).__name__:
            return None
        raise
