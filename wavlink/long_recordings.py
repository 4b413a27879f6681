"""Recordings of any length: encoded in overlapping windows while they are decoded, and searched for sounds.

```python
>>> embedder = Embedder("your-name/wavlink-base")
>>> recording = encode_recording(embedder, "night.flac")
>>> locate(recording, embedder.embed_text(["a siren"])[0])
[Span(start=4385.0, end=4400.0, score=0.41...), ...]
>>> locate(recording, embedder.embed_text(["a violin"])[0], min_score=noise_score(embedder, recording))
[]
```
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from processing.audio import AudioSource
from processing.prompts import PROMPT
from processing.windows import stream_windows

from .common_sounds import COMMON_SOUNDS
from .defaults import HOP, SHORT, SHORT_HOP, SHORT_WINDOW, WINDOW
from .embedder import Embedder, mean_direction
from .vectors import truncated
from .vocabulary import unnamed

# The share of common sounds that score less. With the model of `quickstart`, in 12 minutes with 48 of its sounds over
# noise, 72 % of those found by their label score more, and 7 % of absent labels (by another sound of the label: 74 and
# 8 %).
NOISE_SHARE = 0.9
_LOOKAHEAD = 32  # windows that the embedder sorts by length; they are of one length, so a batch or two is enough


@dataclass(frozen=True)
class Recording:
    """The embeddings of a recording's windows.

    Attributes:
        vectors: fp32 `[W, D]`, one for each window.
        starts, ends: `[W]`, in seconds.
        whole: `[D]`, the mean of the vectors, L2-normalised; of a single window its vector, unchanged.
        hop: seconds from the start of one window to that of the next.
    """

    vectors: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    whole: np.ndarray
    hop: float

    @property
    def duration(self) -> float:
        """Length of the recording in seconds."""
        return float(self.ends[-1])

    @property
    def window(self) -> float:
        """Length of a window in seconds."""
        return float(self.ends[0] - self.starts[0])


@dataclass(frozen=True)
class Span:
    """A part of a recording, from `start` to `end` in seconds, and its `score`, a cosine."""

    start: float
    end: float
    score: float
    probability: ClassVar[float | None] = None  # of a match: not known, as of a `ProbableSpan`


@dataclass(frozen=True)
class ProbableSpan(Span):
    """A span with the `probability` that it matches a text."""

    probability: float  # type: ignore[misc]


def encode_recording(embedder: Embedder, source: AudioSource, window: float = WINDOW, hop: float = HOP) -> Recording:
    """Embed a recording's windows (see `processing.windows.stream_windows`) while it is decoded.

    Memory holds a few dozen windows of samples, whatever the length; a day of sound gives 17,280 vectors.

    Args:
        source: a file's path or bytes, or what else `processing.windows.stream_windows` takes.
        window: length of a window in seconds, at most the embedder's `max_seconds`.
        hop: seconds from the start of one window to that of the next.

    Raises:
        ValueError: the recording cannot be read, `window` or `hop` is out of range, or the model gives NaN or infinite
            values.
    """
    if embedder.max_seconds is not None and window > embedder.max_seconds:
        raise ValueError(f"a window of {window} s is over the {embedder.max_seconds:g} s that the model takes at once")
    times = []

    def clips() -> Iterator[np.ndarray]:
        for part in stream_windows(source, window, hop, embedder.sampling_rate):
            times.append((part.start, part.end))
            yield part.samples

    vectors = list(embedder.embed_clips(clips(), lookahead=_LOOKAHEAD))
    whole, (starts, ends) = mean_direction(vectors), np.array(times).T
    if not np.isfinite(whole).all():
        raise ValueError("the model gives this recording a vector with NaN or infinite values")
    return Recording(np.stack(vectors), starts, ends, whole, hop)


def windows_for(source: AudioSource, longest: float | None = None) -> tuple[float, float]:
    """Choose a window and a hop, in seconds, by a recording's length.

    At most the first `SHORT` seconds are decoded for it.

    Args:
        longest: the longest window that the model takes, in seconds; None if it has no limit.
    """
    parts = stream_windows(source, SHORT, SHORT)
    next(parts)
    window, hop = (SHORT_WINDOW, SHORT_HOP) if next(parts, None) is None else (WINDOW, HOP)
    window = min(window, longest or window)
    return window, min(hop, window)


def noise_score(embedder: Embedder, recording: Recording, dim: int | None = None) -> float:
    """Compute the score from which a query stands out in a recording.

    The best scores of nine of ten common sounds (`COMMON_SOUNDS`) are lower. Most of these sounds are not in the
    recording, so the score is a noise level on the model's own scale. A sound that never stops can stand out as well.

    Args:
        dim: as for `timeline`.
    """
    with unnamed():
        names = embedder.embed_text([PROMPT.replace("{}", name) for name in COMMON_SOUNDS])
    names = np.unique(names.astype(np.float32).round(3), axis=0)  # unknown words share one vector
    count, width = recording.vectors.shape
    cut = truncated(np.vstack([recording.vectors, names]), width if dim is None else dim)
    _, scores = _steps(recording, (cut[:count] @ cut[count:].T).astype(np.float64))  # (S, N)
    return float(np.quantile(scores.max(0), NOISE_SHARE))


def timeline(recording: Recording, query: np.ndarray, dim: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Compute the similarity of each step of a recording to a query.

    A step is a hop long. Its score is the mean of the cosines of the windows that cover it, each weighted by how much
    of the step it covers. A remainder at the end is a step of its own if it is half a hop or more.

    Args:
        query: `[D]`, the vector of a text or a sound, from the recording's own model.
        dim: compare the first `dim` numbers of the vectors, L2-normalised again (default: all).

    Returns:
        `edges` `[S + 1]` in seconds and `scores` `[S]`.
    """
    return _steps(recording, _cosines(recording, query, dim))


