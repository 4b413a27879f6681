"""Near-duplicate sounds of an index, by their stored vectors."""

import math
from collections.abc import Iterator

import numpy as np

from .hits import Hit, hit_of
from .nearest import rows_by_id
from .scoring import unit, vectors_of
from .table import Table

MIN_SCORE = 0.98
_SAME_DURATION = 0.9  # the shorter one has at least this share of the longer one's seconds
_MANY, _FEW = 8192, 512  # of a block of cosines: 16 MB
_A_CENTRE = 256  # files around each centre, about
_CENTRES = 16  # that all files are compared with at once
_MOST_CENTRES = 4096
_COMPARED = 4096  # so many files are all compared with each other
_ROUNDING = 1e-4  # of a cosine in fp32


def duplicates(
    table: Table, min_score: float = MIN_SCORE, any_duration: bool = False, root: str = ""
) -> list[list[Hit]]:
    """Find groups of files that are nearly the same, the largest first.

    Two files are nearly the same if the cosine of their vectors is at least `min_score` and the shorter one lasts at
    least 90 % as long as the longer one. A group holds all files that a chain of such pairs connects. Cosines are
    computed a block at a time, and none of files that lie too far apart by their centres (see `_compared`).

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
    paths, seconds, ids, vectors = _files(table)
    kept = np.flatnonzero(np.isfinite(seconds) | any_duration)
    groups = _groups(vectors[kept], None if any_duration else seconds[kept], min_score)
    members = [sorted(kept[group].tolist(), key=lambda n: paths[n]) for group in groups]
    members.sort(key=lambda group: (-len(group), paths[group[0]]))
    numbers = [n for group in members for n in group]
    rows = rows_by_id(table, ids[numbers]).to_pylist() if numbers else []
    facts = {n: row | {"end": row["duration"] or row["end"]} for n, row in zip(numbers, rows, strict=True)}
    return [[hit_of(table, facts[n], float(vectors[n] @ vectors[group[0]]), root) for n in group] for group in members]


def _files(table: Table) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Read all files with vectors, in one scan.

    Returns:
        Their paths, their durations in seconds (NaN where that is not known), the ids of their first rows, and
        `[N, dim]` fp32, the mean directions of their windows.
    """
    numbers: dict[str, int] = {}
    seconds, ids, sums = np.empty(0), np.empty(0, np.uint64), np.empty((0, table.manifest.dim))
    for batch in table.scan(["path", "window", "duration", "embedding"], "error = ''", with_row_id=True):
        table.without_nulls(batch.select(["path", "window", "embedding"]))
        paths = batch["path"].dictionary_encode()
        of_path = [numbers.setdefault(path, len(numbers)) for path in paths.dictionary.to_pylist()]
        files = np.array(of_path, int)[paths.indices.to_numpy()]
        if len(numbers) > len(sums):
            more = max(len(numbers), 2 * len(sums)) - len(sums)
            seconds, ids = np.pad(seconds, (0, more), constant_values=np.nan), np.pad(ids, (0, more))
            sums = np.pad(sums, ((0, more), (0, 0)))
        np.add.at(sums, files, unit(vectors_of(batch["embedding"])))
        first = batch["window"].to_numpy() == 0
        seconds[files[first]] = batch["duration"].to_numpy(zero_copy_only=False)[first]
        ids[files[first]] = batch["_rowid"].to_numpy()[first]
    count = len(numbers)
    return [*numbers], seconds[:count], ids[:count], unit(sums[:count])


def _groups(vectors: np.ndarray, seconds: np.ndarray | None, min_score: float) -> list[np.ndarray]:
    """Return the numbers of those files that are in a group of two or more.

    Args:
        seconds: the durations, which are to be about the same; None: any.
    """
    parents = np.arange(len(vectors))
    for ones, others in _compared(vectors, min_score):
        near = vectors[ones] @ vectors[others].T >= min_score
        if near.any():
            near &= _roots(parents, ones)[:, None] != _roots(parents, others)[None]
            rows, columns = np.nonzero(near)
            pairs = ones[rows], others[columns]
            if seconds is not None:
                shorter, longer = np.sort([seconds[pairs[0]], seconds[pairs[1]]], 0)
                pairs = tuple(each[shorter >= _SAME_DURATION * longer] for each in pairs)
            _join(parents, *pairs)
    roots = _roots(parents, np.arange(len(parents)))
    found = np.argsort(roots, kind="stable")
    cuts = np.flatnonzero(np.diff(roots[found])) + 1
    return [group for group in np.split(found, cuts) if len(group) > 1]


def _compared(vectors: np.ndarray, min_score: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of lists of files, so that each pair of files with a cosine of `min_score` is in one of them.

    Each file belongs to its nearest centre. Let p be that of a file b, and q that of a file a, so that b (q - p) <= 0.
    Then a (q - p) <= (a - b) (q - p) <= |a - b| |q - p|: otherwise a is not compared with the files of p.
    """
    centres = _centres(vectors)
    count, distance = len(centres), math.sqrt(2 - 2 * min_score)  # of two unit vectors
    nearest, own = np.empty(len(vectors), int), np.empty(len(vectors), np.float32)
    for at in range(0, len(vectors), _MANY):
        cosines = vectors[at : at + _MANY] @ centres.T
        nearest[at : at + _MANY], own[at : at + _MANY] = np.argmax(cosines, 1), cosines.max(1)
    for centre in range(count):
        if centre % _CENTRES == 0:
            cosines = vectors @ centres[centre : centre + _CENTRES].T
        most = distance * np.linalg.norm(centres - centres[centre], axis=1) + _ROUNDING
        near = own - cosines[:, centre % _CENTRES] <= most[nearest]
        ones = np.flatnonzero(near & (nearest >= centre))  # a pair of centres once
        others = np.flatnonzero(nearest == centre)
        for first in range(0, len(others), _FEW):
            for at in range(0, len(ones), _MANY):
                yield ones[at : at + _MANY], others[first : first + _FEW]


def _centres(vectors: np.ndarray) -> np.ndarray:
    """Return centres `[C, dim]` that the files lie around: some of them, moved once to the mean of the nearest."""
    if len(vectors) <= _COMPARED:
        return np.zeros((1, vectors.shape[1]), np.float32)
    random, count = np.random.default_rng(0), min(len(vectors) // _A_CENTRE, _MOST_CENTRES)
    sample = random.choice(len(vectors), min(len(vectors), 16 * count), replace=False)
    centres = vectors[sample[:count]]
    sums = centres.astype(np.float64)
    for at in range(0, len(sample), _MANY):
        some = vectors[sample[at : at + _MANY]]
        np.add.at(sums, np.argmax(some @ centres.T, 1), some)
    return unit(sums)


def _join(parents: np.ndarray, ones: np.ndarray, others: np.ndarray) -> None:
    """Join the groups of near pairs: in each round every group with one other, until no pair has two groups."""
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
