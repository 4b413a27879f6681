"""Captions of millions of clips by key: one Arrow file, mapped into memory by all processes and their workers."""

import hashlib
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import filelock
import huggingface_hub
import numpy as np
import pyarrow
import pyarrow.feather
from transformers.utils import logging

logger = logging.get_logger(__name__)

_FORM = 1  # of the files; another number reads no older ones


class CaptionTable(Mapping):
    """A mapping from keys to lists of captions, without a Python object for each of them.

    Args:
        table: `key` (sorted), `clip` (the row of the key's captions) and `captions` (of clip 0, 1, ..., then empty).
        path: of its file, from which another process opens it.
    """

    def __init__(self, table: pyarrow.Table, path: Path | None = None):
        self.path = path
        self.sorted_keys, self.clips, self.captions = (_array(table[name]) for name in ("key", "clip", "captions"))

    @classmethod
    def of(cls, keys: Sequence[pyarrow.ChunkedArray], clips: Sequence[np.ndarray], captions) -> pyarrow.Table:
        """The table of several kinds of keys, of which the first that has a key decides.

        Args:
            keys: for each kind `[n]` texts; clips: for each kind `[n]`, the row of each key in `captions`.
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
        return cls(pyarrow.feather.read_table(path, memory_map=True), path)

    def __reduce__(self):
        if self.path is not None:
            return CaptionTable.open, (self.path,)
        columns = {"key": self.sorted_keys, "clip": self.clips, "captions": self.captions}
        return CaptionTable, (pyarrow.table(columns),)

    def __getitem__(self, key: str) -> list[str]:
        place = bisect_left(range(len(self.sorted_keys)), key, key=lambda row: self.sorted_keys[row].as_py())
        if place == len(self.sorted_keys) or self.sorted_keys[place].as_py() != key:
            raise KeyError(key)
        return self.captions[self.clips[place].as_py()].as_py()

    def __iter__(self) -> Iterator[str]:
        return (key.as_py() for key in self.sorted_keys)

    def __len__(self) -> int:
        return len(self.sorted_keys)


def _array(column: pyarrow.ChunkedArray) -> pyarrow.Array:
    """Without a copy where the column is one piece, as in a file."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def kept_table(name: str, sources: Sequence[str | os.PathLike], make: Callable[[], pyarrow.Table]) -> CaptionTable:
    """The table of `name`, made once from `sources` and kept in `HF_HOME/wavlink/captions`.

    One process makes it while the others of the machine wait for it. Where it cannot be kept it is held in memory.

    Args:
        sources: the files that it is made of; with other sizes or times of change it is made anew.
    """
    digest = hashlib.sha256(repr((_FORM, [_version(source) for source in sources])).encode()).hexdigest()[:16]
    path = Path(huggingface_hub.constants.HF_HOME) / "wavlink" / "captions" / f"{name}-{digest}.arrow"
    if (table := _opened(path)) is not None:
        return table
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock"):
            if (table := _opened(path)) is None:  # another process may have been first
                _write(make(), path)
                table = CaptionTable.open(path)
            return table
    except (OSError, NotImplementedError) as error:  # no room, no rights, no locks
        logger.warning(f"the captions of {name} are not kept on disk: {error}")
        return CaptionTable(make())


def _version(source: str | os.PathLike) -> tuple:
    known = os.stat(source)
    return os.path.realpath(source), known.st_size, known.st_mtime_ns


def _opened(path: Path) -> CaptionTable | None:
    try:
        return CaptionTable.open(path)
    except (OSError, KeyError, pyarrow.ArrowException):  # there is none, or it is damaged
        return None


def _write(table: pyarrow.Table, path: Path) -> None:
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        pyarrow.feather.write_feather(table, str(unfinished), compression="uncompressed", chunksize=max(len(table), 1))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
