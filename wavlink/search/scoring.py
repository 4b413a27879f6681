"""Cosines of queries with stored vectors."""

import numpy as np
import pyarrow


def vectors_of(column: pyarrow.Array | pyarrow.ChunkedArray) -> np.ndarray:
    """Return vectors `[N, dim]` fp32 of a column of them, which has no nulls."""
    chunks = column.chunks if isinstance(column, pyarrow.ChunkedArray) else [column]
    width = column.type.list_size
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
    return np.concatenate([np.empty(0, np.float32), *values]).astype(np.float32, copy=False).reshape(-1, width)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors `[N, dim]` L2-normalised, in fp32; NaN where one holds NaN or infinite values."""
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
    with np.errstate(invalid="ignore"):
        return (vectors / np.maximum(norms, 1e-30)).astype(np.float32, copy=False)


def truncated(vectors: np.ndarray, dim: int) -> np.ndarray:
    """Cut vectors to their first `dim`, and normalise them again.

    Args:
        vectors: `[N, D]` with D >= dim, of any norm but zero.

    Returns:
        `[N, dim]` fp32.

    Raises:
        ValueError: wrong shape or dim; a vector with NaN or infinite values, or zero in its first `dim`.
    """
    vectors = np.asanyarray(vectors)
    if dim < 1:
        raise ValueError(f"dim must be 1 or more, not {dim}")
    if vectors.ndim != 2 or vectors.shape[1] < dim:
        raise ValueError(f"vectors must be [N, {dim} or more], not {list(vectors.shape)}")
    cut = np.asarray(vectors[:, :dim], np.float64)  # squares do not overflow
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    if not (good := np.isfinite(norms) & (norms > 0)).all():
        row = int((~good).argmax())
        raise ValueError(f"vector {row} has no direction in {dim} dims: zero, NaN or infinite values")
    return (cut / norms).astype(np.float32)


class Best:
    """The best scores of each query, collected from many blocks of rows.

    Attributes:
        scores: `[Q, k]` fp32, the best first; -inf where there were fewer rows.
    """

    def __init__(self, queries: int, k: int):
        self.scores = np.full((queries, k), -np.inf, np.float32)

    def add(self, scores: np.ndarray) -> None:
        """Add the scores `[Q, n]` of further rows."""
        k = self.scores.shape[1]
        if scores.shape[1] > k:
            scores = -np.partition(-scores, k - 1, 1)[:, :k]
        self.scores = -np.sort(-np.concatenate([self.scores, scores], 1), 1)[:, :k]
