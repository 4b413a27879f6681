"""Memory of training on a CPU: freed tensors go back to the system, attention is recomputed, the peak is known."""

import ctypes
import functools
import os
import platform
import sys

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.whisper.modeling_whisper import eager_attention_forward

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MAPPED = 1 << 20  # bytes: larger blocks are mapped one by one
MANY_WEIGHTS = 14 << 20  # 56 MB in fp32
_KEPT = 1 << 26  # free bytes at the end of the heap that stay there


def return_freed_memory() -> bool:
    """Make glibc give the memory of freed tensors back at once, and return whether it will.

    By itself glibc takes blocks of up to 32 MB from one heap as soon as one such block was freed. Batches of ever
    other lengths then leave gaps in which the next ones do not fit, so that the heap grows all through a run: of the
    recipe `sounds` beyond 8 GB. Settings of `MALLOC_*` and `GLIBC_TUNABLES` in the environment are left as they are.
    """
    tuned = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if tuned or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, _MAPPED) and mallopt(_M_TRIM_THRESHOLD, _KEPT))


def peak_memory() -> int | None:
    """The most resident memory that this process has had, in MiB; None where the system does not say."""
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


def recompute_large_attention(module: nn.Module) -> None:
    """Make a Whisper's `self_attn` compute attention weights anew in backward where they are many, in pieces.

    The gradients are the same to the last bit. With `attn_implementation="eager"`, which in bf16 on a CPU is the
    fastest, the weights `[B, heads, L, L]` of long clips are most of a step's memory, in fp32 and in bf16.
    """
    forward = module.forward

    @functools.wraps(forward)
    def recomputed(hidden_states, attention_mask=None, **kwargs):
        batch, length = hidden_states.shape[:2]
        weights = module.num_heads * length**2  # of a clip
        others = any(value is not None and value is not False for value in kwargs.values())  # such as other keys
        if others or not torch.is_grad_enabled() or batch * weights < MANY_WEIGHTS:
            return forward(hidden_states, attention_mask=attention_mask, **kwargs)
        states = [module.q_proj(hidden_states) * module.scaling, module.k_proj(hidden_states)]
        states = [x.view(batch, length, module.num_heads, -1) for x in (*states, module.v_proj(hidden_states))]
        pieces = [x.transpose(1, 2).contiguous().split(max(1, MANY_WEIGHTS // weights)) for x in states]
        masks = [None] * len(pieces[0])
        if attention_mask is not None:
            masks = attention_mask.expand(batch, -1, -1, -1).split(len(pieces[0][0]))
        attended = [
            checkpoint(_attend, module, *piece, use_reentrant=False) for piece in zip(*pieces, masks, strict=True)
        ]
        return module.out_proj(torch.cat(attended).reshape(batch, length, -1)), None

    module.forward = recomputed


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """`[b, heads, L, d]` thrice and a mask `[b, 1, L, L]` -> `[b, L, heads, d]`."""
    dropout = module.dropout if module.training else 0.0
    return eager_attention_forward(module, query, key, value, mask, scaling=1.0, dropout=dropout)[0]
