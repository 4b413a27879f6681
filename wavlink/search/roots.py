"""The folder that an index's paths are relative to: where another one is named, its sounds get new paths.

Another root means one of two things. The folder of the sounds has moved, with all that is in it: their paths stay. Or
paths are to be relative to a folder above it, or below it: they get, or lose, the name of the folder between the two.
What more of the index's files confirm is done, in one commit, and nothing is embedded again.
"""

import os
from collections.abc import Iterable, Mapping

from .changes import KnownFile
from .column_updates import rename
from .listing import readable, size_and_time
from .table import Table


def change_root(table: Table, root: str) -> None:
    """Let an index's paths be relative to `root`.

    Args:
        root: a folder's absolute path, or that of a data set, see `Listing`.

    Raises:
        ValueError: no sound of the index is there; some of them are outside the folder.
    """
    table.repeated(lambda: _change_root(table, root))


def _change_root(table: Table, root: str) -> None:
    before, known = table.manifest.root, table.files() if table.manifest.root != root else {}
    if not (before and known):
        table.change(root=root)
        return
    paths = _renamed(known, before, root)
    kept, moved = (_confirmed(root, known, names) for names in (dict(zip(known, known, strict=True)), paths))
    if max(kept, moved) == (0, 0):
        raise ValueError(
            f"none of the {len(known)} sounds of {table.index} is in {root}, such as {min(known)}: name by --root the "
            "folder that they are in now, or index into another folder"
        )
    if kept > moved:
        table.change(root=root)
        return
    if outside := sorted(known.keys() - paths.keys()):
        raise ValueError(
            f"{len(outside)} of the {len(known)} sounds of {table.index} are not below {root}, such as {outside[0]}: "
            "leave --root out, index into another folder, or take them out by `wavlink remove`"
        )
    rename(table, paths, root=root)


def _renamed(known: Iterable[str], before: str, root: str) -> dict[str, str]:
    """Return by path the one relative to another root; none where neither of the two roots is in the other."""
    if (folder := _below(before, root)) is not None:
        return {path: f"{folder}{path}" for path in known}
    if (folder := _below(root, before)) is not None:
        return {path: path.removeprefix(folder) for path in known if path.startswith(folder)}
    return {}


def _below(folder: str, top: str) -> str | None:
    """Return the path of a folder relative to another one, with "/" at its end; None if it is not below that."""
    if not (os.path.isabs(folder) and os.path.isabs(top)):  # a data set
        return None
    folder, top = os.path.realpath(folder), os.path.join(os.path.realpath(top), "")
    return readable(folder[len(top) :].replace(os.sep, "/")) + "/" if folder.startswith(top) else None


def _confirmed(root: str, known: Mapping[str, KnownFile], paths: Mapping[str, str]) -> tuple[int, int]:
    """Return how many of the known files have their size at their new path, and how many exist there."""
    sizes = {path: size_and_time(root, name)[0] for path, name in paths.items()}
    return sum(size == known[path].size for path, size in sizes.items()), sum(size >= 0 for size in sizes.values())
