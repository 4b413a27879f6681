"""Ranks, metrics and confidence intervals: pure functions of similarities and of the relevant candidates.

Everything works on blocks of rows, so `Similarities` and `Correspondence` of 100,000 x 500,000 need about 1 GB.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

KS = (1, 5, 10)
RESAMPLES = 1000  # of the bootstrap
_BLOCK = 1 << 25  # similarities at once: 128 MB of fp32
_COLUMNS = 1 << 16  # in fp64 at once
_DRAWN = 1 << 16  # clips drawn at once


class Similarities:
    """`rows @ columns.T`, computed a block of rows at a time: `similarities[3:5]` is `[2, columns]`.

    Sums are in fp64 and then rounded. In fp32 the order of a sum depends on the number of rows and columns, so equal
    vectors would not tie.

    Args:
        rows: `[R, D]`; columns: `[C, D]`; L2-normalised if cosines are wanted.
    """

    def __init__(self, rows: torch.Tensor, columns: torch.Tensor):
        self.rows, self.columns = rows, columns
        self.shape = len(rows), len(columns)

    def __getitem__(self, part: slice) -> np.ndarray:
        rows = self.rows[part].double()
        blocks = [(rows @ columns.double().T).to(self.rows.dtype) for columns in self.columns.split(_COLUMNS)]
        return torch.cat(blocks, dim=1).numpy()

    @property
    def T(self) -> "Similarities":
        return Similarities(self.columns, self.rows)


class Correspondence:
    """The relevant candidates of each query, `[queries, candidates]`, as pairs (`queries[i]`, `indices[i]`).

    Args:
        answers: of each query, the distinct indices of its relevant candidates.
        candidates: their number.
    """

    def __init__(self, answers: Sequence[Sequence[int]], candidates: int):
        self.counts = np.array([len(row) for row in answers], dtype=np.int64)
        self.indices = np.fromiter((i for row in answers for i in row), np.int64, self.counts.sum())
        self.offsets = np.concatenate([[0], np.cumsum(self.counts)])
        self.shape = len(answers), candidates
        self.queries = np.repeat(np.arange(len(answers)), self.counts)

    def select(self, queries: np.ndarray) -> "Correspondence":
        """Return the correspondence of some queries, in the order given."""
        return Correspondence(
            [self.indices[self.offsets[query] : self.offsets[query + 1]] for query in queries], self.shape[1]
        )

    @property
    def T(self) -> "Correspondence":
        order = np.argsort(self.indices, kind="stable")
        ends = np.cumsum(np.bincount(self.indices, minlength=self.shape[1]))[:-1]
        return Correspondence(np.split(self.queries[order], ends), self.shape[0])

    def sum(self, axis: int) -> np.ndarray:
        """Count each query's candidates (axis 1) or each candidate's queries (axis 0)."""
        return self.counts if axis == 1 else np.bincount(self.indices, minlength=self.shape[1])


@dataclass
class Ranked:
    """Of each query: the rank, from 1, of its best relevant candidate, and its average precision at 10."""

    first: np.ndarray
    average_precision: np.ndarray


def ranked(
    similarities: np.ndarray | Similarities, correspondence: np.ndarray | Correspondence, k: int = 10
) -> Ranked:
    """Rank each query's candidates by similarity, the largest first.

    Ties count against the model: an irrelevant candidate with the same similarity goes first.

    Args:
        similarities: `[queries, candidates]`, an array or `Similarities`.
        correspondence: bool `[queries, candidates]`, true where a candidate is relevant to a query, or
            `Correspondence`.
        k: of the average precision: the sum over j of the precision at the j-th relevant candidate, if it is among the
            first `k`, divided by min(k, relevant candidates).

    Raises:
        ValueError: different shapes, no queries, a query without a relevant candidate, or NaN or infinite values.
    """
    similarities = similarities if isinstance(similarities, Similarities) else np.asarray(similarities)
    if not isinstance(correspondence, Correspondence):
        correspondence = np.asarray(correspondence, dtype=bool)
    if similarities.shape != correspondence.shape or len(similarities.shape) != 2:
        raise ValueError(
            f"similarities {list(similarities.shape)} and correspondence {list(correspondence.shape)} must be alike, "
            "[queries, candidates]"
        )
    if not similarities.shape[0]:
        raise ValueError("there are no queries to rank")
    size = max(1, _BLOCK // max(similarities.shape[1], 1))
    blocks = [
        _ranked_block(similarities, correspondence, slice(start, min(start + size, similarities.shape[0])), k)
        for start in range(0, similarities.shape[0], size)
    ]
    return Ranked(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


def _ranked_block(similarities, correspondence, part: slice, k: int) -> tuple[np.ndarray, np.ndarray]:
    queries, candidates = _answers(correspondence, part)
    counts = np.bincount(queries, minlength=part.stop - part.start)
    if not counts.all():
        raise ValueError(f"query {part.start + counts.argmin()} has no relevant candidate")
    rows = similarities[part]
    rows = np.array(rows, dtype=np.result_type(rows.dtype, np.float32))  # a copy, to be written into
    if not np.isfinite([rows.min(), rows.max()]).all():
        raise ValueError("similarities hold NaN or infinite values")
    right = np.full((len(rows), counts.max()), -np.inf, rows.dtype)
    right[queries, np.arange(len(queries)) - np.repeat(np.cumsum(counts) - counts, counts)] = rows[queries, candidates]
    right = -np.sort(-right, axis=1)  # the best first
    rows[queries, candidates] = -np.inf  # the remaining ones are wrong
    rows, right = torch.from_numpy(rows), torch.from_numpy(right)
    position = first = 1 + (rows >= right[:, :1]).sum(1)
    precision = torch.where(first <= k, 1 / first.double(), 0.0)
    for j in range(1, min(k, right.shape[1])):
        remaining = (position < k) & right[:, j].isfinite()  # the one before is among the first k, and one is left
        position = torch.full_like(position, k + 1)
        position[remaining] = j + 1 + (rows[remaining] >= right[remaining, j : j + 1]).sum(1)
        precision += torch.where(position <= k, (j + 1) / position.double(), 0.0)
    return first.numpy(), (precision / torch.from_numpy(counts).clamp(max=k)).numpy()


def _answers(correspondence, part: slice) -> tuple[np.ndarray, np.ndarray]:
    """Queries, counted from the block's first, and their relevant candidates, query after query."""
    if not isinstance(correspondence, Correspondence):
        return np.nonzero(correspondence[part])
    first, last = correspondence.offsets[[part.start, part.stop]]
    return correspondence.queries[first:last] - part.start, correspondence.indices[first:last]


