"""Seconds of files, kept on disk, so that each is opened once: by one process, and in one run."""

import hashlib
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import filelock
import huggingface_hub
import numpy as np
import pyarrow
import pyarrow.compute as pc
import pyarrow.feather

_WORKERS, _FILES_A_TASK = 16, 1024  # threads that ask for the size of files


class KeptSeconds:
    """Seconds of files by path, size and time of change, in one Arrow file for all files below a folder.

    The Arrow file lies in `HF_HOME/wavlink/durations`. Where files are new or have changed, one process opens them
    while the others of the machine wait for it.

    Args:
        paths: absolute.
    """

    def __init__(self, paths: list[str]):
        folder = Path(huggingface_hub.constants.HF_HOME) / "wavlink" / "durations"
        top = os.path.commonpath([os.path.dirname(path) for path in paths])
        self.file = folder / f"{hashlib.sha256(os.fsencode(top)).hexdigest()[:16]}.arrow"
        self.paths = paths

    def read(self, measure: Callable[[list[str]], np.ndarray]) -> np.ndarray:
        """float64 `[n]`; `measure` gives the seconds of those that are not known yet, NaN of what cannot be read."""
        sizes, times = _sizes_and_times(self.paths).T
        paths = pyarrow.array(self.paths, pyarrow.large_string())
        seconds = self._known(paths, sizes, times)
        if not np.isnan(seconds).any():
            return seconds
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{self.file}.lock"):
            seconds = self._known(paths, sizes, times)  # another process may have been first
            missing = np.flatnonzero(np.isnan(seconds))
            seconds[missing] = measure([self.paths[place] for place in missing])
            if not np.isnan(seconds[missing]).all():
                self._keep(paths, sizes, times, seconds)
        return seconds

    def _known(self, paths: pyarrow.Array, sizes: np.ndarray, times: np.ndarray) -> np.ndarray:
        """NaN where a file is new, has changed or could not be read, which a repaired or added decoder may."""
        seconds = np.full(len(paths), np.nan)
        if (table := self._table()) is None:
            return seconds
        place = pc.index_in(paths, value_set=table["path"].combine_chunks())
        known = np.flatnonzero(place.is_valid())
        rows = place.drop_null().to_numpy()
        same = (table["size"].to_numpy()[rows] == sizes[known]) & (table["time"].to_numpy()[rows] == times[known])
        seconds[known[same]] = table["seconds"].to_numpy()[rows[same]]
        return seconds

    def _table(self) -> pyarrow.Table | None:
        try:
            return pyarrow.feather.read_table(self.file, memory_map=True)
        except (OSError, pyarrow.ArrowException):  # there is none, or it is damaged: it is written anew
            return None

    def _keep(self, paths: pyarrow.Array, sizes: np.ndarray, times: np.ndarray, seconds: np.ndarray) -> None:
        read = pyarrow.array(~np.isnan(seconds))
        columns = {"path": paths, "size": sizes, "time": times, "seconds": seconds}
        table = pyarrow.table(columns).filter(read)
        if (before := self._table()) is not None:
            others = pc.invert(pc.is_in(before["path"], value_set=paths))
            table = pyarrow.concat_tables([before.filter(others), table])
        unfinished = self.file.with_suffix(f".{os.getpid()}")
        try:
            pyarrow.feather.write_feather(table, str(unfinished), compression="uncompressed")
            os.replace(unfinished, self.file)
        finally:
            unfinished.unlink(missing_ok=True)


def _sizes_and_times(paths: list[str]) -> np.ndarray:
    """float64 `[n, 2]`."""
    tasks = [paths[start : start + _FILES_A_TASK] for start in range(0, len(paths), _FILES_A_TASK)]
    with ThreadPoolExecutor(_WORKERS) as pool:
        found = pool.map(lambda task: [_size_and_time(path) for path in task], tasks)
        return np.array(list(chain.from_iterable(found)), np.float64).reshape(-1, 2)


def _size_and_time(path: str) -> tuple[float, float]:
    """Bytes and time of change in seconds of a file, -1 of what is none."""
    try:
        known = os.stat(path)
    except OSError:
        return -1, -1
    return (known.st_size, known.st_mtime) if stat.S_ISREG(known.st_mode) else (-1, -1)
