"""Scores of the probability of a match: how well it is calibrated, and whether it tells that a sound is absent."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch

from wavlink.probability import FEWEST, Logistic, center_and_spread, logistic_at, standing_out

from .calibration import CosinePairs, Histogram, compared_texts
from .metrics import Correspondence, bootstrap, figure

BINS = 15  # of the expected calibration error
PASSES = 0.5  # a clip of a higher probability is taken for a match
Statistic: TypeAlias = Callable[[np.ndarray], Sequence[float]]  # of `[draws, clips]`, how often each clip is drawn


def calibration_scores(
    audio_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    correspondence: Correspondence,
    dims: Sequence[int],
    calibration: Mapping | None = None,
    labels: Sequence[str | None] = (),
) -> dict | None:
    """Score the probabilities of matches of a split; all values are fit for JSON.

    The split is a collection that its own texts search. A text's sound is present as it is, and absent once the clips
    of the text, and those that share a label with one of them, are taken out of the collection. A text that then has
    no collection is left out; labels that leave fewer than two texts are ignored. At each dim there are

    - `auroc`: the area under the ROC curve of the text's highest cosine, present against absent: whether it tells that
      the collection has the sound;
    - `pairs_auroc`: that of the cosine of all pairs, matching against others;
    - `false_alarm_rate`: the share of texts of which a clip passes although their sound is absent;
    - `detection_rate`: the share of texts of which one of their clips passes where it is present.

    A clip passes whose probability is above 0.5: by the model's calibration, or without one by the cosines of the text
    with the collection (`wavlink.probability.Background`). With the model's there are also

    - `ece`, the expected calibration error over 15 bins of equal width of all pairs, matching pairs weighted to the
      prior (Guo et al., arXiv 1706.04599, equation 3);
    - `bins`, its bins that are not empty: `[mean probability, share of matches, weight]`.

    Args:
        audio_embeds: `[clips, D]`; text_embeds: `[texts, D]`.
        correspondence: `[clips, texts]`.
        dims: nested dims; vectors are cut and normalised again.
        calibration: the model's (`WavLinkConfig.match_calibration`).
        labels: of each clip, if it has one.

    Returns:
        `{"calibration": "model" or "index", "prior", "texts", "labels": their number, dim: {...}}`; None if fewer than
        two texts have clips, and not all.
    """
    compared = compared_texts(correspondence)
    of_compared = correspondence.T.select(compared)
    others = _others(of_compared, labels)
    if (others > 0).sum() < 2:
        labels, others = (), _others(of_compared, ())
    rows = compared[others > 0]
    if len(rows) < 2:
        return None
    of_texts = correspondence.T.select(rows)
    fits = {dim: fit for dim in dims if (fit := logistic_at(calibration, dim))}
    alike = _same_label(of_texts, labels)
    scores = {"calibration": "model" if fits else "index", "texts": len(rows), "labels": len({*labels} - {None, ""})}
    if calibration and fits:
        scores |= {"prior": calibration["prior"], "data": calibration.get("data", "")}
    for dim in sorted(fits or dims, reverse=True):
        pairs = CosinePairs(audio_embeds, text_embeds[rows], of_texts, dim)
        scores[str(dim)] = _at_one_dim(pairs, of_texts, fits.get(dim), alike)
    return scores


def _labels_of(of_texts: Correspondence, labels: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of each text's clips, bool `[texts, labels]`, and the label's number of each clip.

    The last number is that of clips without a label, which is no text's.
    """
    numbers = {label: number for number, label in enumerate(sorted({*labels} - {None, ""}))}
    of_clips = np.array([numbers.get(label, len(numbers)) for label in labels or [None] * of_texts.shape[1]])
    known = np.zeros((of_texts.shape[0], len(numbers) + 1), dtype=bool)
    known[of_texts.queries, of_clips[of_texts.indices]] = True
    known[:, -1] = False
    return known, of_clips


def _others(of_texts: Correspondence, labels: Sequence[str | None]) -> np.ndarray:
    """Return the number of clips, `[texts]`, that neither are a text's nor share a label with one of its clips."""
    known, of_clips = _labels_of(of_texts, labels)
    unlabelled = of_texts.queries[of_clips[of_texts.indices] == known.shape[1] - 1]
    taken_out = known @ np.bincount(of_clips, minlength=known.shape[1])
    return of_texts.shape[1] - taken_out - np.bincount(unlabelled, minlength=len(known))


def _same_label(of_texts: Correspondence, labels: Sequence[str | None]) -> Callable[[int, int], np.ndarray]:
    """Return a function of a range of texts to bool `[t, clips]`: which clips share a label with a clip of a text."""
    known, of_clips = _labels_of(of_texts, labels)
    return lambda start, end: known[start:end, of_clips]