def ranks(similarities: np.ndarray | Similarities, correspondence: np.ndarray | Correspondence) -> np.ndarray:
    """Return the rank, from 1, of each query's best relevant candidate, `[queries]`; arguments as for `ranked`."""
    return ranked(similarities, correspondence).first


def recall_at_k(similarities: np.ndarray | Similarities, correspondence: np.ndarray | Correspondence, k: int) -> float:
    """Compute the share of queries with a relevant candidate among the first `k`; arguments as for `ranked`."""
    return float((ranks(similarities, correspondence) <= k).mean())


def mean_average_precision(
    similarities: np.ndarray | Similarities, correspondence: np.ndarray | Correspondence, k: int = 10
) -> float:
    """Compute mAP@k; arguments as for `ranked`."""
    return float(ranked(similarities, correspondence, k).average_precision.mean())


def chance_recall(correspondence: np.ndarray | Correspondence, k: int) -> float:
    """Compute the chance level of `recall_at_k`: the mean of 1 - C(n - r, k) / C(n, k), with r relevant of n."""
    candidates = correspondence.shape[1]
    drawn = np.arange(min(k, candidates))
    misses = np.clip(candidates - correspondence.sum(axis=1)[:, None] - drawn, 0, None) / (candidates - drawn)
    return float(1 - misses.prod(axis=1).mean())


def zero_shot_accuracy(similarities: np.ndarray, targets: np.ndarray, k: int = 1) -> float:
    """Compute the share of clips whose label is among the `k` most similar; ties count against the model.

    Args:
        similarities: `[clips, labels]`.
        targets: `[clips]`, the index of the right label.
    """
    similarities, targets = np.asarray(similarities), np.asarray(targets)
    labels = similarities.shape[1]
    if not (within := (targets >= 0) & (targets < labels)).all():
        wrong = targets[~within][0]
        raise ValueError(f"targets must be between 0 and {labels - 1}, the last of the labels, got {wrong}")
    return recall_at_k(similarities, np.arange(labels) == targets[:, None], k)


def multiple_choice_hits(similarities: Sequence[np.ndarray], targets: Sequence[int]) -> np.ndarray:
    """Return whether each right choice is strictly the most similar, bool `[questions]`.

    Questions may differ in their number of choices.
    """
    rows = [
        ranks(np.asarray(row)[None], np.arange(len(row))[None] == target)[0]
        for row, target in zip(similarities, targets, strict=True)
    ]
    return np.array(rows) <= 1


