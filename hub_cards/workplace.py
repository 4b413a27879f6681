"""Temporary folders of a push, of which a killed one leaves none for long: they hold whole models."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

_PREFIX = "wavlink-push-"


@contextmanager
def temporary() -> Iterator[Path]:
    """An empty folder, removed at the end. First those go whose processes were killed and could not remove them."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*") if fcntl else []:
        if (handle := _hold(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(handle)
    folder, handle = _new()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if fcntl:
            os.close(handle)


def _new() -> tuple[Path, int | None]:
    """A folder and what holds it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        handle = _hold(folder) if fcntl else None
        if handle is not None or not fcntl:  # else another process has just taken it for one left behind
            return folder, handle


def _hold(folder: Path) -> int | None:
    """Locks a folder of this user until the handle is closed, be it by the end of this process; None if it is another
    user's, is held already or has gone."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_uid == os.getuid() and folder.is_dir():
            return handle
    except OSError:
        pass
    os.close(handle)
    return None
