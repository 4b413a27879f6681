"""Copy an index on this machine: with fewer dims or another storage, to publish it, or from tables of its rows."""

import dataclasses
import logging
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
from .location import refuse_remote
from .manifest import VECTORS, Manifest
from .repair import refuse_damaged
from .scoring import truncated, vectors_of
from .table import Storage, Table
from .table_place import LOCK

logger = logging.getLogger(__name__)

_WRITTEN_AT_ONCE = 1 << 26  # bytes in memory
_ROWS = 1 << 14


def reindex(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    *,
    dim: int | None = None,
    storage: str | None = None,
    rescore_dim: int | None = None,
    storage_options: Storage = None,
) -> None:
    """Copy an index with fewer dims or another storage, made from its vectors.

    Args:
        folder: of the index, or its address in object storage.
        out: a folder, new or empty.
        dim: one of the nested dims, up to the index's (default: the index's).
        storage: fp32 or fp16; a finer one than the index's adds no precision.
        rescore_dim: of the second vector that orders the candidates: a nested dim over `dim`, up to what the index
            stores; 0 for none (default: the index's own, and none where `dim` is less than the index's).
        storage_options: of an index in object storage, see Lance's `storage_options`.

    Raises:
        ValueError: no such dims or storage, `out` exists, or the index is damaged.
    """
    refuse_remote(out)

    def reindexed(source: Table) -> None:
        refuse_damaged(source)
        new = _fewer(source.manifest, dim or source.manifest.dim, storage or source.manifest.storage, rescore_dim)
        with new_folder(out) as unfinished:
            rows = (_converted(batch, new) for batch in source.scan(source.schema.names, batch_size=_ROWS))
            fill(unfinished, new, metadata_fields(source), rows)
        if source.manifest.rescore_dim and rescore_dim is None and not new.rescore_dim:
            left_out = source.manifest.rescore_dim
            logger.warning(
                f"results are ordered by {new.dim} dims alone: the vectors of {left_out} dims that ordered them are "
                f"left out; --rescore_dim {left_out} keeps them"
            )

    Table.reading(folder, reindexed, storage_options)


def _fewer(old: Manifest, dim: int, storage: str, rescore_dim: int | None) -> Manifest:
    """Return the manifest of a copy."""
    nested = [each for each in old.matryoshka_dims if each <= (old.rescore_dim or old.dim)]
    if dim != old.dim and (dim not in nested or dim > old.dim):
        fewer = ", ".join(str(each) for each in nested if each <= old.dim)
        raise ValueError(f"dim={dim} is none of the index's nested dims: {fewer}")
    if storage not in STORAGES:
        raise ValueError(f"no storage {storage!r}; there are {', '.join(STORAGES)}")
    if rescore_dim is None:
        rescore_dim = old.rescore_dim if dim == old.dim else 0
    elif rescore_dim and (rescore_dim not in nested or rescore_dim <= dim):
        more = ", ".join(str(each) for each in nested if each > dim) or "none"
        raise ValueError(f"rescore_dim={rescore_dim} must be one of the dims over {dim} that the index stores: {more}")
    return dataclasses.replace(unsearched(old), dim=dim, storage=storage, rescore_dim=rescore_dim)


def publish(source: str | os.PathLike, out: Path, storage_options: Storage = None) -> tuple[str, list[str]]:
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

    made = Table.reading(source, copied, storage_options)
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
    old = pyarrow.Table.from_batches([batch])
    table = old.drop_columns([name for name in VECTORS if name in old.column_names])
    for field in new.schema:
        if field.name in VECTORS:
            column = old[field.name if field.name in old.column_names else "embedding"]
            converted = column if column.type == field.type else _vectors(column, field.type)
            table = table.append_column(field, converted)
    return table


def _vectors(column: pyarrow.ChunkedArray, kind: pyarrow.FixedSizeListType) -> pyarrow.Array:
    missing = column.is_null().to_numpy()
    values = np.zeros((len(column), kind.list_size), kind.value_type.to_pandas_dtype())
    values[~missing] = truncated(vectors_of(column), kind.list_size)
    mask = pyarrow.array(missing)
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), type=kind, mask=mask)
