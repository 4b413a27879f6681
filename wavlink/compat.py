"""Private features of other libraries that this package uses, each with a public fallback.

Shipped files have theirs in `compat_wavlink.py` and `processing/compat_features_wavlink.py`. Not included is what
transformers documents for custom models (`_init_weights`, `_no_split_modules`, `_supports_sdpa`, ...) and evaluate for
metrics (`_info`, `_compute`). Versions in parentheses are those with the private feature.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lance
    import pyarrow
    import ray.data
    from torch import Tensor, nn
    from transformers import PreTrainedModel, Trainer

# Methods by which Trainer saves and loads a model, which have no public hook (transformers 5.6 to 5.23).
TRAINER_HOOKS = ("_save", "_load_from_checkpoint", "_load_best_model")


def has_packed_linear() -> bool:
    """Return whether torch has the two operators of `pack_linear` and `packed_linear` (2.7 to 2.13).

    Without them layers stay `nn.Linear`s.
    """
    import torch

    return hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack_linear(weight: "Tensor") -> "Tensor":
    """Return a weight `[out, in]` in the order of oneDNN's kernels; needs `has_packed_linear`."""
    import torch

    return torch.ops.mkldnn._reorder_linear_weight(weight)


def packed_linear(states: "Tensor", weight: "Tensor", bias: "Tensor | None", gelu: bool) -> "Tensor":
    """Apply a weight of `pack_linear`, `[..., in] -> [..., out]`, and then the exact GELU if `gelu`."""
    import torch

    after = ("gelu", [], "none") if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, *after)


def has_bf16_kernels() -> bool:
    """Return whether oneDNN has bf16 for this processor: as torch says (2.7 to 2.13), or else from AVX-512 on."""
    import torch

    if not torch.backends.mkldnn.is_available():
        return False
    if hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported"):
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


@contextmanager
def fake_tensors() -> Iterator[str]:
    """Yield a device on which new tensors have no data: a CPU with its autocast and masks (torch 2.7 to 2.13).

    Where torch lacks it, that is the meta device, which has neither.
    """
    try:
        from torch._subclasses.fake_tensor import FakeTensorMode
    except ImportError:
        yield "meta"
        return
    with FakeTensorMode():
        yield "cpu"


def unsplit_modules(model: "nn.Module") -> set[str]:
    """Return the names of the layers that FSDP must not split.

    Those are the ones that the model declares (transformers 5.6 to 5.23), or else all that it stacks.
    """
    from torch import nn

    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    stacked = {type(layer).__name__ for stack in stacks for layer in stack}
    declared = getattr(model, "_no_split_modules", None)
    return stacked & set(declared) if declared else stacked


def enable_checkpointing(model: "PreTrainedModel") -> None:
    """Enable activation checkpointing, by its new or (until transformers 5.22) its former name.

    Raises:
        ValueError: the model does not support it.
    """
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()


def disable_checkpointing(model: "PreTrainedModel") -> None:
    """Disable activation checkpointing, see `enable_checkpointing`."""
    if hasattr(model, "activation_checkpointing_disable"):
        model.activation_checkpointing_disable()
    else:
        model.gradient_checkpointing_disable()


def train_batch_size(trainer: "Trainer") -> int:
    """Return the clips of a process in a step.

    It is Trainer's own value, which `auto_find_batch_size` lowers (transformers 5.6 to 5.23), or else that of its
    arguments.
    """
    return getattr(trainer, "_train_batch_size", None) or trainer.args.train_batch_size


def on_device(trainer: "Trainer", inputs: dict) -> dict:
    """Move a batch to the model's device, with Trainer (transformers 5.6 to 5.23) or else Accelerate."""
    if hasattr(trainer, "_prepare_inputs"):
        return dict(trainer._prepare_inputs(inputs))
    from accelerate.utils import send_to_device

    return dict(send_to_device(inputs, trainer.args.device))


def map_batches(
    dataset: "ray.data.Dataset",
    function: Callable | type,
    *,
    max_restarts: int,
    max_task_retries: int,
    **options: Any,
) -> "ray.data.Dataset":
    """Call Ray Data's `map_batches` with limits for its workers, for which it has no parameters.

    `ray_remote_args` is announced to be removed in 2.64, with a warning at each call (ray 2.60).
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", DeprecationWarning)
        return dataset.map_batches(function, max_restarts=max_restarts, max_task_retries=max_task_retries, **options)


def take_rows(dataset: "lance.LanceDataset", ids: list[int], columns: list[str]) -> "pyarrow.Table":
    """Return rows by their ids, in the order of these."""
    if hasattr(dataset, "_take_rows"):  # pylance 14
        return dataset._take_rows(ids, columns=columns)
    wanted = f"_rowid IN ({', '.join(map(str, ids))})" if ids else "false"
    rows = dataset.scanner(columns=columns, filter=wanted, with_row_id=True).to_table()
    place = {row: number for number, row in enumerate(rows["_rowid"].to_pylist())}
    return rows.drop_columns(["_rowid"]).take([place[row] for row in ids])
