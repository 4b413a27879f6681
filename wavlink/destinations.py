"""Check, before the work, that a file or folder can be written, and follow links to it."""

import os
import stat
import tempfile
from pathlib import Path


def file_destination(path: str | os.PathLike) -> Path:
    """Check that a file can be written, and return its path with links followed.

    Missing folders above it are made when it is written.

    Raises:
        ValueError: a folder, a device, a read-only file, or a file in a folder without the right to write.
    """
    target = followed(path)
    mode = _mode(target)
    if stat.S_ISDIR(mode) or os.fspath(path).endswith(("/", os.sep)):
        raise ValueError(f"{path} is a folder: name a file in it")
    if mode and not stat.S_ISREG(mode):
        raise ValueError(f"{path} is not a regular file: name another")
    if mode and not os.access(target, os.W_OK):
        raise ValueError(f"{path} is read-only: name another file")
    check_parent(path, target)
    return target


def folder_destination(path: str | os.PathLike, replace: bool = False) -> Path:
    """Check that a folder can be written, and return its path with links followed.

    Args:
        replace: whether it may exist and hold files; otherwise it must be new or empty.

    Raises:
        ValueError: a file, a folder that is not empty, one that cannot be renamed (a mount point, the working folder
            or one above it), or one in a folder without the right to write.
    """
    target = followed(path)
    mode = _mode(target)
    if mode and not stat.S_ISDIR(mode):
        raise ValueError(f"{path} is a file: name a folder")
    if mode and not replace and any(target.iterdir()):
        raise ValueError(f"{path} is there already: name a folder that is new or empty")
    if mode and (why := _why_not_renamed(target)):
        raise ValueError(f"{path} is {why}, which cannot be replaced: name a new folder in it")
    check_parent(path, target)
    return target


def check_folder(path: str | os.PathLike) -> None:
    """Check that files can be written into a folder, which may exist and hold others.

    Raises:
        ValueError: a file, or a folder without the right to write.
    """
    target = followed(path)
    mode = _mode(target)
    if mode and not stat.S_ISDIR(mode):
        raise ValueError(f"{path} is a file: name a folder")
    check_parent(path, target / "file")


def followed(path: str | os.PathLike) -> Path:
    """Return a path with links followed.

    Raises:
        ValueError: no path, or a link that leads nowhere.
    """
    text = os.fspath(path)
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is no path: name a file or folder")
    target = Path(os.path.realpath(text))
    try:
        mode = _mode(target)
    except OSError as error:  # a loop of links, a name that is too long, a file as a folder
        raise ValueError(f"{text[:300]} cannot be written: {error.strerror}; name another path") from error
    if stat.S_ISLNK(mode):
        raise ValueError(f"{text} is a link that leads nowhere: name another")
    return target


def _mode(target: Path) -> int:
    """Return the mode of a file or folder; 0 if it does not exist."""
    try:
        return os.lstat(target).st_mode
    except FileNotFoundError:
        return 0


def _why_not_renamed(folder: Path) -> str:
    if os.path.ismount(folder):
        return "a mount point"
    here = Path(os.path.realpath(os.curdir))
    return "the folder you are in, or one above it" if here.is_relative_to(folder) else ""


def check_parent(path: str | os.PathLike, target: Path) -> None:
    """Raise a ValueError if `target` is in a folder without the right to write."""
    above = next(folder for folder in target.parents if os.path.lexists(folder))
    try:
        tempfile.TemporaryFile(dir=above).close()  # where it can, without a name
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written, as in {above} nothing can: {error.strerror}; name another path"
        ) from OSError(error.errno, error.strerror, os.fspath(target))
