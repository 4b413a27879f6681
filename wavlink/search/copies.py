"""Copy an index on this machine: with fewer dims or another storage, to publish it, or from tables of its rows."""

import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow

from wavlink.atomic_files import new_folder
from wavlink.defaults import STORAGES
from wavlink.model_names import parse_name

from . import vector_index
from .manifest import VECTORS, Manifest
from .repair import refuse_damaged
from .scoring import truncated, vectors_of
from .table import Table
from .table_place import LOCK

_WRITTEN_AT_ONCE = 1 << 26  # bytes in memory
_ROWS = 1 << 14


def reindex(
    folder: str | os.PathLike, out: str | os.PathLike, *, dim: int | None = None, storage: str | None = None
) -> None:
    """Copy an index with fewer dims or another storage, made from its vectors.

    Args:
        dim: one of the nested dims, up to the index's (default: the index's).
        storage: fp32 or fp16; a finer one than the index's adds no precision.

    Raises:
        ValueError: no such dim or storage, `out` exists, or the index is damaged.
    """
    Table.reading(folder, lambda source: _reindexed(source, out, dim, storage))


def _reindexed(source: Table, out: str | os.PathLike, dim: int | None, storage: str | None) -> None:
    refuse_damaged(source)
    old = source.manifest
    new = dataclasses.replace(unsearched(old), dim=dim or old.dim, storage=storage or old.storage)
    if new.dim != old.dim and (new.dim not in old.matryoshka_dims or new.dim > old.dim):
        nested = ", ".join(str(dim) for dim in old.matryoshka_dims if dim <= old.dim)
        raise ValueError(f"dim={dim} is none of the index's nested dims: {nested}")
    if new.storage not in STORAGES:
        raise ValueError(f"no storage {storage!r}; there are {', '.join(STORAGES)}")
    with new_folder(out) as unfinished:
        rows = (_converted(batch, new) for batch in source.scan(source.schema.names, batch_size=_ROWS))
        fill(unfinished, new, metadata_fields(source), rows)


def publish(source: str | os.PathLike, out: Path) -> tuple[str, list[str]]:
    """Copy an index without local paths, and return its root and the paths of its sounds.

    Args:
        out: a folder, which is replaced.

    Raises:
        ValueError: no index, or a damaged one.
    """

    def copied(table: Table) -> tuple[str, list[str]]:
        refuse_damaged(table)
        shutil.rmtree(out, ignore_errors=True)  # of a state of the index that has been replaced meanwhile
        batches = table.scan(table.schema.names, batch_size=_ROWS)
        rows = (pyarrow.Table.from_batches([batch]) for batch in batches)
        fill(out, without_local_paths(table.manifest), metadata_fields(table), rows)
        return table.manifest.root, sorted(path for path, file in table.files().items() if not file.error)

    made = Table.reading(source, copied)
    (out / LOCK).unlink(missing_ok=True)
    return made


def without_local_paths(manifest: Manifest) -> Manifest:
    """Return a manifest to publish, without the local paths of the model and the sounds."""
    source, _ = parse_name(manifest.model)
    model = manifest.model.replace(source, os.path.basename(source)) if os.path.isabs(source) else manifest.model
    return dataclasses.replace(unsearched(manifest), model=model, root="")


def unsearched(manifest: Manifest) -> Manifest:
    """Return the manifest of a table that has no vector index yet."""
    return dataclasses.replace(manifest, probes=0, recall={})


def metadata_fields(table: Table) -> list[pyarrow.Field]:
    """Return the columns of a table that describe the sounds."""
    return [table.schema.field(name) for name in table.metadata_columns]


def fill(folder: Path, manifest: Manifest, columns: Iterable[pyarrow.Field], tables: Iterable[pyarrow.Table]) -> None:
    """Make an index in a folder, of rows that count all at once.

    Args:
        columns: that describe the sounds.
        tables: its rows, which may lack columns.
    """
    with Table.create(folder, manifest, columns=columns) as table:
        fragments = [fragment for rows in _gathered(tables) for fragment in table.write(rows)]
        if fragments:
            table.commit(fragments)
        table.compact()
        vector_index.update(table)


def _gathered(tables: Iterable[pyarrow.Table]) -> Iterator[pyarrow.Table]:
    """Put small tables together, as each becomes a file."""
    ready, size = [], 0
    for table in tables:
        ready.append(table)
        size += table.nbytes
        if size > _WRITTEN_AT_ONCE:
            yield pyarrow.concat_tables(ready)
            ready, size = [], 0
    if size:
        yield pyarrow.concat_tables(ready)


def _converted(batch: pyarrow.RecordBatch, new: Manifest) -> pyarrow.Table:
    """Return rows with the vectors of another manifest; skipped files have none."""
    table = pyarrow.Table.from_batches([batch])
    for name in VECTORS:
        if name not in table.column_names:
            continue
        kind = new.schema.field(name).type
        if table[name].type != kind:
            number = table.column_names.index(name)
            table = table.set_column(number, pyarrow.field(name, kind), _vectors(table[name], kind))
    return table


def _vectors(column: pyarrow.ChunkedArray, kind: pyarrow.FixedSizeListType) -> pyarrow.Array:
    missing = column.is_null().to_numpy()
    values = np.zeros((len(column), kind.list_size), kind.value_type.to_pandas_dtype())
    values[~missing] = truncated(vectors_of(column), kind.list_size)
    mask = pyarrow.array(missing)
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), type=kind, mask=mask)
