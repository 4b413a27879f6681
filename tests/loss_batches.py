"""Batches of embeddings for the losses, and their gradients."""

from dataclasses import dataclass

import numpy as np
import torch

from modeling_wavlink.losses_wavlink import contrastive_loss


@dataclass(frozen=True)
class Batch:
    """Clips, texts and who belongs to whom, all drawn from a seed: short to read when an example fails."""

    loss_type: str
    clips: int
    width: int
    scale: float
    bias: float
    several: bool
    with_ids: bool
    smoothing: float
    seed: int

    @property
    def dims(self) -> list[int]:
        return sorted({self.width, -(-self.width // 2), 1}, reverse=True)

    def owner(self) -> np.ndarray:
        """`[T]`: of each text its clip, each at least once."""
        if not self.several:
            return np.arange(self.clips)
        rng = np.random.default_rng(self.seed)
        return rng.permutation(np.concatenate([np.arange(self.clips), rng.integers(0, self.clips, self.clips)]))

    def captions(self) -> np.ndarray:
        """`[B, K]`: each clip's own texts' ids in their order, then others'; few ids, so that many are shared."""
        rng, owner = np.random.default_rng((self.seed, 1)), self.owner()
        rows = [
            [*rng.integers(0, 2 * self.clips, (owner == clip).sum()), *rng.integers(0, 9, 1)]
            for clip in range(self.clips)
        ]
        ids = np.full((self.clips, max(map(len, rows))), -1)
        for row, values in zip(ids, rows, strict=True):
            row[: len(values)] = values
        return ids

    def leaves(self) -> list[torch.Tensor]:
        """float64 clips `[B, D]`, texts `[T, D]`, scale and bias."""
        rng = np.random.default_rng((self.seed, 2))
        clips, texts = rng.normal(size=(self.clips, self.width)), rng.normal(size=(len(self.owner()), self.width))
        clips, texts = (x + 0.1 * np.sign(x) for x in (clips, texts))  # no direction is near zero
        return [torch.tensor(x, dtype=torch.float64).requires_grad_() for x in (clips, texts, self.scale, self.bias)]

    def about(self) -> dict:
        return {
            "text_owner": torch.tensor(self.owner()) if self.several else None,
            "caption_ids": torch.tensor(self.captions()) if self.with_ids else None,
            "label_smoothing": self.smoothing if self.loss_type == "info_nce" else 0.0,
        }

    def loss(self, leaves, **options) -> torch.Tensor:
        return contrastive_loss(*leaves, self.loss_type, self.dims, **(self.about() | options))


def gradients(loss: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    return [*torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)]


def same(actual, expected, tolerance=1e-9):
    """Relative to the larger of 1 and what is expected: a scale of 100 makes losses of a thousand."""
    for one, other in zip(actual, expected, strict=True):
        assert torch.isfinite(one).all()
        assert (one - other).abs().max() <= tolerance * max(1, other.abs().max())
