"""Rows of embedded files in a folder of parquet files: `ray_embedding` writes them, `vector_database` reads them."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import filelock
import numpy as np
import pyarrow
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .listing import Listing, Sound
from .store import write_durably

_ABOUT = b"wavlink"  # in the parquet schema's metadata: how the rows were made, as JSON
_FILES = b"wavlink_files"  # the same: [size, version] of each of the part's files in their order, null if not known
_ROWS_A_PART = 1 << 16


@dataclass
class Report:
    """What a run did; `unreadable` is of all runs into the folder: why a file has no vectors, by path."""

    embedded: int = 0  # files
    there: int = 0  # files of an earlier run
    changed: int = 0  # of the earlier ones, embedded anew
    removed: int = 0  # of the earlier ones, their rows are gone
    rows: int = 0  # of this run
    unreadable: dict[str, str] = field(default_factory=dict)


def failed(path: str, error: str, dims: int) -> dict[str, np.ndarray]:
    """The row of a file that cannot be embedded, as `FileEmbedder` gives rows."""
    return {
        "path": np.array([path], dtype=object),
        "start": np.array([np.nan]),
        "end": np.array([np.nan]),
        "embedding": np.full((1, dims), np.nan, np.float32),
        "error": np.array([error], dtype=str),
        "windows": np.array([1]),
    }


class Rows:
    """The folder: files count once all their rows are in a part, and a part once it has its name."""

    def __init__(self, folder: Path, about: dict, commit_seconds: float):
        self.folder, self.about, self.commit_seconds = folder, about, commit_seconds
        self.report, self.known = Report(), {}  # of each file that is whole: (size, version), None if not known
        self.versions = {}  # the same of each file that there is now
        self.coming, self.unwritten, self.written = {}, [], time.monotonic()

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(self.folder / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise ValueError(f"another process is writing to {self.folder}: wait until it has ended") from error
        try:
            self._read()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_):
        self._lock.release()

    def _read(self) -> None:
        """What earlier runs have written."""
        for path, there in parts_of(self.folder):
            for name, value in self.about.items():
                if there[name] != value:
                    raise ValueError(f"{path} has {name}={there[name]}, not {value}: give that, or another folder")
            rows = pq.read_table(path, columns=["path", "error"])
            self.known |= _versions(rows)
            for name, error in zip(*(rows[column].to_pylist() for column in rows.column_names), strict=True):
                if error:
                    self.report.unreadable[name] = error

    def compare(self, listing: Listing, retry: bool) -> list[Sound]:
        """What is to be embedded; rows of what has changed or is gone are removed."""
        todo, changed = [], []
        self.versions = {sound.path: (sound.size, sound.version) for sound in listing.sounds}
        for sound in listing.sounds:
            known = self.known.get(sound.path)
            same = sound.path in self.known and (known is None or (known == sound[1:3] and sound.version >= 0))
            if same and not (retry and sound.path in self.report.unreadable):
                self.report.there += 1
                continue
            todo.append(sound)
            changed += [sound.path] if sound.path in self.known else []
        gone = [path for path in self.known if path not in self.versions and listing.covers(path)]
        self.report.changed, self.report.removed = len(changed), len(gone)
        self._drop({*changed, *gone})
        return todo

    def _drop(self, paths: set[str]) -> None:
        for path, _ in parts_of(self.folder) if paths else ():
            rows = pq.read_table(path)
            kept = rows.filter(pc.invert(pc.is_in(rows["path"], pyarrow.array(sorted(paths), pyarrow.string()))))
            if len(kept) < len(rows):
                self._write(path, kept, _versions(rows))
        for name in paths:
            del self.known[name]
            self.report.unreadable.pop(name, None)

    def take(self, batch: dict[str, np.ndarray]) -> int:
        """How many files have ended with these rows."""
        before = len(self.known)
        names = ("path", "start", "end", "embedding", "error")
        for windows, path, *row in zip(batch["windows"], *(batch[name] for name in names), strict=True):
            if path in self.known:
                continue
            rows = self.coming.setdefault(path, {})
            rows[row[0]] = (path, *row)  # by its start: what comes twice is there once
            if len(rows) == windows:
                self._end(path, self.coming.pop(path))
        if len(self.unwritten) >= _ROWS_A_PART or time.monotonic() - self.written > self.commit_seconds:
            self.write()
        return len(self.known) - before

    def quarantine(self, paths: list[str]) -> None:
        """Notes files of which nothing has come back.

        Raises:
            OSError: no file has ever been embedded here, so that it is hardly a fault of theirs.
        """
        if len(paths) > 1 and not self.known:
            raise OSError(f"the workers of all {len(paths)} files have died, such as of {paths[0]}: see Ray's logs")
        for path in paths:
            self.coming.pop(path, None)
            self.take(failed(path, "its worker died again and again; --retry tries again", self.about["dims"]))

    def _end(self, path: str, rows: dict) -> None:
        self.known[path] = self.versions.get(path)
        self.unwritten += [rows[start] for start in sorted(rows)]
        self.report.embedded += 1
        self.report.rows += len(rows)
        error = self.unwritten[-1][-1]
        if error:
            self.report.unreadable[path] = str(error)

    def write(self) -> None:
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
        self._write(self.folder / f"part-{number:06d}.parquet", pyarrow.table(columns), self.known)
        self.unwritten = []

    def _write(self, path: Path, rows: pyarrow.Table, versions: dict) -> None:
        files = [versions[name] for name in dict.fromkeys(rows["path"].to_pylist())]
        about = {_ABOUT: json.dumps(self.about), _FILES: json.dumps(files)}
        sink = pyarrow.BufferOutputStream()
        pq.write_table(rows.replace_schema_metadata(about), sink, compression="zstd")
        write_durably(path, sink.getvalue())


def _versions(rows: pyarrow.Table) -> dict[str, tuple[int, int] | None]:
    """Of each file of a part its size and version, None in parts that do not tell."""
    names = [*dict.fromkeys(rows["path"].to_pylist())]
    told = json.loads(rows.schema.metadata.get(_FILES, "null")) or [None] * len(names)
    return {name: each and tuple(each) for name, each in zip(names, told, strict=True)}


def fixed_size_list(vectors: np.ndarray) -> pyarrow.FixedSizeListArray:
    """`[N, D]` fp32 as an Arrow column."""
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), vectors.shape[1])


def parts_of(folder: str | os.PathLike) -> Iterator[tuple[Path, dict]]:
    """The parquet files that `embed_with_ray` has written, and how: `model`, `revision`, `dims`, `window`, ...

    Raises:
        ValueError: a parquet file that it has not, or that is damaged.
    """
    for path in sorted(Path(folder).glob("part-*.parquet")):
        try:
            yield path, json.loads(pq.read_schema(path).metadata[_ABOUT])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is damaged or none of this program's: remove it, and embed its sounds anew"
            ) from error
