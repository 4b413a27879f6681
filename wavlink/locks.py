"""Locks on files and folders between processes of one user."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import filelock

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_LOCK = ".lock"


class Locked(ValueError):
    """Another process holds a lock."""


@contextmanager
def locked(path: Path, remove: bool = False) -> Iterator[None]:
    """Hold a lock file, which stands for the folder that it lies in.

    Args:
        remove: whether the file is removed in the end.

    Raises:
        Locked: another process holds it.
    """
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise Locked(f"another process is writing to {path.parent}: wait until it has ended") from error
    try:
        yield
    finally:
        if remove and fcntl:
            path.unlink(missing_ok=True)
        lock.release()
        if remove and not fcntl:  # Windows removes no open file
            with suppress(OSError):
                path.unlink()


def only_writer(folder: Path) -> AbstractContextManager[None]:
    """Hold a folder against other processes that call this function; see `locked`."""
    return locked(folder / _LOCK, remove=True)


def hold(path: Path) -> int | None:
    """Lock a file or folder of this user until the handle is closed, or the process ends.

    Returns:
        The handle; None if another process holds it, it does not exist, or the system has no such locks.
    """
    if not fcntl:
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_uid == os.getuid() and os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
    except OSError:
        pass
    os.close(handle)
    return None
