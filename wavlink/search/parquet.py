"""An index as parquet files, which `push` exports: a row per window that has a vector.

    index.json                  how the index was made, and the files with their checksums
    data/part-000000.parquet    all columns of the index

Whoever reads such a copy has it from others. Rows are read a few at a time, and each is checked: a few kB of parquet
can unpack to more than memory holds.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wavlink.bundled_models import digest_of

from .manifest import COLUMNS, METADATA, RESERVED, VECTORS, Manifest, checksum, read_manifest
from .scoring import vectors_of
from .table import Table

MANIFEST_FILE = "index.json"
FORMAT = 2
PART_BYTES = 1 << 27  # in memory, of a part that is written
MOST_BYTES = 1 << 30  # in memory, of a part that is read
_STEP_BYTES = 1 << 25  # read or written at once
_MOST_TEXT = 1 << 20  # bytes of a text
_MOST_MANIFEST = 1 << 26  # bytes of index.json
_NAME = re.compile(r"part-\d{6}\.parquet")
_NULLABLE = {"duration"}


@dataclass(frozen=True)
class Part:
    """A parquet file below `data`."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Copy:
    """What is read of an index that was exported, or made by an earlier version.

    Attributes:
        manifest: how the index was made.
        columns: that describe the sounds.
        tables: its rows, checked, some at a time; a ValueError names the file that is not in order.
    """

    manifest: Manifest
    columns: list[pyarrow.Field]
    tables: Iterator[pyarrow.Table]


def export(table: Table, folder: Path) -> list[Part]:
    """Write the windows of a table as parquet files `folder/part-NNNNNN.parquet`.

    Raises:
        ValueError: no windows; a column or a value that a copy cannot have.
    """
    schema = table.schema.remove_metadata()  # it names local paths
    _refuse_columns([schema.field(name) for name in table.metadata_columns])
    batches, parts = _windows(table, schema), []
    batch = next(batches, None)
    if batch is None:
        raise ValueError(f"{table.index} holds no sounds yet: index some")
    while batch is not None:
        path = folder / f"part-{len(parts):06d}.parquet"
        rows = size = 0
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            while batch is not None and (not rows or size + batch.nbytes <= PART_BYTES):
                writer.write_table(batch)
                rows, size, batch = rows + len(batch), size + batch.nbytes, next(batches, None)
        parts.append(Part(path.name, rows, digest_of(path)))
    return parts


def _windows(table: Table, schema: pyarrow.Schema) -> Iterator[pyarrow.Table]:
    for batch in table.scan(schema.names, "error = ''", batch_size=_rows_at_once(schema)):
        if len(batch):
            rows = pyarrow.Table.from_batches([batch]).cast(schema)
            with _naming(table.index):
                yield from _checked(rows, table.manifest)


def export_manifest(manifest: Manifest, parts: list[Part]) -> str:
    """Return the text of `index.json`, with a checksum over all."""
    fields = {"format": FORMAT, "manifest": json.loads(manifest.to_json()), "parts": [*map(dataclasses.asdict, parts)]}
    return json.dumps(fields | {"sha256": checksum(fields)}, indent=1) + "\n"


def read_fields(folder: Path) -> dict[str, Any]:
    """Read `index.json`, and verify its checksum.

    Raises:
        ValueError: it is missing or damaged.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no copy of an index, it has no {MANIFEST_FILE}")
    with naming_manifest(path):
        if path.stat().st_size > _MOST_MANIFEST:
            raise ValueError(f"it has more than {_MOST_MANIFEST >> 20} MB")
        fields = json.loads(path.read_text(encoding="utf-8"))
        written = fields.pop("sha256")
        if not isinstance(fields["format"], int) or fields["format"] > FORMAT:
            raise ValueError(f"it is of format {fields['format']!r:.20}, this program knows {FORMAT}: update it")
        if written != checksum(fields):
            raise ValueError("its checksum is not the one written")
        return fields


@contextmanager
def naming_manifest(path: Path) -> Iterator[None]:
    """Raise what is wrong with `index.json` as a ValueError that names it."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): take another copy, or index the sounds anew") from error