def _steps(recording: Recording, cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the edges of the steps, and their scores `[S, ...]` from the windows' cosines `[W, ...]`."""
    edges = np.arange(max(1, math.floor(recording.duration / recording.hop + 0.5)) + 1) * float(recording.hop)
    edges[-1] = recording.duration
    sums, weights = np.zeros((len(edges) - 1, *cosines.shape[1:])), np.zeros(len(edges) - 1)
    for start, end, cosine in zip(recording.starts, recording.ends, cosines, strict=True):
        part = slice(np.searchsorted(edges, start, "right") - 1, np.searchsorted(edges, end, "left"))
        covered = np.minimum(edges[1:][part], end) - np.maximum(edges[:-1][part], start)
        sums[part] += np.multiply.outer(covered, cosine)
        weights[part] += covered
    return edges, sums / weights.reshape(-1, *[1] * (cosines.ndim - 1))


def _cosines(recording: Recording, query: np.ndarray, dim: int | None) -> np.ndarray:
    width = recording.vectors.shape[1]
    query = np.asarray(query, dtype=np.float32)
    if query.shape != (width,) or not np.isfinite(query).all() or not query.any():
        raise ValueError(f"a query is one vector [{width}] of finite values from the recording's model, not all zero")
    cut = truncated(np.vstack([recording.vectors, query]), width if dim is None else dim)
    return (cut[:-1] @ cut[-1]).astype(np.float64)  # (W)


def locate(
    recording: Recording, query: np.ndarray, top_k: int = 5, dim: int | None = None, min_score: float | None = None
) -> list[Span]:
    """Find up to `top_k` spans of a recording that match a query, the best first. They do not overlap.

    A span is built on the steps of `timeline`. Its best step scores no less than its neighbours. The span takes in the
    steps around it that score at least half way from the recording's median to that best score, which is the span's
    score. Best steps less than a window apart lie in one window, and give one span.

    Args:
        query: as for `timeline`.
        top_k: the most spans.
        dim: as for `timeline`.
        min_score: the least score of a span, such as `noise_score` gives (default: none).

    Raises:
        ValueError: `top_k` below 1, or a `min_score` that is no cosine.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be 1 span or more, got {top_k}")
    check_score(min_score)
    edges, scores = timeline(recording, query, dim)
    padded = np.concatenate([[-np.inf], scores, [-np.inf]])
    peaks = np.flatnonzero((scores >= padded[:-2]) & (scores >= padded[2:]))
    median, spans = np.median(scores), []
    free = np.ones(len(scores), dtype=bool)  # steps of no span
    best = np.ones(len(scores), dtype=bool)  # steps that may still be the best one of a span
    for peak in peaks[np.argsort(-scores[peaks], kind="stable")]:
        if len(spans) < top_k and free[peak] and best[peak]:
            enough = min((median + scores[peak]) / 2, scores[peak])
            # 1e-6: equal cosines, weighted differently, differ in their last bits
            first, last = _run(free & (scores >= enough - 1e-6), peak)
            if min_score is None or scores[peak] >= min_score:
                spans.append(Span(float(edges[first]), float(edges[last + 1]), float(scores[peak])))
            free[first : last + 1] = False
            best &= np.abs(edges[:-1] - edges[peak]) >= recording.window - 1e-6
    return spans


def check_score(min_score: float | None) -> None:
    """Raise a ValueError unless a least score is None or a cosine."""
    if min_score is not None and not -1 <= min_score <= 1:
        raise ValueError(f"min_score is a cosine, from -1 to 1, got {min_score}")


def _run(steps: np.ndarray, index: int) -> tuple[int, int]:
    """Return the first and the last index of the run of True `steps` around `index`."""
    gaps = np.flatnonzero(~np.pad(steps, 1)) - 1  # from -1 to len(steps)
    after = np.searchsorted(gaps, index)
    return int(gaps[after - 1]) + 1, int(gaps[after]) - 1


def envelope(source: AudioSource, duration: float, points: int = 2000) -> np.ndarray:
    """Compute the largest absolute sample of each of about `points` equal parts of a recording, `[about points]`.

    Args:
        source: as for `encode_recording`.
        duration: of the recording, in seconds.
    """
    step = max(duration / points, 1 / 16000)
    return np.array([np.abs(part.samples).max() for part in stream_windows(source, step, step)])


def clock(seconds: float) -> str:
    """Format a time: `1:02:03.4` of 3723.4 seconds."""
    tenths = round(10 * seconds)
    return f"{tenths // 36000}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"
