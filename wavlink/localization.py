"""Finding a sound in a recording: the function `locate`, and the command `wavlink where`.

wavlink where runs/my/best night.flac --query "a siren" "a dog barks" --picture timeline.png
"""

import argparse
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np
from transformers import PreTrainedModel, ProcessorMixin

from processing.audio import AudioSource
from processing.audio_inputs_wavlink import is_source

from . import long_recordings
from . import options as of
from .console import print_json
from .defaults import WINDOW
from .destinations import file_destination
from .embedder import Embedder, embedder_for
from .long_recordings import (
    ProbableSpan,
    Recording,
    Span,
    check_score,
    clock,
    encode_recording,
    noise_score,
    windows_for,
)
from .probability import NO_MATCH, Calibration, background_of, calibration_of, check_probability, described
from .sanitize import printable

Model: TypeAlias = str | os.PathLike[str] | PreTrainedModel | Embedder


@overload
def locate(
    model: Model,
    recording: AudioSource,
    query: str,
    *,
    processor: ProcessorMixin | None = None,
    window: float | None = None,
    hop: float | None = None,
    top_k: int = 5,
    dim: int | None = None,
    min_score: float | None = None,
    min_probability: float | None = None,
    prior: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> list[Span]: ...


@overload
def locate(
    model: Model,
    recording: AudioSource,
    query: list[str] | tuple[str, ...] = (),
    *,
    by_sound: AudioSource | Iterable[AudioSource] = (),
    processor: ProcessorMixin | None = None,
    window: float | None = None,
    hop: float | None = None,
    top_k: int = 5,
    dim: int | None = None,
    min_score: float | None = None,
    min_probability: float | None = None,
    prior: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> list[list[Span]]: ...


def locate(
    model: Model,
    recording: AudioSource,
    query: str | list[str] | tuple[str, ...] = (),
    *,
    by_sound: AudioSource | Iterable[AudioSource] = (),
    processor: ProcessorMixin | None = None,
    window: float | None = None,
    hop: float | None = None,
    top_k: int = 5,
    dim: int | None = None,
    min_score: float | None = None,
    min_probability: float | None = None,
    prior: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> list[Span] | list[list[Span]]:
    """Find the parts of a recording of any length that match a text, or a sound.

    The recording is encoded in overlapping windows while it is decoded, so that a day of sound needs little memory.

    Args:
        model: a folder or Hub id (see `Embedder`), a loaded model (with `processor`), or an `Embedder`.
        recording: a file's path or bytes, `{"array": samples, "sampling_rate": hertz}` with mono floats `[samples]` in
            [-1, 1], or a decoder of `datasets`.
        query: a text, or a list of texts.
        by_sound: sounds to look for, one or several, given as `recording` is.
        processor: of a loaded model.
        window: length of a window in seconds, at most the model's 30 s (default: 10; of up to 120 s 4).
        hop: seconds from the start of one window to that of the next, at most `window` (default: half of a given
            `window`; else 5, or 1 for a recording of up to 120 s).
        top_k: the most spans for each query.
        dim: compare the first `dim` numbers of the vectors, one of the nested dims (default: all).
        min_score: the least score of a span, from -1 to 1 (default: what nine of ten common sounds do not reach in
            this recording, so that a sound that is not there has no span; none with `min_probability`).
        min_probability: the least probability that a span matches a text (default: none).
        prior: the share of the recording that a text matches (default: the one that the model was calibrated at).
        device: such as `"cuda"` (default: the CPU, or where a loaded model is).
        dtype: `"float32"` (default), `"bfloat16"` or `"float16"`.

    Returns:
        For one text, its spans, best first; they do not overlap and have `start` and `end` in seconds, `score`, a
        cosine, and `probability`, that the span matches: by the model's calibration; of a model without one, and with
        `min_probability`, that it stands out from the recording (see `wavlink.probability.Background`); else None, as
        for a sound. For a list of texts or with `by_sound`, a list of spans for each text, then for each sound.

    Raises:
        ValueError: nothing to look for, a sound that cannot be read, a window or hop that cannot be, no such `dim`, or
            a `min_probability` or `prior` where there are no such probabilities.

    Example:

    ```python
    >>> import wavlink
    >>> spans = wavlink.locate(model_folder, sounds_folder / "low.wav", "a bell rings", window=0.5, hop=0.25)
    >>> all(0 <= span.start < span.end <= 1 and -1 <= span.score <= 1 for span in spans)
    True

    ```
    """
    texts = [query] if isinstance(query, str) else list(query)
    sounds: list[AudioSource] = [by_sound] if is_source(by_sound) else list(by_sound)  # type: ignore
    if not texts and not sounds:
        raise ValueError("nothing to look for: give a text as query, or a sound as by_sound")
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"query must be a text or a list of texts that are not empty, got {query!r}")
    if top_k < 1:
        raise ValueError(f"top_k must be 1 span or more, got {top_k}")
    embedder = embedder_for(model, processor, device, dtype)
    limits = Limits(top_k, dim, min_score, min_probability, prior)
    matches = find_spans(embedder, recording, texts, sounds, window, hop, limits).matches
    result = [match.spans for match in matches]
    return result[0] if isinstance(query, str) and not sounds else result


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


def run(options: argparse.Namespace) -> None:
    """Print the spans of each query, and draw them with `--picture`."""
    if not options.query and not options.by_sound:
        raise ValueError('nothing to look for: give --query "a siren" or --by_sound FILE')
    if options.picture:  # before the recording is encoded, which may take an hour
        _check_plot(Path(options.picture))
    check_score(options.min_score)
    embedder = Embedder(options.model, revision=options.revision, device=options.device)
    limits = Limits(options.top_k, options.dim, options.min_score, options.min_probability, options.prior)
    sought = options.query, options.by_sound
    result = find_spans(embedder, options.file, *sought, options.window, options.hop, limits)
    if options.picture:
        _draw(options, result)
    if options.as_json:
        print_json(_as_dict(options, embedder, result))
    else:
        print(_as_tables(result, options.min_probability))


def _check_plot(path: Path) -> None:
    if path.suffix != ".png" or not path.parent.is_dir():
        raise ValueError(f"--picture {path}: give the name of a .png in a folder that exists")
    file_destination(path)


def _draw(options: argparse.Namespace, result: Matches) -> None:
    from .plots import draw_timeline

    recording = result.recording
    curves = {
        printable(match.query): (
            *long_recordings.timeline(recording, match.vector, options.dim),
            [(span.start, span.end) for span in match.spans],
        )
        for match in result.matches
    }
    peaks = long_recordings.envelope(options.file, recording.duration)
    draw_timeline(peaks, recording.duration, curves, Path(options.picture), min_score=result.min_score)


def _as_dict(options: argparse.Namespace, embedder: Embedder, result: Matches) -> dict[str, Any]:
    kinds = ["text"] * len(options.query) + ["sound"] * len(options.by_sound)
    queries = [
        {
            kind: match.query,
            "spans": [asdict(span) for span in match.spans],
            "closest": asdict(match.closest),
            **described(match.calibration),
            **({} if match.spans else {"note": NO_MATCH.format("recording")}),
        }
        for kind, match in zip(kinds, result.matches, strict=True)
    ]
    recording = result.recording
    return {
        "model": embedder.name,
        "revision": embedder.revision,
        "dim": options.dim or embedder.dims,
        "file": options.file,
        "duration": recording.duration,
        "window": recording.window,
        "hop": recording.hop,
        "min_score": result.min_score,
        "queries": queries,
    }


def _as_tables(result: Matches, min_probability: float | None) -> str:
    lines = []
    for match in result.matches:
        lines.append(printable(match.query))
        if match.spans:
            known = match.closest.probability is not None
            lines.append(f"{'start':>12} {'end':>12} {'score':>7}{'   match' * known}")
            lines += [f"{clock(x.start):>12} {clock(x.end):>12} {x.score:7.3f}{_percent(x)}" for x in match.spans]
        else:
            best = match.closest
            closest = f"the closest is {clock(best.start)} to {clock(best.end)}, score {best.score:.3f}"
            if min_probability is None:
                lines.append(f"  nothing stands out; {closest} of at least {result.min_score:.3f}")
            else:
                lines.append(f"  {NO_MATCH.format('recording')}; {closest},{_percent(best)}")
    return "\n".join(lines)


def _percent(span: Span) -> str:
    return "" if span.probability is None else f" {100 * span.probability:5.1f} %"


main = of.main_of("wavlink where", of.where, run)
