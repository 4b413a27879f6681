"""Near-duplicate sounds of an index, by their stored vectors."""

import numpy as np
import pyarrow
import pyarrow.compute as pc

from .hits import Hit, hit_of
from .manifest import VECTORS
from .stored import file_vectors
from .table import Table

MIN_SCORE = 0.98
_SAME_DURATION = 0.9  # the shorter one has at least this share of the longer one's seconds
_ROWS, _COLUMNS = 512, 8192  # of a block of cosines: 16 MB


def duplicates(
    table: Table, min_score: float = MIN_SCORE, any_duration: bool = False, root: str = ""
) -> list[list[Hit]]:
    """Find groups of files that are nearly the same, the largest first.

    Two files are nearly the same if the cosine of their vectors is at least `min_score` and the shorter one lasts at
    least 90 % as long as the longer one. A group holds all files that a chain of such pairs connects. Cosines are
    computed a block at a time; files are sorted by their duration, so that most blocks need not be.

    Args:
        any_duration: compare files of any durations.
        root: the folder that holds the sounds (default: the one in the index).

    Returns:
        Of each group its files in the order of their paths, with the cosine with the first as the score.

    Raises:
        ValueError: `min_score` is not from -1 to 1.
    """
    if not -1 <= min_score <= 1:
        raise ValueError(f"min_score is a cosine, from -1 to 1, not {min_score}")
    paths, seconds = _files(table)
    vectors = file_vectors(table, paths)
    order = np.argsort(seconds, kind="stable")
    groups = _groups(vectors[order], np.zeros(len(order)) if any_duration else seconds[order], min_score)
    members = [sorted(order[group].tolist(), key=lambda n: paths[n]) for group in groups]
    members.sort(key=lambda group: (-len(group), paths[group[0]]))
    rows = _rows(table, [paths[n] for group in members for n in group])
    return [
        [hit_of(table, rows[paths[n]], float(vectors[n] @ vectors[group[0]]), root) for n in group]
        for group in members
    ]


def _files(table: Table) -> tuple[list[str], np.ndarray]:
    """Return the paths of all files with vectors, and their durations in seconds, NaN where that is not known."""
    batches = [*table.scan(["path", "duration"], "error = '' and window = 0")]
    paths = [path for batch in batches for path in batch["path"].to_pylist()]
    seconds = [batch["duration"].to_numpy(zero_copy_only=False) for batch in batches]
    return paths, np.concatenate([np.empty(0), *seconds])


def _groups(vectors: np.ndarray, seconds: np.ndarray, min_score: float) -> list[np.ndarray]:
    """Return the numbers of those files that are in a group of two or more; they are in the order of their seconds."""
    count = int(np.isfinite(seconds).sum())  # NaN are the last
    parents = np.arange(len(vectors))
    for start in range(0, count, _ROWS):
        end = min(start + _ROWS, count)
        last = int(np.searchsorted(seconds[:count], seconds[end - 1] / _SAME_DURATION, side="right"))
        for first in range(start, last, _COLUMNS):
            columns = slice(first, min(first + _COLUMNS, last))
            rows, others = _roots(parents, np.arange(start, end)), _roots(parents, np.arange(first, columns.stop))
            apart = rows[:, None] != others[None]
            if apart.any():
                near = (vectors[start:end] @ vectors[columns].T >= min_score) & apart
                near &= seconds[start:end, None] >= _SAME_DURATION * seconds[None, columns]
                _join(parents, *np.nonzero(near), start, first)
    roots = _roots(parents, np.arange(len(parents)))
    found = np.argsort(roots, kind="stable")
    cuts = np.flatnonzero(np.diff(roots[found])) + 1
    return [group for group in np.split(found, cuts) if len(group) > 1]


def _join(parents: np.ndarray, rows: np.ndarray, columns: np.ndarray, start: int, first: int) -> None:
    """Join the groups of near pairs: in each round every group with one other, until no pair has two groups."""
    ones, others = rows + start, columns + first
    while True:
        ones, others = _roots(parents, ones), _roots(parents, others)
        new = ones != others
        if not new.any():
            return
        ones, others = ones[new], others[new]
        groups, at = np.unique(others, return_index=True)
        for one, other in zip(ones[at].tolist(), groups.tolist(), strict=True):
            one, other = (int(_roots(parents, np.array([n]))[0]) for n in (one, other))
            parents[max(one, other)] = min(one, other)


def _roots(parents: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the number that stands for each one's group, and let it be found at once the next time."""
    roots = parents[numbers]
    while ((above := parents[roots]) != roots).any():
        roots = above
    parents[numbers] = roots
    return roots


def _rows(table: Table, paths: list[str]) -> dict[str, dict]:
    """Return the first row of each file, with its end in place of that of its first window."""
    names = [name for name in table.schema.names if name not in VECTORS]
    wanted, found = pyarrow.array(paths, pyarrow.string()), {}
    for batch in table.scan(names, "error = '' and window = 0") if paths else ():
        for row in batch.filter(pc.is_in(batch["path"], wanted)).to_pylist():
            found[row["path"]] = row | {"end": row["end"] if row["duration"] is None else row["duration"]}
    return found
