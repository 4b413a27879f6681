"""Memory of training on a CPU: return freed tensors to the system, recompute large states, measure the peak."""

import ctypes
import inspect
import os
import platform
import sys

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from wavlink.compat import disable_checkpointing, enable_checkpointing

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MAPPED = 1 << 20  # bytes: larger blocks are mapped one by one
MANY_WEIGHTS = 14 << 20  # 56 MB in fp32, in each layer
MANY_TOKENS = 64 * 64
_KEPT = 1 << 26  # free bytes at the end of the heap that stay there
_CACHES = {"LRU_CACHE_CAPACITY": "32", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32"}  # 1024 each by default
_NAME = "eager_recomputed"


def limit_kept_memory() -> bool:
    """Limit the buffers that oneDNN caches and the freed memory that glibc keeps; return whether glibc's is limited.

    Call it before torch computes.

    oneDNN caches primitives, with their buffers, for the last 1,024 shapes, and each batch of another length has new
    shapes. glibc takes blocks of up to 32 MB from one heap as soon as one such block was freed, and batches of varying
    length leave gaps in which the next ones do not fit. Together they make training's memory grow for an hour, with
    the recipe `sounds` beyond 8 GB. Settings of these in the environment are respected.
    """
    for name, capacity in _CACHES.items():
        os.environ.setdefault(name, capacity)
    tuned = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if tuned or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, _MAPPED) and mallopt(_M_TRIM_THRESHOLD, _KEPT))


def return_freed_memory() -> None:
    """Return the free pages of the heap, also those between blocks in use, to the system; only with glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory() -> int | None:
    """Return the peak resident memory of this process, in MiB; None if the system does not report it."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:  # `getrusage` would begin with the parent's peak
            return next(int(line.split()[1]) >> 10 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)


def recompute_attention(model: PreTrainedModel) -> None:
    """Make a tower with eager attention recompute large attention weights in backward.

    The gradients are bit-equal. With `attn_implementation="eager"`, the fastest in bf16 on a CPU, the weights
    `[B, heads, L, L]` of long clips take most of a step's memory.
    """
    AttentionInterface.register(_NAME, _recomputed_attention)
    AttentionMaskInterface.register(_NAME, eager_mask)
    model.set_attn_implementation(_NAME)


def recompute_long_texts(model: PreTrainedModel) -> None:
    """Make a text tower recompute its layers' states in backward for batches of many tokens.

    The gradients are bit-equal, dropout included. A tower without gradient checkpointing is unchanged, and so is one
    that does not learn: checkpointing would compute its gradients nevertheless.
    """
    if not (model.supports_gradient_checkpointing and learns(model)):
        return

    def choose(_, args: tuple, kwargs: dict) -> None:
        tokens = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        many = torch.is_grad_enabled() and tokens.numel() >= MANY_TOKENS
        (enable_checkpointing if many else disable_checkpointing)(model)

    model.register_forward_pre_hook(choose, with_kwargs=True)
    use_no_cache(model)


def learns(model: nn.Module) -> bool:
    """Whether some of a model's parameters learn."""
    return any(parameter.requires_grad for parameter in model.parameters())


def use_no_cache(model: PreTrainedModel) -> None:
    """Make a text tower compute without a cache of keys and values, which an encoder never uses.

    transformers warns of the two together where a config says `use_cache`, as BERT's does; the config is unchanged.
    """
    if getattr(model.config, "use_cache", False):
        model.register_forward_pre_hook(
            lambda _, args, kwargs: (args, {**kwargs, "use_cache": False}), with_kwargs=True
        )


def _recomputed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options
) -> tuple[Tensor, Tensor | None]:
    """`[B, heads, L, d]` thrice and a mask `[B or 1, 1, L, L]` -> `[B, L, heads, d]`, and weights or None."""
    attend = inspect.getmodule(type(module)).eager_attention_forward  # each model defines one
    batch, heads, length = query.shape[:3]
    weights = heads * length * key.shape[2]  # of a clip
    if not torch.is_grad_enabled() or batch * weights < MANY_WEIGHTS:
        return attend(module, query, key, value, mask, **options)
    size = max(1, MANY_WEIGHTS // weights)
    if module.training and options.get("dropout"):
        size = batch  # so that dropout draws the same random numbers as without this
    pieces = [x.split(size) for x in (query, key, value)]
    masks = [None] * len(pieces[0]) if mask is None else mask.expand(batch, -1, -1, -1).split(size)
    attended = [
        checkpoint(lambda *piece: attend(module, *piece, **options)[0], *piece, use_reentrant=False)
        for piece in zip(*pieces, masks, strict=True)
    ]
    return torch.cat(attended), None
