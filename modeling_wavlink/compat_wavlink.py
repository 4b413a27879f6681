"""What the shipped files use of transformers that it does not promise to keep, each with a public way beside it."""

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file


def from_config(cls: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model with new weights in `dtype`: by `_from_config` (transformers 5.6 to 5.23), or else made by its
    constructor and cast."""
    if hasattr(cls, "_from_config"):
        return cls._from_config(config, dtype=dtype)
    return cls(config).to(dtype)


def optional_file(source: str, name: str, **hub) -> str | None:
    """The path of a file that a folder or repository may lack, or None.

    `cached_file` has a private option for this; its errors say the same.

    Args:
        hub: options of `cached_file`, such as `revision`.

    Raises:
        OSError: there is no such repository, or it cannot be asked.
    """
    try:
        return cached_file(source, name, **hub)
    except OSError as error:
        if error.__cause__ is None or "EntryNotFound" in type(error.__cause__).__name__:
            return None
        raise
