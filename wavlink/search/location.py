"""Where an index lies: a folder, or an address in object storage such as `s3://bucket/index`.

Nothing heavy is imported, so that a command for an index that is not there answers at once.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

TABLE = "windows.lance"
NO_INDEX = "{0} is no index: make one with `wavlink index SOUNDS --out {0}`"
_FORMER = "index.json"
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]+://")


def is_remote(index: str | os.PathLike) -> bool:
    """True for an address in object storage."""
    return bool(_REMOTE.match(os.fspath(index)))


def refuse_remote(out: str | os.PathLike) -> None:
    """Raise a ValueError for a copy of an index that is to be in object storage."""
    if is_remote(out):
        raise ValueError(f"{out} is in object storage: name a folder here, and copy its {TABLE} there")


def holds_table(folder: str | os.PathLike) -> bool:
    """True if a folder holds a table with a version; False for one whose making was interrupted."""
    return bool(versions_of(folder))


def versions_of(folder: str | os.PathLike) -> list[str]:
    """Return the names of the files of a table's versions on a local disk; the first is that of the latest."""
    versions = Path(folder) / TABLE / "_versions"
    return sorted(path.name for path in versions.glob("*.manifest")) if versions.is_dir() else []


def refuse_no_index(index: str | os.PathLike) -> None:
    """Raise a ValueError for a folder that holds no index."""
    if is_remote(index):
        return
    if holds_table(index):
        refuse_special(index)
        return
    refuse_former(index)
    raise ValueError(NO_INDEX.format(index))


def refuse_special(folder: str | os.PathLike) -> None:
    """Raise a ValueError for what would be read without end: a pipe, a device or a socket, also behind a link."""
    folders = [os.fspath(folder)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:  # a writer may remove a folder meanwhile
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif not os.path.isfile(entry.path) and not os.path.isdir(entry.path) and os.path.exists(entry.path):
                    raise ValueError(f"{entry.path} is no file but a pipe, a device or a socket: remove it")


def refuse_former(index: str | os.PathLike) -> None:
    """Raise a ValueError for an index of parquet files, which earlier versions made and `push` makes."""
    if not is_remote(index) and (Path(index) / _FORMER).is_file():
        raise ValueError(f"{index} is an index of an earlier version: `wavlink pull {index} --out NEW` converts it")
