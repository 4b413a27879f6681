"""Checks of checkpoints: only safetensors, all weights present and finite, no adapters."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import load_state_dict
from transformers.utils import SAFE_WEIGHTS_NAME, TransformersKwargs

from .compat_wavlink import optional_file
from .configuration_wavlink import one_line, saved_alone

RECORDED = ("output_hidden_states", "output_attentions")  # optional outputs of the towers

# Options of `from_pretrained` with which it reads `model.safetensors` alone, and each weight under its own name.
_OF_ONE_FILE = {
    *("attn_implementation", "cache_dir", "config", "dtype", "local_files_only"),
    *("output_loading_info", "revision", "token", "torch_dtype"),
}
_MAPPED_AT_ONCE = 2**26  # bytes that are read of a mapping before the next one
_KNOWN_ARGUMENTS = {"inputs_embeds", "return_dict", *TransformersKwargs.__annotations__}


def given(kwargs: Mapping) -> dict:
    """Return the keyword arguments of a model that are not None, the value that PEFT's wrappers pass by default.

    Raises:
        TypeError: an argument that transformers' models do not have.
        ValueError: `inputs_embeds`, since texts are given as `input_ids`.
    """
    for name, value in kwargs.items():
        if name == "inputs_embeds" and value is not None:
            raise ValueError("inputs_embeds are not supported: give input_ids")
        if name not in _KNOWN_ARGUMENTS:
            raise TypeError(f"forward got an unexpected keyword argument {name!r}")
    return {name: value for name, value in kwargs.items() if value is not None}


def refuse_wrong_weights(
    source: str, info: Mapping, left_out: re.Pattern | None = None, new: tuple[str, ...] = ()
) -> None:
    """Refuse a checkpoint whose weights are not those of the model.

    Args:
        source: names the checkpoint in the error.
        info: the loading info of `from_pretrained`.
        left_out: of unexpected weights that may be there.
        new: beginnings of the names of weights that may be missing.

    Raises:
        ValueError: missing or unexpected weights.
    """
    unexpected = [key for key in info["unexpected_keys"] if not (left_out and left_out.search(key))]
    missing = [key for key in info["missing_keys"] if not key.startswith(new or ("\0",))]
    if missing or unexpected:
        raise ValueError(
            f"the weights of {source} do not fit: missing {sorted(missing)}, unexpected {sorted(unexpected)}; "
            "a missing weight would start random, so load a checkpoint that has it"
        )


def refuse_adapter(source: str, **hub: object) -> None:
    """Refuse a folder with an adapter, for which transformers may load another model that a file names.

    Args:
        source: folder or Hub id.
        hub: options of `cached_file`, such as `revision`.

    Raises:
        ValueError: it holds an adapter_config.json.
    """
    if optional_file(source, "adapter_config.json", **hub):
        raise ValueError(
            f"{source} holds an adapter_config.json, whose adapter and base would be loaded too: give a model without "
            "one, such as what hub_cards.push or peft's merge_and_unload makes of an adapter"
        )


def mapped_anew(named: Iterable[tuple[str, Tensor]], path: str | None) -> Iterator[tuple[str, Tensor]]:
    """Yield a model's tensors from a new mapping of the file that they were loaded from, and that again and again.

    What is read of a mapping counts as memory of the process until the mapping is dropped, and the model keeps its
    own. A tensor that the file has in no such name, shape and dtype is yielded as it is.

    Args:
        path: of a safetensors file; None for the tensors as they are.
    """
    if path is None:
        yield from named
        return
    mapped, read = load_state_dict(path), 0
    for name, tensor in named:
        if read > _MAPPED_AT_ONCE:
            mapped, read = load_state_dict(path), 0
        found = mapped.get(name, tensor)
        read += found.nbytes
        yield name, found if (found.dtype, found.shape) == (tensor.dtype, tensor.shape) else tensor


def own_file(model: nn.Module, path: str | None) -> str | None:
    """Return the path of a safetensors file, None unless it has each of the model's weights by its name, and no other.

    Otherwise transformers may have loaded a weight from another name or file.
    """
    if path is None or getattr(model.config, "transformers_weights", None):
        return None
    return path if load_state_dict(path).keys() == model.state_dict().keys() else None


def refuse_broken_weights(source: str, model: PreTrainedModel, path: str | None = None) -> None:
    """Refuse NaN or infinite weights, which would make every vector NaN.

    Args:
        source: names the checkpoint in the error.
        path: of the file that they were loaded from, if it is known, see `mapped_anew`.

    Raises:
        ValueError: names the first such weight.
    """
    for name, weight in mapped_anew(model.named_parameters(), own_file(model, path)):
        checked = not weight.is_meta and weight.dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
        if checked and not _finite(weight):
            raise ValueError(
                f"{name} of {source} holds NaN or infinite weights in {weight.dtype}: take another checkpoint or dtype"
            )


def _finite(weight: Tensor) -> bool:
    """Whether all numbers are finite; a quantised tensor, which may not support the check, holds integers."""
    if not weight.numel():
        return True
    try:  # NaN is the least and the most; `isfinite` of all numbers would take more memory than the weight
        return bool(torch.isfinite(torch.stack(torch.aminmax(weight.detach()))).all())
    except (NotImplementedError, RuntimeError, TypeError):
        if type(weight) in (nn.Parameter, Tensor):
            raise
        return True


def from_safetensors(
    load: Callable,
    source: str | None,
    *args: object,
    use_safetensors: bool | None = None,
    **options: object,
) -> PreTrainedModel | tuple:
    """Call `load(source, ...)`, a `from_pretrained`, for safetensors only: reading a pickled file can run code.

    Raises:
        ValueError: no safetensors, or weights that cannot be loaded or are not finite.
    """
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
        if _is_call_error(error) or isinstance(error, ValueError) and str(source) in str(error):
            raise
        shapes = isinstance(error, RuntimeError) and "ignore_mismatched_sizes" in str(error)
        why = "they have other shapes than its config says" if shapes else one_line(error)
        raise ValueError(f"the weights of {source} cannot be loaded: {why}") from error
    path = None if args or set(options) - _OF_ONE_FILE else _weights_file(source, options)
    refuse_broken_weights(str(source), loaded[0] if isinstance(loaded, tuple) else loaded, path)
    return loaded


def _weights_file(source: str | None, options: Mapping) -> str | None:
    """Return the path of the `model.safetensors` that was loaded, None if it is not known."""
    hub = {name: options[name] for name in ("cache_dir", "revision") if name in options}
    try:
        return optional_file(str(source), SAFE_WEIGHTS_NAME, local_files_only=True, **hub) if source else None
    except (OSError, ValueError):
        return None


def _is_call_error(error: Exception) -> bool:
    """Whether an argument or the environment is at fault and not a file; the error's own text is then the best."""
    if type(error) is ValueError:  # a broken file raises subclasses, such as UnicodeDecodeError
        return True
    if isinstance(error, TypeError):
        return "unexpected keyword argument" in str(error)
    return isinstance(error, RuntimeError) and torch.get_default_device().type == "meta"


