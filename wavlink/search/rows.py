"""Rows of an index's table."""

from collections.abc import Sequence

import numpy as np
import pyarrow

from .listing import Sound
from .manifest import Manifest
from .scoring import truncated


def window_rows(
    manifest: Manifest,
    sound: Sound,
    times: Sequence[tuple[float, float]],
    vectors: np.ndarray,
    *,
    first: int = 0,
    windows: int = -1,
    duration: float | None = None,
) -> pyarrow.Table:
    """Return a row for each window of a file.

    Args:
        times: start and end of each window, in seconds.
        vectors: `[N, dims]`, of any norm but zero.
        first: the number of the first window.
        windows: how many the file has; -1 while that is not known.
        duration: of the file in seconds.

    Raises:
        ValueError: a vector without a direction.
    """
    count = len(times)
    starts, ends = np.reshape(np.asarray(times, np.float64), (-1, 2)).T
    columns = {
        "path": [sound.path] * count,
        "window": np.arange(first, first + count, dtype=np.int32),
        "start": starts,
        "end": ends,
        "duration": [duration] * count,
        "size": [sound.size] * count,
        "version": [sound.version] * count,
        "windows": [windows] * count,
        "error": [""] * count,
        "revision": [manifest.revision] * count,
    }
    made = {"embedding": manifest.dim, "rescore": manifest.rescore_dim}
    vectors = np.reshape(vectors, (count, -1))
    columns |= {name: fixed_size_list(truncated(vectors, dim), manifest) for name, dim in made.items() if dim}
    schema = manifest.schema
    arrays = [pyarrow.array(columns[field.name], field.type) for field in schema]
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def skipped_row(manifest: Manifest, sound: Sound, error: str) -> pyarrow.Table:
    """Return the row of a file that was skipped, which has no vector."""
    return skipped_rows(manifest, [sound], [error])


def skipped_rows(manifest: Manifest, sounds: Sequence[Sound], errors: Sequence[str]) -> pyarrow.Table:
    """Return a row for each file that was skipped, and why."""
    count, schema = len(sounds), manifest.schema
    columns = {
        "path": [sound.path for sound in sounds],
        "window": [-1] * count,
        "size": [sound.size for sound in sounds],
        "version": [sound.version for sound in sounds],
        "windows": [0] * count,
        "error": [*errors],
        "revision": [manifest.revision] * count,
    }
    arrays = [
        pyarrow.array(columns[field.name], field.type) if field.name in columns else pyarrow.nulls(count, field.type)
        for field in schema
    ]
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def with_columns_of(schema: pyarrow.Schema, rows: pyarrow.Table) -> pyarrow.Table:
    """Return rows in the columns of a table, with nulls where they have none."""
    names = {*rows.column_names}
    columns = [
        rows[field.name].cast(field.type) if field.name in names else pyarrow.nulls(len(rows), field.type)
        for field in schema
    ]
    return pyarrow.Table.from_arrays(columns, schema=schema)


def fixed_size_list(vectors: np.ndarray, manifest: Manifest) -> pyarrow.FixedSizeListArray:
    """Return vectors `[N, dim]` as a column."""
    kind = manifest.schema.field("embedding").type.value_type
    values = np.ascontiguousarray(vectors, np.float16 if kind == pyarrow.float16() else np.float32)
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), vectors.shape[1])
