"""Rows of embedded files in a folder of parquet files, which `ray` writes and `lance` reads."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wavlink.atomic_files import write_bytes
from wavlink.locks import locked

from .changes import Changes, KnownFile, Report, compare
from .listing import Listing
from .store import parquet_bytes

_ABOUT = b"wavlink"  # in the parquet schema's metadata: how the rows were made, as JSON
_FILES = b"wavlink_files"  # the same: [size, version] of each of the part's files in their order, null if not known
_ROWS_A_PART = 1 << 16


def failed(path: str, error: str, dims: int) -> dict[str, np.ndarray]:
    """Return the row of a file that cannot be embedded, in the form of `FileEmbedder`'s rows."""
    return {
        "path": np.array([path], dtype=object),
        "start": np.array([np.nan]),
        "end": np.array([np.nan]),
        "embedding": np.full((1, dims), np.nan, np.float32),
        "error": np.array([error], dtype=str),
        "windows": np.array([1]),
    }


class Rows:
    """Writer of the folder. A file counts once all its rows are in a part, and a part once it has its name.

    Args:
        about: how the rows are made; every part of the folder must agree with it.
        commit_seconds: rows are written to the disk about this often.

    Raises:
        ValueError: another process writes into the folder, or it holds other rows.
    """

    def __init__(self, folder: Path, about: dict, commit_seconds: float):
        self.folder, self.about, self.commit_seconds = folder, about, commit_seconds
        self.known: dict[str, KnownFile] = {}  # complete files
        self.versions: dict[str, tuple[int, int | None]] = {}  # size and version of each file that exists now
        self.coming, self.unwritten, self.written = {}, [], time.monotonic()

    def __enter__(self) -> "Rows":
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(locked(self.folder / ".lock"))
            self._read()
            self._lock = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _read(self) -> None:
        """Read which files earlier runs have written."""
        for path, about in parts_of(self.folder):
            for name in {**self.about, "precision": None}:  # fp32 is not noted
                value, earlier = (each.get(name, "fp32") for each in (self.about, about))
                if earlier != value:
                    raise ValueError(f"{path} has {name}={earlier}, not {value}: give that, or another folder")
            self.known |= _known(pq.read_table(path, columns=["path", "error"]))

    def compare(self, listing: Listing, retry: bool) -> Changes:
        """Compare a listing with the rows, and remove the rows of files that have changed or gone."""
        self.versions = {sound.path: (sound.size, sound.version) for sound in listing.sounds}
        changes = compare(listing, self.known, retry)
        self._drop({*changes.changed, *changes.removed})
        return changes

    def _drop(self, paths: set[str]) -> None:
        for path, _ in parts_of(self.folder) if paths else ():
            rows = pq.read_table(path)
            kept = rows.filter(pc.invert(pc.is_in(rows["path"], pyarrow.array(sorted(paths), pyarrow.string()))))
            if len(kept) < len(rows):
                self._write(path, kept)
        for name in paths:
            del self.known[name]

    def take(self, batch: dict[str, np.ndarray]) -> int:
        """Take rows of `FileEmbedder`, and return how many files are complete with them."""
        before = len(self.known)
        names = ("path", "start", "end", "embedding", "error")
        for windows, path, *row in zip(batch["windows"], *(batch[name] for name in names), strict=True):
            if path in self.known:
                continue
            rows = self.coming.setdefault(path, {})
            rows[row[0]] = (path, *row)  # by its start: a row that comes twice is kept once
            if len(rows) == windows:
                self._end(path, self.coming.pop(path))
        if len(self.unwritten) >= _ROWS_A_PART or time.monotonic() - self.written > self.commit_seconds:
            self.write()
        return len(self.known) - before

    def quarantine(self, paths: list[str]) -> None:
        """Write an error for files of which no row has come back.

        Raises:
            OSError: no file has ever been embedded into this folder, so that the files are hardly the cause.
        """
        if len(paths) > 1 and not self.known:
            raise OSError(f"the workers of all {len(paths)} files have died, such as of {paths[0]}: see Ray's logs")
        for path in paths:
            self.coming.pop(path, None)
            self.take(failed(path, "its worker died again and again; --retry tries again", self.about["dims"]))

    def report(self, changes: Changes, listing: Listing) -> Report:
        """Report on the run; windows are the rows without an error."""
        windows = sum(file.windows for file in self.known.values() if not file.error)
        return changes.report(self.known, listing.unreadable, windows)

    def _end(self, path: str, rows: dict) -> None:
        self.unwritten += [rows[start] for start in sorted(rows)]
        error = str(self.unwritten[-1][-1])
        self.known[path] = KnownFile(*self.versions.get(path, (-1, None)), len(rows), len(rows), error)

    def write(self) -> None:
        """Write all complete files to a new part."""
        self.written = time.monotonic()
        if not self.unwritten:
            return
        paths, starts, ends, vectors, errors = zip(*self.unwritten, strict=True)
        columns = {
            "path": pyarrow.array(paths, pyarrow.string()),
            "start": pyarrow.array(starts, pyarrow.float64(), from_pandas=True),  # null for NaN
            "end": pyarrow.array(ends, pyarrow.float64(), from_pandas=True),
            "embedding": fixed_size_list(np.stack(vectors)),
            "error": pyarrow.array(errors, pyarrow.string()),
        }
        number = max((int(path.stem[5:]) for path in self.folder.glob("part-*.parquet")), default=-1) + 1
        self._write(self.folder / f"part-{number:06d}.parquet", pyarrow.table(columns))
        self.unwritten = []

    def _write(self, path: Path, rows: pyarrow.Table) -> None:
        files = (self.known[name] for name in dict.fromkeys(rows["path"].to_pylist()))
        versions = [None if file.version is None else (file.size, file.version) for file in files]
        about = {_ABOUT: json.dumps(self.about), _FILES: json.dumps(versions)}
        write_bytes(path, parquet_bytes(rows.replace_schema_metadata(about)))


def _known(part: pyarrow.Table) -> Iterable[tuple[str, KnownFile]]:
    """Yield the files of a part, which may lack their sizes and versions."""
    counts, errors = {}, {}
    for path, error in zip(part["path"].to_pylist(), part["error"].to_pylist(), strict=True):
        counts[path], errors[path] = counts.get(path, 0) + 1, error
    versions = json.loads(part.schema.metadata.get(_FILES, "null")) or [None] * len(counts)
    for (path, count), version in zip(counts.items(), versions, strict=True):
        yield path, KnownFile(*(version or (-1, None)), count, count, errors[path])


def fixed_size_list(vectors: np.ndarray) -> pyarrow.FixedSizeListArray:
    """Return vectors `[N, D]` fp32 as an Arrow column."""
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), vectors.shape[1])


def parts_of(folder: str | os.PathLike) -> Iterator[tuple[Path, dict]]:
    """Yield the parquet files of `embed_with_ray`, and how each was made: `model`, `revision`, `dims`, `window`, ...

    Raises:
        ValueError: a parquet file of another program, or a damaged one.
    """
    for path in sorted(Path(folder).glob("part-*.parquet")):
        try:
            yield path, json.loads(pq.read_schema(path).metadata[_ABOUT])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is damaged or none of this program's: remove it, and embed its sounds anew"
            ) from error
