"""Verify an index, and forget what is damaged."""

import os
from contextlib import suppress
from pathlib import Path

from .checksums import Checksums
from .location import is_remote
from .table import Storage, Table, quoted
from .vector_index import drop as drop_vector_index


def verified(
    index: str | os.PathLike, drop: bool = False, storage_options: Storage = None
) -> tuple[Table, dict[str, list[str] | None]]:
    """Compare every file of an index with its checksum, and find rows of other models.

    In object storage, where this package keeps no checksums, all rows are read.

    Args:
        drop: forget what is damaged; `index` embeds those sounds again.

    Returns:
        The table, and by name of what was forgotten the sounds that it held, None if their names are lost too.

    Raises:
        ValueError: without `drop`, damaged files or rows of other models; a damaged list of versions.
    """
    lost = _without_checksums(index) if drop else {}
    table = Table.unverified(index, storage_options)
    if not drop:
        refuse_damaged(table)
        if not table.checksums:
            for _ in table.scan(table.schema.names):
                pass
        return table, {}
    with table.writing():
        return table, lost | _repaired(table)


def _without_checksums(index: str | os.PathLike) -> dict[str, list[str] | None]:
    """Forget checksums that are damaged themselves; they are noted anew."""
    if is_remote(index):
        return {}
    checksums = Checksums(Path(index))
    try:
        checksums.read()
    except ValueError:
        checksums.forget()
        return {"checksums.jsonl": []}
    return {}


def refuse_damaged(table: Table) -> None:
    """Raise a ValueError that names damaged files of an index, or says that it has rows of other models."""
    if damaged := table.damaged():
        raise ValueError("; ".join(damaged.values()))
    refuse_mixed(table)


def refuse_mixed(table: Table) -> None:
    """Raise a ValueError for rows of other models."""
    if table.rows(_of_others(table)):
        raise ValueError(
            f"{table.index} holds vectors of several models, which do not compare: `wavlink verify {table.index} "
            "--drop` removes those of others"
        )


def _of_others(table: Table) -> str:
    return f"revision IS NULL OR revision != {quoted(table.manifest.revision)}"


def _repaired(table: Table) -> dict[str, list[str] | None]:
    damaged, dropped = set(table.damaged()), {}
    lost = []
    for fragment in table.dataset.get_fragments():
        names = {f"data/{file.path}" for file in fragment.metadata.files}
        deletion = fragment.metadata.deletion_file
        names |= {name for name in damaged if deletion and name.startswith(f"_deletions/{fragment.fragment_id}-")}
        if names & damaged:
            lost.append(fragment.fragment_id)
            dropped[min(names & damaged)] = _paths(fragment)
    if lost:
        table.drop_fragments(lost)
    if any(name.startswith("_indices/") for name in damaged):
        drop_vector_index(table)
        dropped |= {name: [] for name in damaged if name.startswith("_indices/")}
    if others := sorted(set(table.damaged()) - {*dropped}):  # such as of the last change, which nothing reads
        table.rewrite()
        dropped |= {name: [] for name in others}
    others = _of_others(table)
    if table.rows(others):
        paths = sorted({path for batch in table.scan(["path"], others) for path in batch["path"].to_pylist()})
        table.remove(paths)
        dropped["rows of other models"] = paths
    return dropped


def _paths(fragment) -> list[str] | None:
    """Return the paths of a damaged fragment, as far as they can be read."""
    with suppress(Exception):
        return sorted(set(fragment.to_table(columns=["path"])["path"].to_pylist()))
    return None
