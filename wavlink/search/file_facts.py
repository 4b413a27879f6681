"""What the rows of a table say of each file."""

from collections.abc import Iterable

import numpy as np
import pyarrow
import pyarrow.compute as pc

from .changes import KnownFile

FILE_FACTS = ["path", "window", "size", "version", "windows", "error"]
UNKNOWN = -2  # a version that no file has
_SAME = ("size", "version")  # of all rows of a file


def files_of(batches: Iterable[pyarrow.RecordBatch]) -> dict[str, KnownFile]:
    """Add up rows by path; where those of a file do not fit together, its version is one that no file has.

    Args:
        batches: of `FILE_FACTS`.
    """
    files = _by_path(batches)
    if files is None:
        return {}
    skipped = pc.not_equal(files["error"], "").to_numpy()
    rows = np.where(skipped, 0, files["rows"].to_numpy())
    windows, last = files["windows"].to_numpy(), files["window_max"].to_numpy()
    fits = (files["window_min"].to_numpy() == 0) & (last + 1 == rows)
    fits &= files["window_sum"].to_numpy() == rows * (rows - 1) // 2  # no number twice
    fits &= (windows < 0) | (windows >= rows)
    fits |= skipped
    for name in _SAME:
        fits &= files[f"{name}_min"].to_numpy() == files[f"{name}_max"].to_numpy()
    versions = np.where(fits, files["version_max"].to_numpy(), UNKNOWN)
    facts = (files["size_max"], pyarrow.array(versions), pyarrow.array(rows), files["windows"], files["error"])
    known = (KnownFile(*each) for each in zip(*(column.to_pylist() for column in facts), strict=True))
    return dict(zip(files["path"].to_pylist(), known, strict=True))


def doubled(batches: Iterable[pyarrow.RecordBatch]) -> list[str]:
    """Return the paths of files that have more rows than numbers of windows.

    Args:
        batches: of `FILE_FACTS`.
    """
    files = _by_path(batches)
    if files is None:
        return []
    span = pc.add(pc.subtract(files["window_max"], files["window_min"]), 1)
    return files.filter(pc.greater(files["rows"], span))["path"].to_pylist()


def _by_path(batches: Iterable[pyarrow.RecordBatch]) -> pyarrow.Table | None:
    """Return a row per path, None without any."""
    groups = [_grouped(pyarrow.Table.from_batches([batch])) for batch in batches]
    return _grouped_again(pyarrow.concat_tables(groups)) if groups else None


def _grouped(table: pyarrow.Table) -> pyarrow.Table:
    """Return a row per path of a batch."""
    sums = [("window", how) for how in ("count", "sum", "min", "max")]
    same = [(name, how) for name in _SAME for how in ("min", "max")]
    grouped = table.group_by("path").aggregate([*sums, *same, ("windows", "min"), ("error", "max")])
    names = {"window_count": "rows", "windows_min": "windows", "error_max": "error"}
    return grouped.rename_columns([names.get(name, name) for name in grouped.column_names])


def _grouped_again(groups: pyarrow.Table) -> pyarrow.Table:
    """Return a row per path of the rows of several batches."""
    hows = {
        "rows": "sum",
        "window_sum": "sum",
        "window_min": "min",
        "window_max": "max",
        "windows": "min",
        "error": "max",
    }
    hows |= {f"{name}_{how}": how for name in _SAME for how in ("min", "max")}
    grouped = groups.group_by("path").aggregate([*hows.items()])
    names = {f"{name}_{how}": name for name, how in hows.items()}
    return grouped.rename_columns([names.get(name, name) for name in grouped.column_names])
