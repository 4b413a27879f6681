"""Temporary folders of a push, of which a killed one leaves none for long: they hold whole models."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modeling_wavlink.atomic_files import hold

_PREFIX = "wavlink-push-"


@contextmanager
def temporary() -> Iterator[Path]:
    """An empty folder, removed at the end. First those go whose processes were killed and could not remove them."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if left.is_dir() and (handle := hold(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(handle)
    folder, handle = _new()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _new() -> tuple[Path, int | None]:
    """A folder and what holds it, where there are such locks."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        handle = hold(folder)
        if handle is not None or os.name != "posix":  # else another process has just taken it for one left behind
            return folder, handle