class CheckedWeights:
    """A `PreTrainedModel` that loads only checkpoints with all of its weights."""

    left_out: re.Pattern | None = None  # names of a checkpoint's weights that the model does not need

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | None,
        *args: object,
        output_loading_info: bool = False,
        **kwargs: object,
    ) -> PreTrainedModel | tuple:
        """Load a model as transformers does, but only from safetensors.

        Raises:
            ValueError: missing or unexpected weights, which would start random, or weights that are not finite.
        """
        source, kwargs = pretrained_model_name_or_path, {**kwargs, "output_loading_info": True}
        model, info = from_safetensors(super().from_pretrained, source, *args, **kwargs)
        if source is not None:  # without a checkpoint a `state_dict` may hold as much as the caller wants
            refuse_wrong_weights(str(source), info, cls.left_out)
        return (model, info) if output_loading_info else model

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return False, so that transformers initialises each module by itself.

        All weights here are initialised with `transformers.initialization`, also those of modules without an
        `_init_weights`, such as the sinusoids of Whisper's encoder.
        """
        return False


class SavedAlone(CheckedWeights):
    """An audio tower whose checkpoint, when it is saved without a WavLink, has its own model type."""

    def save_pretrained(self, save_directory: str, *args: object, **kwargs: object) -> None:
        """Save the tower as transformers does, with the config of `saved_alone`."""
        within, self.config = self.config, saved_alone(self.config)
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.config = within
