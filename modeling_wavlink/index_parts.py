"""A part of an index, read within bounds: a few kB of parquet can unpack to more than any memory holds."""

import numpy as np
import pyarrow
import pyarrow.compute as pc
import pyarrow.parquet as pq

MOST_BYTES = 1 << 30  # of a part in memory; what this program writes is smaller


def read_part(content: bytes, schema: pyarrow.Schema, rows: int) -> pyarrow.Table:
    """A parquet file with this schema and so many rows, without gaps.

    Raises:
        ValueError: other columns or rows, more than `MOST_BYTES`, missing values, numbers that are not finite, times
            that run backwards.
        pyarrow.ArrowException, OSError: what parquet cannot read.
    """
    file = pq.ParquetFile(pyarrow.BufferReader(content), read_dictionary=["path"])
    fits = _plain(file.schema_arrow).equals(schema) and file.metadata.num_rows == rows
    if not fits:
        raise ValueError("it has other columns or rows than the index says")
    if rows * sum(map(_width, schema.types)) > MOST_BYTES:
        raise ValueError(f"its {rows} rows are more than {MOST_BYTES >> 20} MB")
    # By this thread: one of arrow's would hold `content` a moment longer, and at Python's exit abort as it lets go.
    table = file.read(use_threads=False)
    if sum(map(_unpacked, table["path"].chunks)) > MOST_BYTES:
        raise ValueError(f"its paths are more than {MOST_BYTES >> 20} MB")
    table = table.cast(schema)
    table.validate(full=True)
    _check(table)
    return table


def _plain(schema: pyarrow.Schema) -> pyarrow.Schema:
    """With strings where `read_dictionary` has made dictionaries of them."""
    kinds = (field.type.value_type if pyarrow.types.is_dictionary(field.type) else field.type for field in schema)
    return pyarrow.schema([field.with_type(kind) for field, kind in zip(schema, kinds, strict=True)], schema.metadata)


def _width(kind: pyarrow.DataType) -> int:
    """Bytes of a value, those of a string apart."""
    if pyarrow.types.is_fixed_size_list(kind):
        return kind.list_size * kind.value_type.byte_width
    return 4 if kind == pyarrow.string() else kind.byte_width


def _unpacked(paths: pyarrow.DictionaryArray) -> int:
    """Bytes of its strings, each as often as it is there."""
    lengths = pc.binary_length(paths.dictionary).cast(pyarrow.int64())
    return pc.sum(lengths.take(paths.indices)).as_py() or 0


def _check(table: pyarrow.Table) -> None:
    for column in table.columns:
        inner = (chunk.flatten().null_count for chunk in column.chunks if pyarrow.types.is_nested(column.type))
        if column.null_count or any(inner):
            raise ValueError("it has gaps, values that are missing")
    if "start" in table.column_names:
        start, end = (table[name].to_numpy() for name in ("start", "end"))
        if not (np.isfinite(start).all() and np.isfinite(end).all() and (start >= 0).all() and (end >= start).all()):
            raise ValueError("it has times that are none")
