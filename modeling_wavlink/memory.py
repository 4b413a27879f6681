"""Memory of training on a CPU: freed tensors go back to the system, attention is recomputed, the peak is known."""

import ctypes
import functools
import os
import platform

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MAPPED = 1 << 20  # bytes: larger blocks are mapped one by one
_MANY_WEIGHTS = 14 << 20  # 56 MB in fp32
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
    return peak >> (20 if platform.system() == "Darwin" else 10)


def recompute_large_attention(module: nn.Module, head_count: int) -> None:
    """Make a Whisper's `self_attn` keep no attention weights for backward where they are many, but compute them anew.

    The gradients are the same to the last bit. With `attn_implementation="eager"`, which in bf16 on a CPU is the
    fastest, the weights `[B, heads, L, L]` of long clips are most of a step's memory, in fp32 and in bf16.
    """
    forward = module.forward

    @functools.wraps(forward)
    def recomputed(hidden_states, *args, **kwargs):
        batch, length = hidden_states.shape[:2]
        if torch.is_grad_enabled() and batch * head_count * length**2 >= _MANY_WEIGHTS:
            return checkpoint(forward, hidden_states, *args, use_reentrant=False, **kwargs)
        return forward(hidden_states, *args, **kwargs)

    module.forward = recomputed
