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
from .long_recordings import Recording, Span, check_score, clock, encode_recording, noise_score, windows_for
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
            this recording, so that a sound that is not there has no span).
        device: such as `"cuda"` (default: the CPU, or where a loaded model is).
        dtype: `"float32"` (default), `"bfloat16"` or `"float16"`.

    Returns:
        For one text, its spans, best first; they do not overlap and have `start` and `end` in seconds and `score`, a
        cosine. For a list of texts or with `by_sound`, a list of spans for each text, then for each sound.

    Raises:
        ValueError: nothing to look for, a sound that cannot be read, a window or hop that cannot be, or no such `dim`.

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
    matches = find_spans(embedder, recording, texts, sounds, window, hop, top_k, dim, min_score).matches
    result = [match.spans for match in matches]
    return result[0] if isinstance(query, str) and not sounds else result


class Match(NamedTuple):
    """A query in a recording: its name and vector `[D]`, the spans that stand out, and the best span in any case."""

    query: Any
    vector: "np.ndarray[Any, Any]"
    spans: list[Span]
    closest: Span


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
    top_k: int,
    dim: int | None,
    min_score: float | None,
) -> Matches:
    """Encode a recording and find the spans that match each text and each sound.

    Args:
        source, sounds: as for `encode_recording`; each sound is encoded as a whole.
        window, hop: in seconds; None: as `windows_for` chooses, and half of a given window.
        min_score: None: the recording's `noise_score`.

    Raises:
        ValueError: that of `encode_recording`, no such `dim`, `top_k` below 1, or an empty text.
    """
    check_score(min_score)
    dims = sorted({*embedder.matryoshka_dims, embedder.dims})
    if dim not in (None, *dims):
        raise ValueError(f"dim must be one of the nested dims of {embedder.name}, {dims}, got {dim}")
    queries: list[tuple[Any, Any]] = list(zip(texts, embedder.embed_text(texts), strict=True)) if texts else []
    for sound in sounds:
        windows = windows_of(embedder, sound, WINDOW if window is None else window, hop)
        queries.append((sound, encode_recording(embedder, sound, *windows).whole))
    # last: it may take an hour
    recording = encode_recording(embedder, source, *windows_of(embedder, source, window, hop))
    least = noise_score(embedder, recording, dim) if min_score is None else min_score
    matches = []
    for query, vector in queries:
        spans = long_recordings.locate(recording, vector, top_k, dim)
        matches.append(Match(query, vector, [span for span in spans if span.score >= least], spans[0]))
    return Matches(recording, least, matches)


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
    limits = options.window, options.hop, options.top_k, options.dim, options.min_score
    result = find_spans(embedder, options.file, options.query, options.by_sound, *limits)
    if options.picture:
        _draw(options, result)
    if options.as_json:
        print_json(_as_dict(options, embedder, result))
    else:
        print(_as_tables(result))


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
        {kind: match.query, "spans": [asdict(span) for span in match.spans], "closest": asdict(match.closest)}
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


def _as_tables(result: Matches) -> str:
    lines = []
    for match in result.matches:
        lines.append(printable(match.query))
        if match.spans:
            lines.append(f"{'start':>12} {'end':>12} {'score':>7}")
            lines += [f"{clock(span.start):>12} {clock(span.end):>12} {span.score:7.3f}" for span in match.spans]
        else:
            best = match.closest
            closest = f"the closest is {clock(best.start)} to {clock(best.end)}, score {best.score:.3f}"
            lines.append(f"  nothing stands out; {closest} of at least {result.min_score:.3f}")
    return "\n".join(lines)


main = of.main_of("wavlink where", of.where, run)
