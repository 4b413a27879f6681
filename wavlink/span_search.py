"""The spans of a recording that match texts and sounds, and the probabilities of those of texts."""

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from processing.audio import AudioSource

from . import long_recordings
from .defaults import FRAME_HEAD, PRIOR, WINDOW
from .embedder import Embedder
from .long_recordings import ProbableSpan, Recording, Span, check_score, encode_recording, noise_score, windows_for
from .probability import Calibration, background_of, calibration_of, check_prior, check_probability

if TYPE_CHECKING:
    from .frame_head import Fitted

logger = logging.getLogger(__name__)


class Limits(NamedTuple):
    """Which spans of a query are kept; see `locate`."""

    top_k: int = 5
    dim: int | None = None
    min_score: float | None = None
    min_probability: float | None = None
    prior: float | None = None

    def check(self, embedder: Embedder, sounds: Sequence[AudioSource], fitted: "Fitted | None" = None) -> None:
        """Raise a ValueError for values out of range, or probabilities of `sounds`, which there are none of.

        Args:
            fitted: the frame head that gives the probabilities, if there is one.
        """
        check_score(self.min_score)
        check_probability("min_probability", self.min_probability)
        dims = sorted({*embedder.matryoshka_dims, embedder.dims})
        if self.dim not in (None, *dims):
            raise ValueError(f"dim must be one of the nested dims of {embedder.name}, {dims}, got {self.dim}")
        if sounds and (self.min_probability, self.prior) != (None, None):
            raise ValueError(
                "probabilities are of texts: look for sounds in a call of its own, without min_probability and prior"
            )
        if fitted is None:
            calibration_of(embedder, self.dim, self.prior)
        elif self.prior is not None:
            check_prior(self.prior)


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
        window, hop: in seconds; None: as `windows_for` chooses, and half of a given window. With neither of them and
            no `dim`, a model that has a frame head (`frame_head_of`) finds the spans in steps of 0.2 s.
        limits: with neither `min_score` nor `min_probability`, spans reach the recording's `noise_score`.

    Raises:
        ValueError: that of `encode_recording`, limits out of range, or an empty text.
    """
    fitted = frame_head_of(embedder) if window is None and hop is None and limits.dim is None else None
    limits.check(embedder, sounds, fitted)
    dim, least = limits.dim, limits.min_score
    vectors = [*(embedder.embed_text(texts) if texts else [])]
    for sound in sounds:
        windows = windows_of(embedder, sound, WINDOW if window is None else window, hop)
        vectors.append(encode_recording(embedder, sound, *windows).whole)
    # last: it may take an hour
    if fitted is None:
        recording = encode_recording(embedder, source, *windows_of(embedder, source, window, hop))
    else:
        recording = steps_of(embedder, fitted, source)
    if least is None:
        least = noise_score(embedder, recording, dim) if limits.min_probability is None else -1.0
    matches = []
    for number, (query, vector) in enumerate(zip([*texts, *sounds], vectors, strict=True)):
        spans, calibration = long_recordings.locate(recording, vector, limits.top_k, dim), None
        if number < len(texts):
            calibration = _calibration(embedder, recording, vector, limits, fitted)
            spans = [_probable(span, calibration) for span in spans]
        kept = [span for span in spans if span.score >= least and _passes(span, limits.min_probability)]
        matches.append(Match(query, vector, kept, spans[0], calibration))
    return Matches(recording, least, matches)


def frame_head_of(embedder: Embedder) -> "Fitted | None":
    """Return the head that lies beside a model in its folder (`wavlink train-frames`); None without one.

    Outside torch there is none, which is said once.

    The embedder keeps it, and it is read again only where its file has been written since.

    Raises:
        ValueError: that of `read_frame_head`.
    """
    folder = getattr(embedder, "folder", "")  # what only looks like an embedder has none
    path, backend = os.path.join(folder, FRAME_HEAD), getattr(embedder, "backend", "")
    if not (folder and backend and os.path.isfile(path)):
        return None
    if backend != "torch":
        if embedder.kept_head is None:
            logger.warning(
                f"{path} is left out, as it runs in torch and not in {backend}: give backend='torch' for it"
            )
        embedder.kept_head = 0, None
        return None
    written = os.stat(path).st_mtime_ns
    if embedder.kept_head is None or embedder.kept_head[0] != written:
        from .frame_head import read_frame_head

        embedder.kept_head = written, read_frame_head(Path(folder), embedder)
    return embedder.kept_head[1]


def steps_of(embedder: Embedder, fitted: "Fitted", source: AudioSource) -> Recording:
    """Encode a recording in steps by a frame head (see `wavlink.frame_head.encode_steps`)."""
    from .frame_head import encode_steps

    return encode_steps(embedder, fitted.head, source)


def _calibration(
    embedder: Embedder, recording: Recording, vector: "np.ndarray[Any, Any]", limits: Limits, fitted: "Fitted | None"
) -> Calibration | None:
    """Return the head's or the model's calibration, or if probabilities are asked for what scores stand out from."""
    if fitted is not None:
        return fitted.calibration.at_prior(limits.prior or PRIOR)
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
