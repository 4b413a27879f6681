"""Cache of the durations of files, so that each file is opened once, by one process."""

import hashlib
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import filelock
import numpy as np
import pyarrow
import pyarrow.compute as pc

from .arrow_files import cache_folder, read_table, write_table

_WORKERS, _FILES_A_TASK = 16, 1024  # threads that stat files


class KeptSeconds:
    """Durations of files by path, size and time of change, in one Arrow file for all files below a folder.

    The Arrow file is in `HF_HOME/wavlink/durations`. One process opens new and changed files while the others of the
    machine wait for it.

    Args:
        paths: absolute.
    """

    def __init__(self, paths: list[str]):
        top = os.path.commonpath([os.path.dirname(path) for path in paths])
        self.file = cache_folder("durations") / f"{hashlib.sha256(os.fsencode(top)).hexdigest()[:16]}.arrow"
        self.paths = paths

    def read(self, measure: Callable[[list[str]], np.ndarray]) -> np.ndarray:
        """Return the seconds of each file, float64 `[n]`, NaN where it cannot be read.

        Args:
            measure: computes the seconds of new and changed files.
        """
        sizes, times = _sizes_and_times(self.paths).T
        paths = pyarrow.array(self.paths, pyarrow.large_string())
        seconds = self._known(paths, sizes, times)
        if not np.isnan(seconds).any():
            return seconds
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{self.file}.lock"):
            seconds = self._known(paths, sizes, times)  # another process may have been first
            missing = np.flatnonzero(np.isnan(seconds))
            seconds[missing] = measure([self.paths[index] for index in missing])
            if not np.isnan(seconds[missing]).all():
                self._keep(paths, sizes, times, seconds)
        return seconds

    def _known(self, paths: pyarrow.Array, sizes: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Return the cached seconds; NaN where a file is new, has changed or could not be read before."""
        seconds = np.full(len(paths), np.nan)
        if (table := self._table()) is None:
            return seconds
        indices = pc.index_in(paths, value_set=table["path"].combine_chunks())
        known = np.flatnonzero(indices.is_valid())
        rows = indices.drop_null().to_numpy()
        same = (table["size"].to_numpy()[rows] == sizes[known]) & (table["time"].to_numpy()[rows] == times[known])
        seconds[known[same]] = table["seconds"].to_numpy()[rows[same]]
        return seconds

    def _table(self) -> pyarrow.Table | None:
        try:
            return read_table(self.file)
        except (OSError, pyarrow.ArrowException):  # missing or damaged: it is written again
            return None

    def _keep(self, paths: pyarrow.Array, sizes: np.ndarray, times: np.ndarray, seconds: np.ndarray) -> None:
        read = pyarrow.array(~np.isnan(seconds))
        columns = {"path": paths, "size": sizes, "time": times, "seconds": seconds}
        table = pyarrow.table(columns).filter(read)
        if (older := self._table()) is not None:
            others = pc.invert(pc.is_in(older["path"], value_set=paths))
            table = pyarrow.concat_tables([older.filter(others), table])
        write_table(table, self.file)


def _sizes_and_times(paths: list[str]) -> np.ndarray:
    """Return bytes and times of change of files, float64 `[n, 2]`."""
    tasks = [paths[start : start + _FILES_A_TASK] for start in range(0, len(paths), _FILES_A_TASK)]
    with ThreadPoolExecutor(_WORKERS) as pool:
        results = pool.map(lambda task: [_size_and_time(path) for path in task], tasks)
        return np.array(list(chain.from_iterable(results)), np.float64).reshape(-1, 2)


def _size_and_time(path: str) -> tuple[float, float]:
    """Return a file's bytes and its time of change in seconds, -1 for anything else."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return (status.st_size, status.st_mtime) if stat.S_ISREG(status.st_mode) else (-1, -1)
