"""Several processes, also with FSDP2, which shards parameters, gradients and Adam's moments over them.

Results equal those of one process. Everything but layers and embeddings is one group, gathered when `forward` is
called. The 0-dim parameters (`logit_scale`, `logit_bias`) cannot be sharded, so every process has a full copy.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from modeling_wavlink.modeling_wavlink import WavLinkModel
from wavlink.compat import unsplit_modules


def start(mixed_precision: str, trackers: Sequence[str] = (), folder: str = "") -> Accelerator:
    """Return an Accelerator for how this process was launched; without an accelerator device processes use gloo.

    `mixed_precision` takes precedence over that of an `accelerate launch` config file. Trackers write to `folder`.

    Raises:
        ValueError: FSDP1, or FSDP2 in fp16.
    """
    logs = {"log_with": list(trackers), "project_dir": folder} if trackers else {}
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=not torch.accelerator.is_available(), **logs)
    use_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if use_fsdp and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # Accelerate uses FSDP on GPUs alone, and elsewhere silently trains as DDP.
        PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError("of the two FSDPs only the second works here: set fsdp_version: 2 in the config file")
    if accelerator.is_fsdp2 and mixed_precision == "fp16":
        raise ValueError("FSDP2 trains in bf16 or fp32: set mixed_precision to bf16 or no, or launch with DDP")
    return accelerator


def refuse_unequal_chunks(accelerator: Accelerator, batch_size: int, micro_batch_size: int) -> None:
    """Refuse shares of different numbers of chunks with FSDP2, where every forward gathers from all processes."""
    processes = accelerator.num_processes
    if not accelerator.is_fsdp2 or not micro_batch_size:
        return
    fewest, most = (-(-share // micro_batch_size) for share in (batch_size // processes, -(-batch_size // processes)))
    if fewest != most:
        raise ValueError(
            f"a batch of {batch_size} clips over {processes} processes is {fewest} chunks of micro_batch_size="
            f"{micro_batch_size} on some and {most} on others: make batch_size a multiple of {processes}, at most the "
            "number of clips"
        )


def prepare(accelerator: Accelerator, model: WavLinkModel, optimizer: torch.optim.Optimizer) -> tuple:
    """Call `accelerator.prepare`; for FSDP2 state which modules are not split and which parameters not sharded."""
    if accelerator.is_fsdp2:
        plugin = accelerator.state.fsdp_plugin
        plugin.transformer_cls_names_to_wrap = sorted(unsplit_modules(model))
        # Only autocast computes in bf16, as without FSDP2: FSDP2's policy would round the embeddings and gradients.
        plugin.mixed_precision_policy = None
        unsharded = nn.ParameterList(p for p in model.parameters() if p.ndim == 0)
        plugin.ignored_modules = [unsharded.to(accelerator.device)]
    return accelerator.prepare(model, optimizer)


def average_whole(model: nn.Module) -> None:
    """Average over processes the gradients that FSDP2 does not reduce; a no-op without FSDP2."""
    if isinstance(model, FSDPModule):
        for parameter in model.parameters():
            if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()


@contextmanager
def gathering_features(model: nn.Module, autocast: Callable = nullcontext) -> Iterator[None]:
    """Let `get_audio_features` and `get_text_features` work as `forward` does, in this context.

    They gather the parameters of a sharded model, and compute in the precision of training. All processes must call
    them equally often.

    Args:
        autocast: `Accelerator.autocast`.
    """
    names = ("get_audio_features", "get_text_features")
    for name in names:
        register_fsdp_forward_method(model, name)
        setattr(model, name, _within(autocast, getattr(model, name)))
    try:
        yield
    finally:
        for name in names:  # forward calls them, and must not gather twice
            delattr(model, name)
        if isinstance(model, FSDPModule):
            model.reshard()


def _within(context: Callable, method: Callable) -> Callable:
    @functools.wraps(method)
    def called(*args, **kwargs):
        with context():
            return method(*args, **kwargs)

    return called


def savable(accelerator: Accelerator, model: nn.Module) -> tuple[WavLinkModel, dict]:
    """Return a model to save and its full weights, empty except on the main process; all processes must call it."""
    weights = accelerator.get_state_dict(model)
    if not accelerator.is_fsdp2:
        return accelerator.unwrap_model(model), weights
    with torch.device("meta"):  # FSDP2 changed the class, and the saved code is found by the class
        return WavLinkModel(model.config), weights
