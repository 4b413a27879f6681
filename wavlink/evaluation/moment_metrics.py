"""Metrics of audio moment retrieval: pure functions of found and of relevant windows of recordings.

They are those of Moment-DETR's evaluation of QVHighlights (Lei et al. 2021, arXiv 2107.09609), which Clotho-Moment
(arXiv 2409.15672) and CASTELLA (arXiv 2511.15131) report.
"""

from collections.abc import Sequence

import numpy as np

from .metrics import Correspondence, figure

IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
RECALL_IOUS = (0.5, 0.7)
FIGURES = ("R1@0.5", "R1@0.7", "mAP@0.5", "mAP@0.75", "mAP")
FOUND = 10  # windows of a query that count, as in QVHighlights' evaluation


def overlaps(found: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Compute the intersection over union of each pair of windows, `[F, 2]`, `[R, 2]` -> `[F, R]`.

    Args:
        found, relevant: starts and ends, in any unit; each start is before its end.
    """
    found, relevant = np.reshape(found, (-1, 2)).astype(np.float64), np.reshape(relevant, (-1, 2)).astype(np.float64)
    first, last = np.maximum(found[:, :1], relevant[:, 0]), np.minimum(found[:, 1:], relevant[:, 1])
    shared = np.clip(last - first, 0, None)
    return shared / ((found[:, 1] - found[:, 0])[:, None] + (relevant[:, 1] - relevant[:, 0]) - shared)


def average_precision(iou: np.ndarray, least: float) -> float:
    """Compute the interpolated average precision of a query's found windows at one least IoU.

    Best first, each found window takes the relevant one it overlaps most of those that no better one has taken, if
    their IoU is `least` or more; else it is a false alarm. The result is the area under the largest precision at each
    recall or a higher one (Everingham et al., "The Pascal Visual Object Classes Challenge", 2010).

    Args:
        iou: `[F, R]`, of `overlaps`, best found window first; R is 1 or more.
    """
    taken = np.zeros(iou.shape[1], dtype=bool)
    hits = np.zeros(len(iou), dtype=bool)
    for number, row in enumerate(iou):
        open_ = np.where(taken, -1.0, row)
        best = len(open_) - 1 - int(open_[::-1].argmax())  # of equal ones the last, as in QVHighlights' evaluation
        if open_[best] >= least:
            hits[number] = taken[best] = True
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(np.maximum.accumulate(precision[::-1])[::-1][hits].sum() / iou.shape[1])


def moment_figures(found: Sequence[np.ndarray], relevant: Sequence[np.ndarray], recordings: Sequence[int]) -> dict:
    """Compute R1@0.5, R1@0.7, mAP@0.5, mAP@0.75 and mAP with 95 % bootstrap intervals over recordings.

    R1@x is the share of queries whose best found window has an IoU of x or more with a relevant one. mAP@x is the mean
    of the queries' `average_precision` at x, with their first `FOUND` windows, and mAP its mean over `IOUS`. A query
    without a found window counts 0.

    Args:
        found: of each query `[F, 2]`, best first.
        relevant: of each query `[R, 2]`, one or more.
        recordings: of each query, the index of its recording; the queries of a recording are resampled with it.

    Returns:
        The figures by name, each `{"value", "interval"}` in [0, 1].

    Raises:
        ValueError: there are no queries, or one has no relevant window.
    """
    if not len(relevant) or not all(len(windows) for windows in relevant):
        raise ValueError("moments are scored by queries that have a relevant window each")
    ious = [overlaps(windows, right) for windows, right in zip(found, relevant, strict=True)]
    first = np.array([iou[0].max() if len(iou) else 0.0 for iou in ious])
    precision = np.array([[average_precision(iou[:FOUND], least) for least in IOUS] for iou in ious])
    clips = Correspondence([[recording] for recording in recordings], 1 + max(recordings))
    values = {f"R1@{least:g}": first >= least for least in RECALL_IOUS}
    values |= {f"mAP@{least:g}": precision[:, IOUS.index(least)] for least in (0.5, 0.75)}
    values |= {"mAP": precision.mean(axis=1)}
    return {name: figure(of_queries, clips) for name, of_queries in values.items()}
