"""Read and write the parts of an index within a bound: a few kB of parquet can unpack to more than memory holds."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow
import pyarrow.compute as pc
import pyarrow.parquet as pq

MOST_BYTES = 1 << 30  # limit of a part's columns in memory, and of its texts, when it is read at once or written
PART_BYTES = 1 << 28  # in memory, of a part that is written
_MOST_STEPS = 64  # times MOST_BYTES: this package has never written a larger part
_TEXTS = ["path", "error"]


class PartTooLarge(ValueError):
    """A part has more than `MOST_BYTES`: `read_steps` reads it."""


def read_part(content: bytes, schema: pyarrow.Schema, rows: int) -> pyarrow.Table:
    """Read a parquet file that must have this schema and number of rows, and no missing values.

    Raises:
        PartTooLarge: more than `MOST_BYTES`.
        ValueError: other columns or rows, missing values, numbers that are not finite, times that run backwards.
        pyarrow.ArrowException, OSError: not a parquet file, or a damaged one.
    """
    file = _opened(content, schema, rows)
    if rows * width(schema) > MOST_BYTES:
        raise PartTooLarge(f"its {rows} rows are more than {MOST_BYTES >> 20} MB")
    # In this thread: one of arrow's would hold `content` a moment longer, and abort Python at its exit.
    return _checked(file.read(use_threads=False), schema)


def read_steps(content: bytes, schema: pyarrow.Schema, rows: int) -> Iterator[pyarrow.Table]:
    """Read a part in order, some rows at a time, even if it is too large to be read at once.

    Raises:
        ValueError: as `read_part`; a single row of more than `MOST_BYTES`, or 64 times as much in all.
    """
    file, size = _opened(content, schema, rows), 0
    if rows * width(schema) > _MOST_STEPS * MOST_BYTES:
        raise ValueError(f"its {rows} rows are more than {_MOST_STEPS * MOST_BYTES >> 30} GB")
    for batch in file.iter_batches(max(1, min(1 << 14, PART_BYTES // width(schema))), use_threads=False):
        table = _checked(pyarrow.Table.from_batches([batch]), schema)
        size += unpacked(table)
        if size > _MOST_STEPS * MOST_BYTES:
            raise ValueError(f"it unpacks to more than {_MOST_STEPS * MOST_BYTES >> 30} GB")
        yield table


def unpacked(*tables: pyarrow.Table) -> int:
    """Return the bytes of tables in memory, as readers count them."""
    return sum(len(table) * width(table.schema) + sum(_text_bytes(table).values()) for table in tables)


def is_small(size: int) -> bool:
    """True if a part of this size in memory may be written."""
    return size <= PART_BYTES


def width(schema: pyarrow.Schema) -> int:
    """Return the bytes of a row, without those of its texts."""
    return sum(map(_width, schema.types))


def with_large_texts(table: pyarrow.Table) -> pyarrow.Table:
    """Return the table with 64-bit text offsets, which arrow needs to take or sort rows of over 2 GB of texts."""
    fields = [f.with_type(pyarrow.large_string()) if f.type == pyarrow.string() else f for f in table.schema]
    return table.cast(pyarrow.schema(fields))


def split_part(
    windows: pyarrow.Table | Iterable[pyarrow.Table], files: pyarrow.Table, schema: pyarrow.Schema
) -> Iterator[tuple[pyarrow.Table, pyarrow.Table]]:
    """Divide windows and files into parts of at most `PART_BYTES` in memory; usually one.

    The rows of `files` are divided with their windows: each part describes the windows that it holds.

    Args:
        windows: of `schema`, in the order of `files`; one table, or several in order.
        files: of `manifest.FILES`.

    Raises:
        ValueError: too large for one part, and windows in another order.
    """
    complete = isinstance(windows, pyarrow.Table)
    if complete and is_small(unpacked(windows, files)):
        yield windows, files
        return
    if complete and not _in_order(windows, files) and _is_readable(windows, files):
        yield windows, files  # written by another program
        return
    stream, portions = _Stream([windows] if complete else windows, schema), [*_portions(files, width(schema))]
    if len(portions) < 2 and not complete:
        yield stream.take(int(pc.sum(files["rows"]).as_py() or 0)), files
        portions = []
    for portion in portions:
        part = _cut(files, *portion)
        rows = stream.take(int(pc.sum(part["rows"]).as_py()))
        if not _in_order(rows, part):
            raise ValueError("its windows are not in the order of its files: index the sounds into another folder")
        if not _is_readable(rows, part):
            raise ValueError(f"a file's row of more than {MOST_BYTES >> 20} MB could not be read again")
        yield rows, part
    if len(stream.take(1)):
        raise ValueError("it has more windows than its files: index the sounds into another folder")


def _cut(files: pyarrow.Table, start: int, stop: int, first: int, last: int) -> pyarrow.Table:
    """Return rows of `files` for a portion, see `_portions`."""
    part = files.slice(start, stop - start)
    offsets, counts = np.zeros(stop - start, np.int64), part["rows"].to_numpy().copy()
    counts[-1] = last
    counts[0] -= first
    offsets[0] = first
    part = _with_column(part, "first", part["first"].to_numpy() + offsets)
    return _with_column(part, "rows", counts)


def _is_readable(windows: pyarrow.Table, files: pyarrow.Table) -> bool:
    return max(unpacked(windows), unpacked(files)) <= MOST_BYTES


def _portions(files: pyarrow.Table, window: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield `(start, stop, first, last)`: a range of rows of `files` whose windows fit into one part.

    Of the range's first row these are the windows from `first` on, of its last row those before `last`. A window has
    `window` bytes, without its path.
    """
    row_bytes = _text_lengths(files, "path") + _text_lengths(files, "error") + width(files.schema)
    window_bytes = _text_lengths(files, "path") + window
    rows = files["rows"].to_numpy()
    start = first = done = size = 0
    number = 0
    while number < len(files):
        left = int(rows[number]) - done
        fits = max(0, (PART_BYTES - size - int(row_bytes[number])) // int(window_bytes[number]))
        begun = size > 0
        if begun and (size + row_bytes[number] > PART_BYTES or fits < min(left, 1)):
            yield start, number, first, int(rows[number - 1])
            start, first, size = number, 0, 0
            continue
        taken = left if fits >= left else max(fits, 1)
        size, done = size + int(row_bytes[number]) + taken * int(window_bytes[number]), done + taken
        if done == rows[number]:
            number, done = number + 1, 0
        else:
            yield start, number + 1, first, done
            start, first, size = number, done, 0
    if size:
        yield start, number, first, int(rows[number - 1])


class _Stream:
    """Tables in order, read by a number of rows."""

    def __init__(self, tables: Iterable[pyarrow.Table], schema: pyarrow.Schema):
        self.tables, self.buffer = iter(tables), schema.empty_table()

    def take(self, count: int) -> pyarrow.Table:
        """Return the next `count` rows, or all that are left."""
        while len(self.buffer) < count and (table := next(self.tables, None)) is not None:
            self.buffer = pyarrow.concat_tables([self.buffer, table])
        rows, self.buffer = self.buffer.slice(0, count), self.buffer.slice(count)
        return rows


def _in_order(windows: pyarrow.Table, files: pyarrow.Table) -> bool:
    """True if the windows are those of `files`, in the same order."""
    rows = files["rows"].to_numpy()
    if rows.sum() != len(windows) or (rows < 0).any():
        return False
    paths = files["path"].combine_chunks() if len(files) else pyarrow.array([], pyarrow.string())
    named = pyarrow.DictionaryArray.from_arrays(np.repeat(np.arange(len(files), dtype=np.int32), rows), paths)
    start = 0
    for chunk in windows["path"].chunks:
        if not pc.all(pc.equal(named.slice(start, len(chunk)).dictionary_decode(), chunk), min_count=0).as_py():
            return False
        start += len(chunk)
    return True


def _with_column(table: pyarrow.Table, name: str, values: np.ndarray) -> pyarrow.Table:
    number = table.schema.get_field_index(name)
    return table.set_column(number, table.schema.field(number), pyarrow.array(values, table.schema.field(number).type))


def _opened(content: bytes, schema: pyarrow.Schema, rows: int) -> pq.ParquetFile:
    texts = [name for name in _TEXTS if name in schema.names]  # equal texts are stored once
    file = pq.ParquetFile(pyarrow.BufferReader(content), read_dictionary=texts)
    if not (_plain(file.schema_arrow).equals(schema) and file.metadata.num_rows == rows):
        raise ValueError("it has other columns or rows than the index says")
    return file


def _checked(table: pyarrow.Table, schema: pyarrow.Schema) -> pyarrow.Table:
    """Check a table that was read, and return it with plain texts."""
    for name, size in _text_bytes(table).items():
        if size > MOST_BYTES:
            raise PartTooLarge(f"its {name}s are more than {MOST_BYTES >> 20} MB")
    table = table.cast(schema)
    table.validate(full=True)
    _check(table)
    return table


def _plain(schema: pyarrow.Schema) -> pyarrow.Schema:
    """Return the schema with strings for the dictionaries that `read_dictionary` has made of them."""
    kinds = (field.type.value_type if pyarrow.types.is_dictionary(field.type) else field.type for field in schema)
    return pyarrow.schema([field.with_type(kind) for field, kind in zip(schema, kinds, strict=True)], schema.metadata)


def _width(kind: pyarrow.DataType) -> int:
    """Return the bytes of a value, without those of a string."""
    if pyarrow.types.is_fixed_size_list(kind):
        return kind.list_size * kind.value_type.byte_width
    return 4 if kind == pyarrow.string() else kind.byte_width


def _text_bytes(table: pyarrow.Table) -> dict[str, int]:
    """Return the bytes of each column of texts; equal texts count each time."""
    return {name: int(_text_lengths(table, name).sum()) for name in _TEXTS if name in table.column_names}


def _text_lengths(table: pyarrow.Table, name: str) -> np.ndarray:
    """Return the lengths `[N]` int64 of texts, in bytes."""
    lengths = [np.empty(0, np.int64)]
    for chunk in table[name].chunks:
        if pyarrow.types.is_dictionary(chunk.type):
            each = pc.binary_length(chunk.dictionary).take(chunk.indices)
        else:
            each = pc.binary_length(chunk)
        lengths.append(each.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64))
    return np.concatenate(lengths)


def _check(table: pyarrow.Table) -> None:
    for column in table.columns:
        inner = (chunk.flatten().null_count for chunk in column.chunks if pyarrow.types.is_nested(column.type))
        if column.null_count or any(inner):
            raise ValueError("it has gaps, values that are missing")
    if "start" in table.column_names:
        start, end = (table[name].to_numpy() for name in ("start", "end"))
        if not (np.isfinite(start).all() and np.isfinite(end).all() and (start >= 0).all() and (end >= start).all()):
            raise ValueError("it has times that are none")