def parts_of(fields: dict[str, Any]) -> tuple[Manifest, list[Part]]:
    """Return what `index.json` says.

    Raises:
        ValueError, KeyError, TypeError: wrong values.
    """
    parts = [Part(**part) for part in fields["parts"]]
    if not all(isinstance(part.name, str) and _NAME.fullmatch(part.name) for part in parts):
        raise ValueError("it names parts that are none")
    if len({part.name for part in parts}) < len(parts):
        raise ValueError("it names a part twice")
    if not all(type(part.rows) is int and 0 <= part.rows < 2**53 for part in parts):
        raise ValueError("it has numbers of rows that are none")
    text = json.dumps(fields["manifest"]).encode()
    return read_manifest({METADATA: text}, MANIFEST_FILE), parts


def read_export(folder: Path, fields: dict[str, Any]) -> Copy:
    """Read an index that `export` has written.

    Args:
        fields: of `read_fields`.

    Raises:
        ValueError: `index.json` or the first part is not in order; `Copy.tables` raises it of others.
    """
    with naming_manifest(folder / MANIFEST_FILE):
        manifest, parts = parts_of(fields)
        if not parts:
            raise ValueError("it names no parts")
    first = folder / "data" / parts[0].name
    with verified(first, parts[0].sha256), pq.ParquetFile(first) as file:
        found = file.schema_arrow.remove_metadata()
        fixed = manifest.schema.remove_metadata()
        columns = [pyarrow.field(field.name, field.type) for field in found if field.name not in fixed.names]
        _refuse_columns(columns)
        if any(found.get_field_index(field.name) < 0 or not found.field(field.name).equals(field) for field in fixed):
            raise ValueError("it has other columns than the index says")

    def tables() -> Iterator[pyarrow.Table]:
        for part in parts:
            path = folder / "data" / part.name
            with verified(path, part.sha256):
                for rows in stream(path, found, part.rows):
                    yield from _checked(rows, manifest)

    return Copy(manifest, columns, tables())


