"""Errors of Lance as this package raises them: an OSError of the disk, or a ValueError that names the index."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import pyarrow

_SOURCE = re.compile(r",? ?/[^\s,]*\.rs:\d+(:\d+)?")  # lines of Lance's source code
_OF_STORAGE = re.compile("<Message>([^<]+)</Message>")  # S3's answer
_PREEMPTED = ("commit conflict", "incompatible transaction")
_DISK = {
    "No space left on device": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "Permission denied": errno.EACCES,
    "Read-only file system": errno.EROFS,
    "File too large": errno.EFBIG,
    "Too many open files": errno.EMFILE,
}
REPAIR = "`wavlink verify INDEX --drop` forgets what is damaged, and `wavlink index` then embeds it anew"


class Verifiable(Protocol):
    """What `wavlink.search.table.Table` does."""

    def damaged(self) -> dict[str, str]:
        """Return by name why a file is not as it was written."""


@contextmanager
def explained(index: str, table: Verifiable | None = None) -> Iterator[None]:
    """Raise errors of Lance as this package's own.

    Args:
        table: is verified after an error, to name the damaged file.

    Raises:
        ValueError: a damaged table, or whatever else Lance refuses.
        OSError: the disk is full, or there is no right to read or write.
    """
    try:
        yield
    except MemoryError:
        raise
    except (OSError, ValueError, RuntimeError, pyarrow.ArrowException, NotImplementedError) as error:
        if not _is_of_lance(error) or str(error).startswith(index):  # it is explained already
            raise
        raise _explained(error, index, table) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust; it derives from BaseException
            raise
        raise _explained(error, index, table) from error


@contextmanager
def unless_preempted(raises: bool = False) -> Iterator[None]:
    """Give up a commit that another writer's has come before.

    Args:
        raises: raise Lance's error then.
    """
    try:
        yield
    except Exception as error:
        if raises or not any(words in str(error).lower() for words in _PREEMPTED):
            raise


def without_source(text: str) -> str:
    """Return an error of Lance without the lines of its source code that it names."""
    return _SOURCE.sub("", text)


def _is_of_lance(error: BaseException) -> bool:
    return bool(_SOURCE.search(str(error))) or "LanceError" in str(error) or isinstance(error, pyarrow.ArrowException)


def _explained(error: BaseException, index: str, table: Verifiable | None) -> Exception:
    text = without_source(str(error)).strip()
    for words, number in _DISK.items():
        if words in text:
            return OSError(number, os.strerror(number), index)
    if answer := _OF_STORAGE.search(text):
        return ValueError(f"{index} cannot be read or written: {answer[1]}")
    damaged = table.damaged() if table else {}
    if damaged:
        return ValueError("; ".join(damaged.values()))
    if "Not found" in text or "not found" in text:
        return ValueError(f"{index} lacks a file ({text[:300]}): {REPAIR}")
    return ValueError(f"{index} cannot be read or written: {text[:300]}")
