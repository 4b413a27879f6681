"""The spans of a recording that match texts and sounds, and the probabilities of those of texts."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from processing.audio import AudioSource

from . import long_recordings
from .defaults import WINDOW
from .embedder import Embedder
from .long_recordings import ProbableSpan, Recording, Span, check_score, encode_recording, noise_score, windows_for
from .probability import Calibration, background_of, calibration_of, check_probability


class Limits(NamedTuple):
    """Which spans of a query are kept; see `locate`."""

    top_k: int = 5
    dim: int | None = None
    min_score: float | None = None
    min_probability: float | None = None
    prior: float | None = None

    def check(self, embedder: Embedder, sounds: Sequence[AudioSource]) -> None:
        """Raise a ValueError for values out of range, or probabilities of `sounds`, which there are none of."""
        check_score(self.min_score)
        check_probability("min_probability", self.min_probability)
        dims = sorted({*embedder.matryoshka_dims, embedder.dims})
        if self.dim not in (None, *dims):
            raise ValueError(f"dim must be one of the nested dims of {embedder.name}, {dims}, got {self.dim}")
        if sounds and (self.min_probability, self.prior) != (None, None):
            raise ValueError(
                "probabilities are of texts: look for sounds in a call of its own, without min_probability and prior"
            )
        calibration_of(embedder, self.dim, self.prior)


class Match(NamedTuple):
    """A query in a recording: its name and vector `[D]`, the spans that stand out, and the best span in any case.

    `calibration` is what their probabilities are from, None if they have none.
    """

    query: Any
    vector: "np.ndarray[Any, Any]"
    spans: list[Span]
    closest: Span
    calibration: Calibration | None


class Matches(NamedTuple):
    """An encoded recording, the least score of a span, and the match of each text, then of each sound."""

    recording: Recording
    min_score: float
    matches: list[Match]


def find_spans(
    embedder: Embedder,
    source: AudioSource,
    texts: Sequence[str],
    sounds: Sequence[AudioSource],
    window: float | None,
    hop: float | None,
    limits: Limits,
) -> Matches:
    """Encode a recording and find the spans that match each text and each sound.

    Args:
        source, sounds: as for `encode_recording`; each sound is encoded as a whole.
        window, hop: in seconds; None: as `windows_for` chooses, and half of a given window.
        limits: with neither `min_score` nor `min_probability`, spans reach the recording's `noise_score`.

    Raises:
        ValueError: that of `encode_recording`, limits out of range, or an empty text.
    """
    limits.check(embedder, sounds)
    dim, least = limits.dim, limits.min_score
    vectors = [*(embedder.embed_text(texts) if texts else [])]
    for sound in sounds:
        windows = windows_of(embedder, sound, WINDOW if window is None else window, hop)
        vectors.append(encode_recording(embedder, sound, *windows).whole)
    # last: it may take an hour
    recording = encode_recording(embedder, source, *windows_of(embedder, source, window, hop))
    if least is None:
        least = noise_score(embedder, recording, dim) if limits.min_probability is None else -1.0
    matches = []
    for number, (query, vector) in enumerate(zip([*texts, *sounds], vectors, strict=True)):
        spans, calibration = long_recordings.locate(recording, vector, limits.top_k, dim), None
        if number < len(texts):
            calibration = _calibration(embedder, recording, vector, limits)
            spans = [_probable(span, calibration) for span in spans]
        kept = [span for span in spans if span.score >= least and _passes(span, limits.min_probability)]
        matches.append(Match(query, vector, kept, spans[0], calibration))
    return Matches(recording, least, matches)


def _calibration(
    embedder: Embedder, recording: Recording, vector: "np.ndarray[Any, Any]", limits: Limits
) -> Calibration | None:
    """Return the model's calibration, or where probabilities are asked for what a text's scores stand out from."""
    calibration: Calibration | None = calibration_of(embedder, limits.dim, limits.prior)
    if calibration is not None or limits.min_probability is None:
        return calibration
    calibration = background_of(long_recordings.timeline(recording, vector, limits.dim)[1], kind="recording")
    if calibration is None:
        raise ValueError(
            f"there are no probabilities: {embedder.name} has no calibration (`wavlink calibrate` fits one), and the "
            "recording has too few windows to tell what stands out"
        )
    return calibration


def _probable(span: Span, calibration: Calibration | None) -> Span:
    if calibration is None:
        return span
    return ProbableSpan(**asdict(span), probability=float(calibration.probability(span.score)))


def _passes(span: Span, min_probability: float | None) -> bool:
    return min_probability is None or (span.probability is not None and span.probability >= min_probability)


def windows_of(
    embedder: Embedder, source: AudioSource, window: float | None, hop: float | None
) -> tuple[float, float]:
    """Return the window and the hop in seconds: those given, else as `windows_for` chooses, or half of the window."""
    if window is not None:
        return window, window / 2 if hop is None else hop
    window, chosen = windows_for(source, embedder.max_seconds)
    return window, chosen if hop is None else hop
