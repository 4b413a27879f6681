"""Take sounds out of an index by name."""

import os
from collections.abc import Iterable

from processing.file_names import same_letters
from wavlink.sanitize import path_text

from .listing import readable
from .table import Table


def remove_sounds(table: Table, names: Iterable[str | os.PathLike]) -> list[str]:
    """Remove sounds, or folders of them, from an index that is held for writing, and return their paths.

    Args:
        names: as `query` returns them, relative to the root of the index.

    Raises:
        ValueError: the index has no such sound or folder; none is removed then.
    """
    known = set(table.files())
    folders = {folder for path in known for folder in _folders_of(path)}
    found = {os.fspath(name): same_letters(readable(os.fspath(name)).rstrip("/"), known | folders) for name in names}
    if unknown := [name for name, indexed in found.items() if indexed is None]:
        raise ValueError(
            f"the index has no {path_text(', '.join(unknown))}: paths are relative to {table.manifest.root}"
        )
    wanted = {*found.values()}
    removed = sorted(path for path in known if path in wanted or not wanted.isdisjoint(_folders_of(path)))
    table.remove(removed)
    return removed


def _folders_of(path: str) -> list[str]:
    return [path[:end] for end, letter in enumerate(path) if letter == "/"]
