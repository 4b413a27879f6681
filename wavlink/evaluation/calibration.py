"""Fit the probability that a sound matches a text to the cosines of a validation split, and evaluate it on another."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from wavlink.defaults import PRIOR
from wavlink.probability import Logistic, check_prior, log_odds

from .metrics import Correspondence, Similarities

_BINS = 1 << 14  # of a histogram of cosines; each bin stands at the mean of its cosines
_PAIRS = 1 << 28  # that are compared at most: of more, the texts are thinned out evenly
_BLOCK = 1 << 22  # pairs at once
_STEPS = 100  # of Newton's method, which needs about ten


def fit_calibration(
    audio_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    correspondence: Correspondence,
    dims: Sequence[int],
    prior: float = PRIOR,
    data: str = "",
) -> dict:
    """Fit a logistic in the cosine for each nested dim, as `WavLinkConfig.match_calibration` stores it.

    Matching pairs are a clip and each of its texts, all others do not match. Matching pairs have together the weight
    `prior`, the others the rest. The targets are not 1 and 0 but (n + 1) / (n + 2) and 1 / (m + 2) for n matching and
    m other pairs, so that the fit is finite where the two do not overlap (Platt 1999, section 2.2).

    Args:
        audio_embeds: `[clips, D]`; text_embeds: `[texts, D]`.
        correspondence: `[clips, texts]`.
        dims: nested dims; vectors are cut and normalised again.
        prior: the share of matching pairs that the probabilities are for.
        data: what the pairs are from, in words.

    Raises:
        ValueError: a prior that is none, no matching pairs or no others, or cosines that are no higher for matching
            pairs.
    """
    check_prior(prior)
    rows = compared_texts(correspondence)
    of_texts, fits = correspondence.T.select(rows), {}
    for dim in sorted(dims, reverse=True):
        matching, others = _histograms(CosinePairs(audio_embeds, text_embeds[rows], of_texts, dim))
        if not matching.counts.sum() or not others.counts.sum():
            raise ValueError("a calibration needs clips with texts, and texts that do not match all clips")
        fits[str(dim)] = _fit(matching, others, prior, dim)
    total = int(matching.counts.sum() + others.counts.sum())
    return {"prior": prior, "data": data, "pairs": total, "dims": fits}


class CosinePairs:
    """The cosines of texts with clips at one nested dim, a block of texts at a time.

    Args:
        audio_embeds: `[clips, D]`; text_embeds: `[texts, D]`.
        of_texts: `[texts, clips]`, the clips of each text.
        dim: of the vectors, which are cut and normalised.
    """

    def __init__(self, audio_embeds: torch.Tensor, text_embeds: torch.Tensor, of_texts: Correspondence, dim: int):
        audio, text = (F.normalize(x[:, :dim].float(), dim=-1) for x in (audio_embeds, text_embeds))
        self._similarities, self._of_texts = Similarities(text, audio), of_texts

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield `cosines [t, clips]`, and which of them match, bool `[t, clips]`."""
        texts, clips = self._similarities.shape
        size = max(1, _BLOCK // max(clips, 1))
        for start in range(0, texts, size):
            end = min(start + size, texts)
            cosines = self._similarities[start:end]
            if not np.isfinite(cosines).all():
                raise ValueError("the model gives vectors with NaN or infinite values")
            first, last = self._of_texts.offsets[[start, end]]
            matches = np.zeros(cosines.shape, dtype=bool)
            matches[self._of_texts.queries[first:last] - start, self._of_texts.indices[first:last]] = True
            yield cosines, matches


def compared_texts(correspondence: Correspondence) -> np.ndarray:
    """Return the indices of the texts that have clips; of more than `_PAIRS` pairs, evenly spaced ones."""
    rows = np.flatnonzero(correspondence.sum(axis=0))
    most = max(1, _PAIRS // max(correspondence.shape[0], 1))
    return rows[:: -(-len(rows) // most)] if len(rows) else rows


class Histogram:
    """Cosines in bins of equal width: `counts` and `sums`, both `[_BINS]`."""

    def __init__(self):
        self.counts, self.sums = np.zeros(_BINS), np.zeros(_BINS)

    def add(self, cosines: np.ndarray) -> None:
        """Add cosines `[n]`."""
        bins, cosines = _bins(cosines), cosines.astype(np.float64)
        self.counts += np.bincount(bins, minlength=_BINS)
        self.sums += np.bincount(bins, cosines, minlength=_BINS)

    def share_below(self, cosines: np.ndarray) -> np.ndarray:
        """Return the share of the added cosines that are lower than each of others `[n]`; one bin's count half."""
        below = np.cumsum(self.counts) - self.counts / 2
        return (below / self.counts.sum())[_bins(cosines)]


def _bins(cosines: np.ndarray) -> np.ndarray:
    return np.clip(((cosines.astype(np.float64) + 1) / 2 * _BINS).astype(np.int64), 0, _BINS - 1)


def _histograms(pairs: CosinePairs) -> tuple[Histogram, Histogram]:
    matching, others = Histogram(), Histogram()
    for cosines, matches in pairs:
        matching.add(cosines[matches])
        others.add(cosines[~matches])
    return matching, others


def _fit(matching: Histogram, others: Histogram, prior: float, dim: int) -> dict[str, float]:
    """Return slope and intercept."""
    cosines, weights, targets = [], [], []
    for histogram, share, target in (
        (matching, prior, lambda count: (count + 1) / (count + 2)),
        (others, 1 - prior, lambda count: 1 / (count + 2)),
    ):
        kept, count = histogram.counts > 0, histogram.counts.sum()
        cosines.append(histogram.sums[kept] / histogram.counts[kept])
        weights.append(share * histogram.counts[kept] / count)
        targets.append(np.full(kept.sum(), target(count)))
    slope, intercept = _logistic(*map(np.concatenate, (cosines, weights, targets)), log_odds(prior))
    fit = {"slope": round(slope, 6), "intercept": round(intercept, 6)}
    if not fit["slope"] > 0:
        raise ValueError(
            f"at {dim} dims the cosines of matching pairs are no higher than those of others, so that they tell "
            "nothing of a match: train the model first, or calibrate it on captions that describe the clips"
        )
    return fit


def _logistic(cosines: np.ndarray, weights: np.ndarray, targets: np.ndarray, start: float) -> tuple[float, float]:
    """Minimise the weighted cross-entropy of `targets [n]` by Newton's method with step halving; all `[n]`.

    Lin, Lin and Weng, "A note on Platt's probabilistic outputs for support vector machines", Machine Learning 68,
    2007, algorithm 1.
    """
    inputs = np.stack([cosines, np.ones_like(cosines)])  # (2, n)
    theta = np.array([0.0, start])

    def loss(theta: np.ndarray) -> float:
        logits = theta @ inputs
        return float(weights @ (np.logaddexp(0, logits) - targets * logits))

    value = loss(theta)
    for _ in range(_STEPS):
        probabilities = Logistic(*theta).probability(cosines)
        gradient = inputs @ (weights * (probabilities - targets))
        hessian = (inputs * (weights * probabilities * (1 - probabilities))) @ inputs.T + 1e-12 * np.eye(2)
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while size > 1e-10 and loss(theta - size * step) > value - 1e-4 * size * (gradient @ step):
            size /= 2
        if size <= 1e-10:
            break
        theta = theta - size * step
        value, before = loss(theta), value
        if before - value < 1e-15:
            break
    return float(theta[0]), float(theta[1])