def _at_one_dim(
    pairs: CosinePairs, of_texts: Correspondence, fit: Logistic | None, alike: Callable[[int, int], np.ndarray]
) -> dict:
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("present", "absent", "alarms", "found", "matching")}
    others, reliability = Histogram(), None if fit is None else _Reliability(fit, of_texts.shape[1])
    start = 0
    for cosines, matches in pairs:
        taken_out = matches | alike(start, start := start + len(cosines))
        own, other = (np.where(chosen, cosines, -np.inf).max(1) for chosen in (matches, ~taken_out))
        without = np.where(taken_out, np.nan, cosines)
        others.add(cosines[~matches])
        if reliability:
            reliability.add(cosines, matches)
        block = {
            "present": cosines.max(1),
            "absent": other,
            "alarms": _stands_out(other, without) if fit is None else fit.probability(other) > PASSES,
            "found": _stands_out(own, cosines) if fit is None else fit.probability(own) > PASSES,
            "matching": cosines[matches],
        }
        for name, values in block.items():
            columns[name].append(values)
    present, absent, alarms, found, matching = (np.concatenate(columns[name]) for name in columns)
    chosen, clips = np.unique(of_texts.indices), of_texts.shape[1]
    scores = {
        "auroc": bootstrap(_auroc(present, absent, of_texts), chosen, clips),
        "pairs_auroc": figure(others.share_below(matching), Correspondence(of_texts.indices[:, None], clips)),
        "false_alarm_rate": figure(alarms, of_texts),
        "detection_rate": figure(found, of_texts),
    }
    if reliability:
        # All clips: one without a text is in pairs that do not match.
        scores |= {"ece": bootstrap(reliability.error, np.arange(clips), clips), "bins": reliability.bins()}
    return scores


def _stands_out(highest: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """Whether the `highest [t]` stands out from `cosines [t, clips]`, of which NaN do not count: bool `[t]`."""
    counts = np.isfinite(cosines).sum(1)
    center, spread = center_and_spread(cosines)
    known = (counts >= FEWEST) & (spread > 0)
    return known & (standing_out(highest, center, np.where(known, spread, 1), counts) > PASSES)


def _auroc(positives: np.ndarray, negatives: np.ndarray, of_texts: Correspondence) -> Statistic:
    """Return the function of `[draws, clips]` to the area under the ROC curve, `[draws]`; both scores `[texts]`.

    It is the share of pairs of a positive and a negative in which the positive is higher, equal ones counting half.
    """
    order = np.argsort(negatives, kind="stable")
    lower, upper = (np.searchsorted(negatives[order], positives, side) for side in ("left", "right"))
    parts = np.repeat(1 / of_texts.counts, of_texts.counts)

    def area(drawn: np.ndarray) -> list[float]:
        areas = []
        for counts in drawn:
            weights = np.bincount(of_texts.queries, parts * counts[of_texts.indices], minlength=len(positives))
            below = np.concatenate([[0], np.cumsum(weights[order])])
            areas.append(weights @ (below[lower] + below[upper]) / 2 / below[-1] ** 2)
        return areas

    return area


class _Reliability:
    """Probabilities in bins, by clip, so that clips can be drawn.

    `sums` `[2, 2, clips, BINS]` are the numbers and the summed probabilities of matching and of other pairs.
    """

    def __init__(self, fit: Logistic, clips: int):
        self._fit, self._sums = fit, np.zeros((2, 2, clips, BINS))

    def add(self, cosines: np.ndarray, matches: np.ndarray) -> None:
        """Add a block of texts: `cosines [t, clips]`, and which of them match."""
        probabilities, clips = self._fit.probability(cosines), cosines.shape[1]
        cells = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1) + BINS * np.arange(clips)
        for kind, chosen in enumerate((matches, ~matches)):
            for row, weights in enumerate((None, probabilities[chosen])):
                sums = np.bincount(cells[chosen], weights, minlength=clips * BINS)
                self._sums[kind, row] += sums.reshape(clips, BINS)

    def error(self, drawn: np.ndarray) -> np.ndarray:
        """Compute the expected calibration error `[draws]` of `[draws, clips]`."""
        weights, probabilities, matches = self._weighted(drawn)
        return np.abs(probabilities - matches).sum(1) / weights.sum(1)

    def bins(self) -> list[list[float]]:
        """Return mean probability, share of matches and weight of each bin that is not empty."""
        rows = np.stack(self._weighted(np.ones((1, self._sums.shape[2]))))[:, 0].T
        return [[float(p / weight), float(match / weight), float(weight)] for weight, p, match in rows if weight]

    def _weighted(self, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return weights, summed probabilities and matches, each `[draws, BINS]`, weighted to the prior."""
        sums = np.einsum("dc,krcb->krdb", drawn.astype(np.float64), self._sums)
        totals = sums[:, 0].sum(-1, keepdims=True)  # (2, draws, 1)
        shares = np.array([self._fit.prior, 1 - self._fit.prior])[:, None, None] / np.maximum(totals, 1)
        weights, probabilities = (shares * sums[:, row] for row in (0, 1))
        return weights.sum(0), probabilities.sum(0), weights[0]
