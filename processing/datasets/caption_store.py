"""Captions of millions of clips by key, in an Arrow file that all processes and their workers map into memory."""

import hashlib
import logging
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import filelock
import numpy as np
import pyarrow

from .arrow_files import cache_folder, read_table, write_table

logger = logging.getLogger(__name__)

_FORMAT = 1  # of the files; files of another format are not read


class CaptionTable(Mapping):
    """Mapping from keys to lists of captions that does not hold a Python object for each of them.

    Args:
        table: `key` (sorted), `clip` (the row of the key's captions) and `captions` (of clip 0, 1, ..., then empty).
        path: of its file, which worker processes open again.
    """

    def __init__(self, table: pyarrow.Table, path: Path | None = None):
        self.path = path
        self.sorted_keys, self.clips, self.captions = (_array(table[name]) for name in ("key", "clip", "captions"))

    @classmethod
    def of(
        cls, keys: Sequence[pyarrow.ChunkedArray], clips: Sequence[np.ndarray], captions: pyarrow.ChunkedArray
    ) -> pyarrow.Table:
        """Make the table of several kinds of keys; for a key of several kinds the first kind counts.

        Args:
            keys: for each kind `[n]` texts.
            clips: for each kind `[n]`, the row of each key in `captions`.
            captions: `[clips]` lists of texts.
        """
        kinds = np.repeat(np.arange(len(keys)), [len(kind) for kind in keys])
        texts = pyarrow.chunked_array([chunk.cast("large_string") for kind in keys for chunk in kind.chunks])
        table = pyarrow.table({"key": texts, "clip": np.concatenate(clips), "kind": kinds})
        table = table.sort_by([("key", "ascending"), ("kind", "ascending")]).drop_columns("kind")
        lists = captions.combine_chunks()
        ends = lists.offsets.to_numpy()
        offsets = np.concatenate([ends, np.full(len(table) - len(lists), ends[-1])])
        padded = pyarrow.LargeListArray.from_arrays(offsets, lists.values.cast("large_string"))
        return table.append_column("captions", padded)

    @classmethod
    def open(cls, path: Path) -> "CaptionTable":
        """Open a table in a file."""
        return cls(read_table(path), path)

    def __reduce__(self):
        if self.path is not None:
            return CaptionTable.open, (self.path,)
        columns = {"key": self.sorted_keys, "clip": self.clips, "captions": self.captions}
        return CaptionTable, (pyarrow.table(columns),)

    def __getitem__(self, key: str) -> list[str]:
        index = bisect_left(range(len(self.sorted_keys)), key, key=lambda row: self.sorted_keys[row].as_py())
        if index == len(self.sorted_keys) or self.sorted_keys[index].as_py() != key:
            raise KeyError(key)
        return self.captions[self.clips[index].as_py()].as_py()

    def __iter__(self) -> Iterator[str]:
        return (key.as_py() for key in self.sorted_keys)

    def __len__(self) -> int:
        return len(self.sorted_keys)


def _array(column: pyarrow.ChunkedArray) -> pyarrow.Array:
    """Return a column as one array, without a copy where it has one chunk, as in a file."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def kept_table(name: str, sources: Sequence[str | os.PathLike], make: Callable[[], pyarrow.Table]) -> CaptionTable:
    """Return the table `name`, made once from `sources` and cached in `HF_HOME/wavlink/captions`.

    One process makes it while the others of the machine wait for it. Where it cannot be cached it is held in memory.

    Args:
        name: of the table.
        sources: the files that it is made of; if their sizes or times of change differ, it is made again.
        make: makes the table.
    """
    digest = hashlib.sha256(repr((_FORMAT, [_version(source) for source in sources])).encode()).hexdigest()[:16]
    path = cache_folder("captions") / f"{name}-{digest}.arrow"
    if (table := _opened(path)) is not None:
        return table
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock"):
            if (table := _opened(path)) is None:  # another process may have been first
                write_table(make(), path)
                table = CaptionTable.open(path)
            return table
    except (OSError, NotImplementedError) as error:  # no room, no rights, no locks
        logger.warning(f"the captions of {name} are not kept on disk: {error}")
        return CaptionTable(make())


def _version(source: str | os.PathLike) -> tuple:
    status = os.stat(source)
    return os.path.realpath(source), status.st_size, status.st_mtime_ns


def _opened(path: Path) -> CaptionTable | None:
    try:
        return CaptionTable.open(path)
    except (OSError, KeyError, pyarrow.ArrowException):  # missing or damaged
        return None
