"""Memory that a process keeps when tensors are freed: limit it, and return it to the system."""

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
# Bytes: larger blocks are mapped one by one, and so many free ones at the end of the heap stay there.
_SMALL_BLOCKS = {_M_MMAP_THRESHOLD: 1 << 20, _M_TRIM_THRESHOLD: 1 << 26}
_ONE_HEAP = {_M_MMAP_THRESHOLD: 1 << 25, _M_TRIM_THRESHOLD: 1 << 28, _M_ARENA_MAX: 1}  # 32 MB is the most
_CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")  # 1,024 primitives each by default


def limit_kept_memory(embedding: bool = False) -> bool:
    """Limit the buffers that oneDNN caches and the freed memory that glibc keeps; return whether glibc's is limited.

    Call it before torch computes.

    oneDNN caches primitives, with their code and buffers, for the last 1,024 shapes, and each batch of another length
    or size has new shapes. glibc takes blocks of up to 32 MB from one heap as soon as one such block was freed, and
    batches of varying length leave gaps in which the next ones do not fit. Together they make training's memory grow
    for an hour, with the recipe `sounds` beyond 8 GB. Settings of these in the environment are respected.

    Args:
        embedding: whether the process embeds, and does not train. Then oneDNN keeps 128 primitives in place of 32,
            all threads share a heap, and blocks of up to 32 MB come from it. By default glibc gives 8 heaps for each
            core to threads, and each keeps the most that its threads ever needed. Mapping each block of a batch would
            take a quarter of the time. Call it before threads start.
    """
    for name in _CACHES:
        os.environ.setdefault(name, "128" if embedding else "32")
    tuned = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if tuned or platform.libc_ver()[0] != "glibc":
        return False
    limits = _ONE_HEAP if embedding else _SMALL_BLOCKS
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl, on which programs made for glibc may run, has none
    return bool(mallopt) and all([mallopt(name, value) for name, value in limits.items()])


def return_freed_memory() -> None:
    """Return the free pages of the heap, also those between blocks in use, to the system; only with glibc."""
    if platform.libc_ver()[0] == "glibc" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
