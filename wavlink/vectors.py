"""Arithmetic of vectors that is the same for numpy arrays and torch tensors, without importing torch."""

from typing import Any

import numpy as np


def normalized(vectors: Any) -> Any:
    """L2-normalise the last axis, `[..., D]`; zeros stay zeros. A tensor stays a tensor."""
    return vectors / ((vectors * vectors).sum(-1, keepdims=True) ** 0.5).clip(1e-12)


def truncated(vectors: Any, dim: int) -> Any:
    """Truncate vectors to their first `dim` numbers and L2-normalise them again, `[..., D] -> [..., dim]`.

    Raises:
        ValueError: `dim` is not between 1 and D.
    """
    if not 1 <= dim <= vectors.shape[-1]:
        raise ValueError(f"dim must be between 1 and the embeddings' width {vectors.shape[-1]}, got {dim}")
    return normalized(vectors[..., :dim])


def softmax(logits: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Compute the softmax over the last axis, in fp64."""
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
