"""Probabilities that the hits of a text match it: by the model's calibration, or by the index's own cosines."""

from dataclasses import replace

import numpy as np

from wavlink.embedder import Embedder
from wavlink.probability import Calibration, background_of, calibration_of

from .hits import Hit
from .nearest import scored_by
from .scoring import truncated, unit, vectors_of
from .table import Table

_SAMPLE = 4096  # windows at most, evenly spaced, that a query's background is taken from


def calibration(
    table: Table, embedder: Embedder, vector: np.ndarray, dim: int, windows: int, prior: float | None
) -> Calibration | None:
    """Return what tells probabilities from the cosines of a text's vector `[dims]`: the model's, or the index's.

    Args:
        dim: that is searched.
        windows: of the index.

    Returns:
        None if the model has no calibration at these dims, and the index has too few windows.
    """
    column, dim = scored_by(table, dim)
    model = calibration_of(embedder, dim, prior)
    if model is not None:
        return model
    rows = table.rows()
    numbers = range(0, rows, -(-rows // _SAMPLE))
    sample = table.take(numbers, [column])[column].drop_null()
    query = truncated(vector[None], dim)[0]
    return background_of(unit(vectors_of(sample)[:, :dim]) @ query, windows)


def with_probabilities(
    hits: list[Hit], calibration: Calibration | None, min_probability: float | None, model: str, windows: int
) -> list[Hit]:
    """Return hits with probabilities, without those below `min_probability`; without a calibration as they are.

    Args:
        model, windows: of the index, for the error.

    Raises:
        ValueError: there is no calibration to tell what is below `min_probability`.
    """
    if calibration is None:
        if min_probability is not None:
            raise ValueError(
                f"there are no probabilities: {model} has no calibration (`wavlink calibrate` fits one), and "
                f"{windows} windows are too few, or too alike, to tell what stands out"
            )
        return hits
    matches = calibration.probability(np.array([hit.score for hit in hits])).tolist()
    return [
        replace(hit, probability=match, calibration=calibration.kind)
        for hit, match in zip(hits, matches, strict=True)
        if min_probability is None or match >= min_probability
    ]