@contextmanager
def verified(path: Path, sha256: str) -> Iterator[None]:
    """Verify a file's checksum, and raise what else is wrong with it as a ValueError that names it."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: take another copy of the index")
    if digest_of(path) != sha256:
        raise ValueError(f"{path} is damaged, its checksum is not the one written: take another copy of the index")
    with _naming(str(path)):
        yield


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:  # also arrow's
        raise
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{name} is none of this program's: {error}") from error


def stream(path: Path, schema: pyarrow.Schema, rows: int) -> Iterator[pyarrow.Table]:
    """Read a parquet file that must have this schema and number of rows, some rows at a time.

    Raises:
        ValueError: other columns or rows; a text of more than a MB, or more than `MOST_BYTES` in all.
        pyarrow.ArrowException, OSError: not a parquet file, or a damaged one.
    """
    texts = [field.name for field in schema if field.type == pyarrow.string()]  # equal texts are stored once
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        if not _plain(file.schema_arrow).equals(schema) or file.metadata.num_rows != rows:
            raise ValueError("it has other columns or rows than the index says")
        groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
        stated = sum(max(group.total_byte_size, 0) for group in groups)
        _refuse_large(max(stated, rows * _width(schema)))
        size = 0
        # In this thread: one of arrow's would hold the file a moment longer, and abort Python at its exit.
        for batch in file.iter_batches(_rows_at_once(schema), use_threads=False):
            sizes = _width(schema) + sum(_text_lengths(batch.column(name), name) for name in texts)
            ends = np.cumsum(np.broadcast_to(sizes, len(batch)))
            size += int(ends[-1]) if len(ends) else 0
            _refuse_large(size)
            cuts = np.flatnonzero(np.diff(ends // _STEP_BYTES)) + 1
            for start, stop in zip([0, *cuts], [*cuts, len(batch)], strict=True):
                yield pyarrow.Table.from_batches([batch.slice(start, stop - start)]).cast(schema)


def _refuse_large(size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"it unpacks to more than {MOST_BYTES >> 20} MB")


def _rows_at_once(schema: pyarrow.Schema) -> int:
    return max(1, min(1 << 16, _STEP_BYTES // _width(schema)))


def _width(schema: pyarrow.Schema) -> int:
    """Return the bytes of a row, without those of its texts."""
    return sum(map(_value_width, schema.types))


def _value_width(kind: pyarrow.DataType) -> int:
    if pyarrow.types.is_fixed_size_list(kind):
        return kind.list_size * _value_width(kind.value_type)
    return 4 if kind == pyarrow.string() else -(-kind.bit_width // 8)


def _plain(schema: pyarrow.Schema) -> pyarrow.Schema:
    """Return the schema with strings for the dictionaries that `read_dictionary` has made of them."""
    kinds = (field.type.value_type if pyarrow.types.is_dictionary(field.type) else field.type for field in schema)
    return pyarrow.schema([field.with_type(kind) for field, kind in zip(schema, kinds, strict=True)])


def _text_lengths(column: pyarrow.Array, name: str) -> np.ndarray:
    """Return the lengths `[N]` of texts in bytes, of which none may be too long."""
    if pyarrow.types.is_dictionary(column.type):
        lengths = pc.binary_length(column.dictionary).take(column.indices)
    else:
        lengths = pc.binary_length(column)
    lengths = lengths.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    if lengths.max(initial=0) > _MOST_TEXT:
        raise ValueError(f"it has a {name!r:.40} of more than {_MOST_TEXT >> 20} MB")
    return lengths


def _refuse_columns(columns: list[pyarrow.Field]) -> None:
    """Refuse columns about the sounds that a copy cannot have."""
    names = [field.name for field in columns]
    if len(set(names)) < len(names) or RESERVED & {*names} or any(not name or len(name) > 200 for name in names):
        raise ValueError(f"it has columns of names that are taken, or no names: {', '.join(names):.200}")
    for field in columns:
        if field.type != pyarrow.string() and not pyarrow.types.is_primitive(field.type):
            raise ValueError(f"its column {field.name!r} is of the type {field.type}: texts and numbers are copied")


def _checked(table: pyarrow.Table, manifest: Manifest) -> Iterator[pyarrow.Table]:
    """Yield the rows if all are in order."""
    check_rows(table, manifest)
    yield table


def check_rows(table: pyarrow.Table, manifest: Manifest) -> None:
    """Check rows of windows, each with a vector.

    Raises:
        ValueError: missing values, texts that are too long, impossible numbers, a vector without a direction.
        pyarrow.ArrowInvalid: texts that are no UTF-8.
    """
    table.validate(full=True)
    for name in table.column_names:
        column = table[name]
        inner = sum(chunk.flatten().null_count for chunk in column.chunks) if name in VECTORS else 0
        if inner or (column.null_count and (name in COLUMNS or name in VECTORS) and name not in _NULLABLE):
            raise ValueError(f"it has gaps, values of {name} that are missing")
        if column.type == pyarrow.string():
            for chunk in column.chunks:
                _text_lengths(chunk, name)
    start, end, duration = (table[name].to_numpy() for name in ("start", "end", "duration"))
    known = duration[~np.isnan(duration)] if table["duration"].null_count else duration
    if not (_is_time(start) and _is_time(end) and (end >= start).all() and _is_time(known)):
        raise ValueError("it has times that are none")
    least = {"window": 0, "size": 0, "windows": -1}
    if any(len(table) and pc.min(table[name]).as_py() < value for name, value in least.items()):
        raise ValueError("it has counts that are none")
    if pc.any(pc.match_substring(table["path"], "\0")).as_py() or pc.any(pc.equal(table["path"], "")).as_py():
        raise ValueError("it has paths that are none")
    if pc.any(pc.not_equal(table["error"], "")).as_py():
        raise ValueError("it has windows of files that were skipped")
    if pc.any(pc.not_equal(table["revision"], manifest.revision)).as_py():
        raise ValueError("it has vectors of several models, which do not compare")
    for name in {*VECTORS} & {*table.column_names}:
        vectors = vectors_of(table[name])
        squares = np.einsum("nd,nd->n", vectors, vectors)
        if not (np.isfinite(squares) & (squares > 0)).all():
            raise ValueError("it has vectors without a direction: zero, NaN or infinite values")


def _is_time(seconds: np.ndarray) -> bool:
    return bool((np.isfinite(seconds) & (seconds >= 0)).all())