def multiple_choice_accuracy(similarities: Sequence[np.ndarray], targets: Sequence[int]) -> float:
    """Compute the share of questions whose right choice is strictly the most similar (see `multiple_choice_hits`)."""
    return float(multiple_choice_hits(similarities, targets).mean())


def figure(
    values: np.ndarray,
    clips: Correspondence | None = None,
    only: np.ndarray | None = None,
    median: bool = False,
) -> dict:
    """Compute the mean (or median) over queries and its 95 % bootstrap interval over clips: `{"value", "interval"}`.

    The captions of a clip are drawn with it, since they are no independent evidence; a caption of n clips counts in
    n parts (cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).

    Args:
        values: `[queries]`, such as hits or ranks.
        clips: the clips of each query; by default each query is a clip.
        only: the clips to count, by index; default: all. Clips that no query belongs to never count.
    """
    values = np.asarray(values, dtype=np.float64)
    clips = Correspondence([[query] for query in range(len(values))], len(values)) if clips is None else clips
    chosen = np.unique(clips.indices)
    chosen = chosen if only is None else np.intersect1d(chosen, only)
    if not len(chosen):
        raise ValueError("there are no clips to take a mean over")
    return bootstrap((_weighted_median if median else _weighted_mean)(values, clips), chosen, clips.shape[1])


def bootstrap(statistic: Callable[[np.ndarray], Sequence[float]], chosen: np.ndarray, clips: int) -> dict:
    """Compute a statistic of a collection and its 95 % bootstrap interval over clips: `{"value", "interval"}`.

    Args:
        statistic: of `[draws, clips]`, how often each clip is drawn, to `[draws]`.
        chosen: the clips that are drawn, by index.
        clips: their number, the others included.
    """
    drawn = [statistic(counts) for counts in _draws(chosen, clips)]
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5])
    value = statistic(np.bincount(chosen, minlength=clips)[None])[0]
    return {"value": float(value), "interval": [float(low), float(high)]}


def _draws(chosen: np.ndarray, clips: int) -> Iterator[np.ndarray]:
    """`[draws, clips]`: how often each clip is among as many drawn from `chosen`, a block of draws at a time."""
    rng, block = np.random.default_rng(0), max(1, _DRAWN // clips)
    for start in range(0, RESAMPLES, block):
        draws = min(block, RESAMPLES - start)
        drawn = chosen[rng.integers(len(chosen), size=(draws, len(chosen)))] + clips * np.arange(draws)[:, None]
        yield np.bincount(drawn.ravel(), minlength=draws * clips).reshape(draws, clips)


def members_of(groups: Sequence[str | None]) -> dict[str, np.ndarray]:
    """Return the indices of each group's members, groups sorted by name; None and "" are no groups."""
    return {
        name: np.flatnonzero([group == name for group in groups])
        for name in sorted({group for group in groups if group})
    }


def percent(figure: Mapping, signed: bool = False) -> str:
    """Format a figure and its interval: `43.2 [40.0, 50.0]`, or a difference: `+0.3 [-1.0, +1.6]`."""
    form = "+.1f" if signed else ".1f"
    value, low, high = (format(100 * x, form) for x in (figure["value"], *figure["interval"]))
    return f"{value} [{low}, {high}]"


def _weighted_mean(values: np.ndarray, clips: Correspondence) -> Callable[[np.ndarray], np.ndarray]:
    """A function of `[draws, clips]`, how often each is drawn, to `[draws]`."""
    parts = np.repeat(1 / clips.counts, clips.counts)
    weights = np.bincount(clips.indices, parts, minlength=clips.shape[1])
    sums = np.bincount(clips.indices, parts * values[clips.queries], minlength=clips.shape[1])
    both = np.stack([sums, weights])
    return lambda drawn: np.divide(*(both @ drawn.T.astype(np.float64)))


def _weighted_median(values: np.ndarray, clips: Correspondence) -> Callable[[np.ndarray], list[float]]:
    order = np.argsort(values, kind="stable")
    parts, queries, ordered = np.repeat(1 / clips.counts, clips.counts), clips.queries, values[order]

    def median(drawn: np.ndarray) -> float:
        reached = np.cumsum(np.bincount(queries, parts * drawn[clips.indices], minlength=len(values))[order])
        half = reached[-1] / 2
        below, above = np.searchsorted(reached, half * (1 - 1e-9)), np.searchsorted(reached, half * (1 + 1e-9))
        return (ordered[below] + ordered[above]) / 2

    return lambda drawn: [median(counts) for counts in drawn]
