"""The probability that a sound matches a text, from the cosine of their vectors.

A WavLink's own calibration is in its config (`wavlink calibrate` and training write it). Without one, the cosines of a
query with a whole index show which of them stand out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, TypeAlias

import numpy as np

from .defaults import PRIOR
from .embedder import Embedder

FEWEST = 20  # cosines of a background: the median of fewer says too little
_TO_DEVIATION = 1.4826  # of a median absolute deviation, for a normal distribution
NO_MATCH = "nothing in this {} matches"


@dataclass(frozen=True)
class Logistic:
    """A model's calibration at a number of dims: P(match | cosine) = 1 / (1 + exp(-(slope * cosine + intercept))).

    Platt, "Probabilistic outputs for support vector machines", in Advances in Large Margin Classifiers, 1999.

    Attributes:
        slope, intercept: of the log-odds.
        prior: the share of matching pairs that the probabilities hold for.
    """

    slope: float
    intercept: float
    prior: float = PRIOR
    kind: ClassVar[str] = "model"

    def probability(self, cosines: "float | np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """Compute the probability of a match from cosines of any shape."""
        logits = self.slope * np.asarray(cosines, np.float64) + self.intercept
        return np.where(logits < 0, np.exp(np.minimum(logits, 0)), 1) / (1 + np.exp(-np.abs(logits)))

    def at_prior(self, prior: float) -> "Logistic":
        """Return the calibration for another share of matching pairs.

        The log-odds are shifted by the change in the prior's log-odds: Saerens, Latinne and Decaestecker, "Adjusting
        the outputs of a classifier to new a priori probabilities", Neural Computation 14, 2002, equation 2.4.
        """
        check_prior(prior)
        return Logistic(self.slope, self.intercept + log_odds(prior) - log_odds(self.prior), float(prior))


@dataclass(frozen=True)
class Background:
    """The cosines of a query with a collection, as a normal distribution: what stands out from it may match.

    The probability of a cosine is Phi((cosine - center) / spread) ** count: the probability that the highest of
    `count` independent draws from this distribution is lower, as in Sidak's correction (JASA 62, 1967). `center` is
    the median and `spread` 1.4826 times the median absolute deviation, which a few matches hardly move (Hampel, JASA
    69, 1974).

    It is no probability of a match: a query that half of the collection matches has nothing that stands out, something
    nearest to it may stand out from the rest, and cosines with a longer tail than the normal one stand out too often.

    Attributes:
        center, spread: of the cosines.
        count: how many cosines the collection has.
        kind: what the collection is, `"index"` or `"recording"`.
    """

    center: float
    spread: float
    count: int
    kind: str = "index"

    def probability(self, cosines: "float | np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """Compute the probability that the highest cosine of the background is lower."""
        return standing_out(np.asarray(cosines), self.center, self.spread, self.count)


Calibration: TypeAlias = Logistic | Background


def calibration_of(embedder: Embedder, dim: int | None = None, prior: float | None = None) -> Logistic | None:
    """Return the calibration that a model brings for its first `dim` numbers; None if it has none.

    Args:
        dim: one of the nested dims (default: all dims).
        prior: of the matching pairs (default: the one that the model was calibrated at).

    Raises:
        ValueError: a prior that is none, or one for a model without a calibration.
    """
    config = getattr(getattr(embedder, "model", None), "config", None)  # what only looks like an embedder has no model
    calibration = logistic_at(checked_calibration(config), dim or embedder.dims)
    if calibration is None:
        if prior is not None:
            raise ValueError(
                f"prior={prior} shifts a model's calibration, which {embedder.name} lacks at {dim or embedder.dims} "
                "dims: `wavlink calibrate` fits one for a WavLink"
            )
        return None
    return calibration if prior is None else calibration.at_prior(prior)


def checked_calibration(config: Any) -> Mapping[str, Any] | None:
    """Return a WavLink's `match_calibration`; None for other models, whose configs hold it unchecked if at all."""
    return config.match_calibration if getattr(config, "model_type", "") == "wavlink" else None


def logistic_at(saved: Mapping[str, Any] | None, dim: int) -> Logistic | None:
    """Return the logistic of a `match_calibration` at a number of dims, None if it has none."""
    fit = saved["dims"].get(str(dim)) if saved else None
    return Logistic(fit["slope"], fit["intercept"], saved["prior"]) if saved and fit else None


def described(calibration: Calibration | None) -> dict[str, Any]:
    """Describe for JSON what probabilities are from: `calibration`, None if there are none, and its `prior`."""
    if calibration is None:
        return {"calibration": None}
    prior = {"prior": calibration.prior} if isinstance(calibration, Logistic) else {}
    return {"calibration": calibration.kind, **prior}


def background_of(cosines: "np.ndarray[Any, Any]", count: int | None = None, kind: str = "index") -> Background | None:
    """Describe the cosines of a query with a collection `[n]`; None if they are too few, or most are equal.

    Args:
        cosines: of the collection, or of a sample of it.
        count: of the collection (default: `n`).
    """
    if len(cosines) < FEWEST:
        return None
    center, spread = center_and_spread(np.asarray(cosines))
    return Background(float(center), float(spread), count or len(cosines), kind) if spread > 0 else None


def center_and_spread(cosines: "np.ndarray[Any, Any]") -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    """Compute the median and the scaled median absolute deviation over the last axis, without NaN."""
    cosines = np.asarray(cosines, np.float64)
    center = np.nanmedian(cosines, axis=-1)
    return center, _TO_DEVIATION * np.nanmedian(np.abs(cosines - center[..., None]), axis=-1)


def standing_out(cosines: Any, center: Any, spread: Any, count: Any) -> "np.ndarray[Any, Any]":
    """Compute Phi((cosines - center) / spread) ** count (see `Background`), all of one shape."""
    z = np.atleast_1d((np.asarray(cosines, np.float64) - center) / spread)
    return np.exp(np.asarray(count) * _log_normal_distribution(z)).reshape(np.shape(cosines))


def _log_normal_distribution(z: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Compute log Phi(z); below -37, where Phi is 0 in fp64, -inf."""
    tail = 0.5 * np.array([math.erfc(abs(value) / math.sqrt(2)) for value in z.ravel()]).reshape(z.shape)  # Phi(-|z|)
    with np.errstate(divide="ignore"):
        return np.where(z < 0, np.log(tail), np.log1p(-tail))


def log_odds(probability: float) -> float:
    """Compute log(p / (1 - p))."""
    return math.log(probability) - math.log1p(-probability)


def check_prior(prior: float) -> None:
    """Raise a ValueError unless a share of matching pairs is a number between 0 and 1."""
    check_probability("prior", prior)
    if not 0 < prior < 1:
        raise ValueError(f"prior must be above 0 and below 1, got {prior}")


def check_probability(name: str, value: float | None) -> None:
    """Raise a ValueError unless a value is None or a number from 0 to 1."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability, from 0 to 1, got {value!r}")
