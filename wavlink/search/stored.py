"""Vectors of files as an index stores them: of each file the mean direction of its windows."""

import os
from collections.abc import Sequence

import numpy as np
import pyarrow
import pyarrow.compute as pc

from processing.file_names import same_letters
from wavlink.sanitize import clean, path_text

from .listing import readable
from .scoring import unit, vectors_of
from .table import Table, quoted


def file_vectors(table: Table, paths: Sequence[str]) -> np.ndarray:
    """Return `[N, dim]` fp32, L2-normalised: of each file the mean direction of its windows."""
    files = pyarrow.array(paths, pyarrow.string())
    sums = np.zeros((len(paths), table.manifest.dim))
    for batch in table.scan(["path", "embedding"], "error = ''"):
        kept = batch.filter(pc.is_in(batch["path"], files))
        np.add.at(sums, pc.index_in(kept["path"], files).to_numpy(), unit(vectors_of(kept["embedding"])))
    return unit(sums)


def stored_vector(table: Table, name: str | os.PathLike) -> tuple[str, tuple[np.ndarray, int]]:
    """Return the path of a sound in an index, its vector at all dims that are stored, and the number of its windows.

    Raises:
        ValueError: the index has no such sound, or has skipped it.
    """
    name = readable(os.fspath(name))
    path, rows = name, _rows(table, name)
    if not len(rows):
        path = same_letters(name, table.files()) or ""
        rows = _rows(table, path)
    if not len(rows):
        raise ValueError(
            f"the index has no {path_text(name)}: give a path as `query` prints it, relative to "
            f"{table.manifest.root or 'the root of the index'}"
        )
    if errors := [error for error in rows["error"].to_pylist() if error]:
        raise ValueError(f"{path_text(path)} has no vector, it was skipped: {clean(errors[0], 300)}")
    vectors = unit(vectors_of(rows.column(0)))
    return path, (unit(vectors.mean(0, keepdims=True))[0], len(vectors))


def _rows(table: Table, path: str) -> pyarrow.Table:
    columns = ["rescore" if table.manifest.rescore_dim else "embedding", "error"]
    batches = [*table.scan(columns, f"path = {quoted(path)}")]
    schema = pyarrow.schema([table.schema.field(name) for name in columns])
    return pyarrow.Table.from_batches(batches, schema) if batches else schema.empty_table()
