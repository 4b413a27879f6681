"""Windows of long clips, the mean of their vectors, and batches of clips of similar length, which are checked."""

from collections.abc import Sequence

import numpy as np

from .vectors import normalized


def cover(clip: np.ndarray, limit: int | None) -> list[np.ndarray]:
    """Cut a clip `[samples]` into the fewest windows of `limit` samples that cover it, evenly spaced.

    A clip of at most `limit` samples, or any clip if `limit` is None, is a single window.
    """
    count = -(-len(clip) // (limit or len(clip)))
    starts = [number * (len(clip) - limit) // (count - 1) for number in range(count)] if count > 1 else [0]
    return [clip[start : start + limit] for start in starts] if count > 1 else [clip]


def mean_direction(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of the vectors `[D]` of a file's windows, L2-normalised; a single vector stays unchanged."""
    if len(vectors) == 1:
        return vectors[0]
    return normalized(np.sum(vectors, axis=0))


def cut_batches(costs: Sequence[int], budget: int, padding: float = 0.25, most: int | None = None) -> list[list[int]]:
    """Sort clips into batches of similar cost, shortest first.

    Args:
        costs: samples that the model processes for each clip.
        budget: the most that a batch costs: its clips times the longest. A single clip may cost more.
        padding: the share by which a batch may pad its shortest clip.
        most: the most clips in a batch (default: no limit).

    Returns:
        The indices of the clips in each batch.
    """
    batches = []
    for index in sorted(range(len(costs)), key=costs.__getitem__):
        batch = batches[-1] if batches else []
        fits = 0 < len(batch) < (most or len(costs)) and (len(batch) + 1) * costs[index] <= budget
        if fits and costs[index] <= (1 + padding) * costs[batch[0]]:
            batch.append(index)
        else:
            batches.append([index])
    return batches


def refuse_other_samples(clip: np.ndarray, index: int) -> None:
    """Raise a ValueError unless a clip is mono `[samples]` of finite floats and not empty."""
    if clip.ndim != 1 or not len(clip) or clip.dtype.kind != "f" or not np.isfinite(clip).all():
        raise ValueError(
            f"clip {index} must be mono, [samples], of finite floats in [-1, 1] and not empty, got "
            f"{list(clip.shape)} of {clip.dtype}"
        )
