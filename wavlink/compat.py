"""What this package uses of other libraries that they do not promise to keep, each with a public way beside it.

Shipped files have theirs in `compat_wavlink.py` and `processing/compat_features_wavlink.py`. Not in here: what
transformers documents for models of one's own (`_init_weights`, `_no_split_modules`, `_supports_sdpa`, ...) and
evaluate for metrics (`_info`, `_compute`). Versions in parentheses are those that had the private thing.
"""

import warnings

import numpy as np
import torch
from torch import Tensor, nn

# What Trainer calls to save and load a model, with no public hook of that reach (transformers 5.6 to 5.23).
TRAINER_HOOKS = ("_save", "_load_from_checkpoint", "_load_best_model")


def has_packed_linear() -> bool:
    """Whether torch has the two operators of `pack_linear` and `packed_linear` (2.7 to 2.13). Without them
    layers stay `nn.Linear`s."""
    return hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack_linear(weight: Tensor) -> Tensor:
    """`[out, in]` in the order of oneDNN's kernels; needs `has_packed_linear`."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def packed_linear(states: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """`[..., in] -> [..., out]` with a weight of `pack_linear`, and the exact GELU after it if `gelu`."""
    after = ("gelu", [], "none") if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, *after)


def has_bf16_kernels() -> bool:
    """Whether oneDNN has bf16 for this processor: torch's own answer (2.7 to 2.13), or else from AVX-512 on."""
    if not torch.backends.mkldnn.is_available():
        return False
    if hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported"):
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def attention_of(config) -> str:
    """The attention that a model's config asks for (transformers 5.6 to 5.23); "" where that is unknown."""
    return getattr(config, "_attn_implementation", None) or ""


def unsplit_modules(model: nn.Module) -> set[str]:
    """Names of the layers that are one piece to FSDP: those that the model declares (transformers 5.6 to 5.23),
    or else of everything that it stacks."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    stacked = {type(layer).__name__ for stack in stacks for layer in stack}
    declared = getattr(model, "_no_split_modules", None)
    return stacked & set(declared) if declared else stacked


def enable_checkpointing(model) -> None:
    """Compute states again on the way back instead of keeping them; the method's name until transformers 5.22 is
    deprecated.

    Raises:
        ValueError: the model cannot.
    """
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()


def disable_checkpointing(model) -> None:
    """Keep states again, see `enable_checkpointing`."""
    if hasattr(model, "activation_checkpointing_disable"):
        model.activation_checkpointing_disable()
    else:
        model.gradient_checkpointing_disable()


def train_batch_size(trainer) -> int:
    """Clips a process in a step: Trainer's own, which `auto_find_batch_size` lowers (transformers 5.6 to 5.23),
    or else what its arguments say."""
    return getattr(trainer, "_train_batch_size", None) or trainer.args.train_batch_size


def on_device(trainer, inputs: dict) -> dict:
    """A batch where the model is: as Trainer puts it there (transformers 5.6 to 5.23), or else as Accelerate."""
    if hasattr(trainer, "_prepare_inputs"):
        return dict(trainer._prepare_inputs(inputs))
    from accelerate.utils import send_to_device

    return dict(send_to_device(inputs, trainer.args.device))


def map_batches(dataset, function, *, max_restarts: int, max_task_retries: int, **options):
    """Ray Data's `map_batches` with bounds for its workers, which have no parameters of their own: what it takes any
    option by is announced to go in 2.64, with a warning at each call (ray 2.60)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", DeprecationWarning)
        return dataset.map_batches(function, max_restarts=max_restarts, max_task_retries=max_task_retries, **options)


def stored_bytes(vector, size: int) -> np.ndarray:
    """The `size` bytes of a FAISS vector: a view (faiss 1.9 to 1.15), valid until it grows, or else a copy."""
    import faiss

    if hasattr(faiss, "rev_swig_ptr"):
        return faiss.rev_swig_ptr(vector.data(), size)
    return faiss.vector_to_array(vector).view(np.uint8)[:size]
