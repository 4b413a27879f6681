"""Finding a sound in a recording: the function `locate`, and the command `wavlink where`.

wavlink where runs/my/best night.flac --query "a siren" "a dog barks" --picture timeline.png
"""

import argparse
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from processing.audio import AudioSource, sounds_of

from . import long_recordings
from .console import print_json
from .destinations import file_destination
from .embedder import Embedder, embedder_for
from .long_recordings import Span, check_score, clock
from .options import models as of
from .parsing import main_of
from .probability import NO_MATCH, described
from .sanitize import printable
from .span_search import Limits, Matches, find_spans

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

Model: TypeAlias = "str | os.PathLike[str] | PreTrainedModel | Embedder | None"


@overload
def locate(
    model: Model,
    recording: AudioSource,
    query: str,
    *,
    processor: "ProcessorMixin | None" = None,
    window: float | None = None,
    hop: float | None = None,
    top_k: int = 5,
    dim: int | None = None,
    min_score: float | None = None,
    min_probability: float | None = None,
    prior: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
    backend: str | None = None,
    precision: str | None = None,
) -> list[Span]: ...


@overload
def locate(
    model: Model,
    recording: AudioSource,
    query: list[str] | tuple[str, ...] = (),
    *,
    by_sound: AudioSource | Iterable[AudioSource] = (),
    processor: "ProcessorMixin | None" = None,
    window: float | None = None,
    hop: float | None = None,
    top_k: int = 5,
    dim: int | None = None,
    min_score: float | None = None,
    min_probability: float | None = None,
    prior: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
    backend: str | None = None,
    precision: str | None = None,
) -> list[list[Span]]: ...


def locate(
    model: Model,
    recording: AudioSource,
    query: str | list[str] | tuple[str, ...] = (),
    *,
    by_sound: AudioSource | Iterable[AudioSource] = (),
    processor: "ProcessorMixin | None" = None,
    window: float | None = None,
    hop: float | None = None,
    top_k: int = 5,
    dim: int | None = None,
    min_score: float | None = None,
    min_probability: float | None = None,
    prior: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
    backend: str | None = None,
    precision: str | None = None,
) -> list[Span] | list[list[Span]]:
    """Find the parts of a recording of any length that match a text, or a sound.

    The recording is encoded in overlapping windows while it is decoded, so that a day of sound needs little memory. A
    model with a frame head beside it (`wavlink train-frames`) finds them in steps of 0.2 s instead, where none of
    `window`, `hop` and `dim` is given.

    Args:
        model: a folder or Hub id (see `Embedder`; None: the bundled `wavlink-tiny`), a loaded model (with `processor`)
            or an `Embedder`.
        recording: a file's path or bytes, `{"array": samples, "sampling_rate": hertz}` with mono floats `[samples]` in
            [-1, 1], or a decoder of `datasets`.
        query: a text, or a list of texts.
        by_sound: sounds to look for, one or several, given as `recording` is.
        processor: of a loaded model.
        window: length of a window in seconds, at most the model's 30 s (default without a frame head: 10; of up to
            120 s 4).
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
        backend, precision: see `Embedder`.

    Returns:
        For one text, its spans, best first; they do not overlap and have `start` and `end` in seconds, `score`, a
        cosine, and `probability`, that the span matches: by the head's or the model's calibration; of a model without
        one, and with `min_probability`, that it stands out from the recording (see `wavlink.probability.Background`);
        else None, as for a sound. For a list of texts or with `by_sound`, a list of spans for each text, then for each
        sound.

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
    sounds: list[AudioSource] = list(sounds_of(by_sound))
    if not texts and not sounds:
        raise ValueError("nothing to look for: give a text as query, or a sound as by_sound")
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"query must be a text or a list of texts that are not empty, got {query!r}")
    if top_k < 1:
        raise ValueError(f"top_k must be 1 span or more, got {top_k}")
    embedder = embedder_for(model, processor, device, dtype, backend, precision)
    limits = Limits(top_k, dim, min_score, min_probability, prior)
    matches = find_spans(embedder, recording, texts, sounds, window, hop, limits).matches
    result = [match.spans for match in matches]
    return result[0] if isinstance(query, str) and not sounds else result


def run(options: argparse.Namespace) -> None:
    """Print the spans of each query, and draw them with `--picture`."""
    if not options.query and not options.by_sound:
        raise ValueError('nothing to look for: give --query "a siren" or --by_sound FILE')
    if options.picture:  # before the recording is encoded, which may take an hour
        _check_plot(Path(options.picture))
    check_score(options.min_score)
    run = {"device": options.device, "backend": options.backend, "precision": options.precision}
    embedder = Embedder(options.model, revision=options.revision, **run)
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
                lines.append(f"  {NO_MATCH.format('recording')}; {closest}, match{_percent(best)}")
    return "\n".join(lines)


def _percent(span: Span) -> str:
    return "" if span.probability is None else f" {100 * span.probability:5.1f} %"


main = main_of("wavlink where", of.where, run)
