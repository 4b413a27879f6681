"""Memory of a training process on a CPU: how freed tensors go back to the system, and the most it has held."""

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MAPPED = 1 << 20  # bytes: larger blocks are mapped one by one
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
