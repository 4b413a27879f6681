"""Read an index of earlier versions: parquet parts that `index.json` names, in four storages.

index.json                       model, storage, windows; the parts with their checksums
embeddings/part-000003.parquet   a row per window: path, start, end (seconds), embedding
files/part-000003.parquet        a row per file: its size and version when it was embedded, or why not
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as pc

from .listing import Sound
from .manifest import Manifest, check_fields
from .parquet import MANIFEST_FILE, Copy, check_rows, naming_manifest, stream, verified
from .rows import fixed_size_list, skipped_row, with_columns_of
from .scoring import truncated

KINDS = ("embeddings", "files")
_NAME = re.compile(r"part-\d{6,}\.parquet")
_CODES = {"fp32": pyarrow.float32(), "fp16": pyarrow.float16(), "int8": pyarrow.int8(), "binary": pyarrow.uint8()}
_TEXT, _COUNT, _SECONDS = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
_FILES = pyarrow.schema(
    {
        "path": _TEXT,
        "size": _COUNT,
        "version": _COUNT,
        "first": _COUNT,  # of the file's windows, which is the first of this part
        "rows": _COUNT,  # how many of them are in this part
        "windows": _COUNT,  # how many the file has; -1 until that is known
        "error": _TEXT,
    }
)
_OTHER_FIELDS = ("foreign", "next_part", "format", "parts", "storage")


def file_names(fields: dict[str, Any]) -> set[str]:
    """Return the names of an index's parquet files, by its `index.json`.

    Raises:
        ValueError, KeyError, TypeError: wrong values.
    """
    names = [part["name"] for part in fields["parts"]]
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names) or len({*names}) < len(names):
        raise ValueError("it names parts that are none")
    return {f"{kind}/{name}" for kind in KINDS for name in names}


def read_former(folder: Path, fields: dict[str, Any]) -> Copy:
    """Read an index; vectors in int8 and binary become fp16.

    Args:
        fields: of `index.json`, see `parquet.read_fields`.

    Raises:
        ValueError: `index.json` is not in order; `Copy.tables` raises it of the parts.
    """
    with naming_manifest(folder / MANIFEST_FILE):
        file_names(fields)
        storage, parts = fields["storage"], fields["parts"]
        kept = {name: value for name, value in fields.items() if name not in _OTHER_FIELDS}
        manifest = Manifest(**kept, storage="fp32" if storage == "fp32" else "fp16")
        check_fields(manifest)
        width = -(-manifest.dim // 8) if storage == "binary" else manifest.dim
        codes = pyarrow.list_(_CODES[storage], width)

    def tables() -> Iterator[pyarrow.Table]:
        schema = pyarrow.schema({"path": _TEXT, "start": _SECONDS, "end": _SECONDS, "embedding": codes})
        for part in parts:
            path = folder / "files" / part["name"]
            with verified(path, part["sha256"]["files"]):
                files = pyarrow.concat_tables([_FILES.empty_table(), *stream(path, _FILES, part["files"])])
                _refuse_gaps(files)
            path = folder / "embeddings" / part["name"]
            with verified(path, part["sha256"]["embeddings"]):
                yield from _rows(path, schema, part["rows"], files, manifest, storage)
            for row in files.filter(pc.not_equal(files["error"], "")).to_pylist():
                yield skipped_row(manifest, Sound(row["path"], row["size"], row["version"], ""), row["error"])

    return Copy(manifest, [], tables())


def _refuse_gaps(table: pyarrow.Table) -> None:
    if any(column.null_count for column in table.columns):
        raise ValueError("it has gaps, values that are missing")


def _rows(
    path: Path, schema: pyarrow.Schema, count: int, files: pyarrow.Table, manifest: Manifest, storage: str
) -> Iterator[pyarrow.Table]:
    """Yield the windows of a part, in the columns of an index."""
    facts = files.filter(pc.equal(files["error"], ""))
    paths = facts["path"].combine_chunks() if len(facts) else pyarrow.array([], _TEXT)
    first, rows, windows = (facts[name].to_numpy() for name in ("first", "rows", "windows"))
    durations = _durations(path, schema, count, paths)
    durations[(first != 0) | (rows != windows)] = np.nan  # the file has windows in other parts
    done = first.copy()
    for table in stream(path, schema, count):
        _refuse_gaps(table)
        files_of = pc.index_in(table["path"], paths)
        if files_of.null_count:
            raise ValueError("it has windows of files that it does not name")
        number = files_of.to_numpy()
        window = done[number] + _rank(number)
        np.maximum.at(done, number, window + 1)
        columns = {
            "path": table["path"],
            "window": pyarrow.array(window),
            "start": table["start"],
            "end": table["end"],
            "duration": pyarrow.array(durations[number], from_pandas=True),
            "size": facts["size"].take(files_of),
            "version": facts["version"].take(files_of),
            "windows": pyarrow.array(windows[number]),
            "error": pyarrow.repeat("", len(table)),
            "revision": pyarrow.repeat(manifest.revision, len(table)),
            "embedding": fixed_size_list(_decoded(table["embedding"], manifest.dim, storage), manifest),
        }
        made = with_columns_of(manifest.schema, pyarrow.table(columns))
        check_rows(made, manifest)
        yield made


def _durations(path: Path, schema: pyarrow.Schema, count: int, paths: pyarrow.Array) -> np.ndarray:
    """Return the end of each file's last window."""
    ends = np.zeros(len(paths))
    for table in stream(path, schema, count):
        number = pc.index_in(table["path"], paths).fill_null(0).to_numpy()
        if len(paths):
            np.maximum.at(ends, number, table["end"].to_numpy())
    return ends


def _rank(values: np.ndarray) -> np.ndarray:
    """Return how many equal values stand before each value `[N]`."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-1))
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.arange(len(values)) - np.repeat(starts, np.diff(starts, append=len(values)))
    return ranks


def _decoded(column: pyarrow.ChunkedArray, dim: int, storage: str) -> np.ndarray:
    """Return the vectors `[N, dim]` that codes stand for, of any norm.

    int8 codes are in proportion to the vectors; of binary ones each bit is the sign of a dim (`numpy.packbits`).
    """
    codes = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    values = np.concatenate([np.empty(0, column.type.value_type.to_pandas_dtype()), *codes])
    values = values.reshape(-1, column.type.list_size)
    return truncated(2.0 * np.unpackbits(values, axis=1, count=dim) - 1 if storage == "binary" else values, dim)
