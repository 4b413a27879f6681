"""Temporary files and folders beside their destination, and the removal of those that killed processes have left."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import locks

UNFINISHED, REPLACED = ".unfinished", ".replaced"


@contextmanager
def temporary(target: Path, make: Callable[[Path], None], token: str = "", owner: bool = True) -> Iterator[Path]:
    """Yield a unique name beside `target`, locked while this process lives, and removed in the end by its owner."""
    if not owner:
        yield hidden(target, token, UNFINISHED)
        return
    _remove_leftovers_of(target)
    path, handle = _made_and_held(target, make, token)
    try:
        yield path
    finally:
        try:
            remove_path(path)
        finally:
            if handle is not None:
                os.close(handle)


@contextmanager
def temporary_folder(prefix: str = "wavlink-") -> Iterator[Path]:
    """Yield an empty folder among the temporary files, which is removed in the end.

    A signal that raises a KeyboardInterrupt while it is made or removed leaves nothing, unlike in
    `tempfile.TemporaryDirectory`.
    """
    folder = Path(tempfile.gettempdir(), f"{prefix}{secrets.token_hex(8)}")
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        try:
            remove_path(folder)
        except KeyboardInterrupt:
            remove_path(folder)
            raise


def hidden(target: Path, token: str, ending: str) -> Path:
    """Return a hidden name beside `target`."""
    return target.with_name(f".{target.name[:48]}.{token}{ending}")  # a name has at most 255 bytes


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in a folder that this process alone writes to (see `locks.only_writer`).

    A folder that was being replaced gets its name back if that is free.
    """
    for path in list(folder.glob(f".*{REPLACED}")):
        restore(path, folder / path.name[1 : -len(REPLACED)].rpartition(".")[0])
    for path in list(folder.glob(f".*{UNFINISHED}")):
        remove_path(path)


def restore(aside: Path, target: Path) -> None:
    """Give a replaced folder its name back, or remove it if another has that name already."""
    if os.path.lexists(target):
        remove_path(aside)
    else:
        with suppress(OSError):  # another process does the same
            os.replace(aside, target)


def remove_path(path: Path) -> None:
    """Remove a file, a link or a folder; errors are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _made_and_held(target: Path, make: Callable[[Path], None], token: str) -> tuple[Path, int | None]:
    """Make a temporary name and lock it. Another process may remove it as a leftover before: then make another."""
    for tries_left in reversed(range(10 if locks.fcntl else 1)):
        path = hidden(target, token or secrets.token_hex(6), UNFINISHED)
        make(path)
        handle = locks.hold(path)
        if handle is not None or not tries_left:  # the disk may have no locks
            return path, handle
        remove_path(path)
    raise AssertionError


def _remove_leftovers_of(target: Path) -> None:
    start = f".{target.name[:48]}."
    with suppress(FileNotFoundError), os.scandir(target.parent) as entries:
        names = sorted(entry.name for entry in entries if entry.name.startswith(start))
        for name in names:
            path = target.with_name(name)
            if name.endswith(UNFINISHED):
                _remove_unheld(path)
            elif name.endswith(REPLACED) and target.name[:48] == target.name:
                restore(path, target)


def _remove_unheld(path: Path) -> None:
    """Remove a temporary file or folder, unless a living process holds it or the system has no locks."""
    if (handle := locks.hold(path)) is not None:
        try:
            remove_path(path)
        finally:
            os.close(handle)
