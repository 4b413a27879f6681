"""Recordings of any length: heard in overlapping windows as they are decoded, and searched for where a sound is.

    python -m modeling_wavlink.long MODEL FILE --query "a siren" ["a dog barks" ...] [--by_sound FILE ...]
        [--window 10 --hop 5 --top_k 5 --dim D --json --picture timeline.png]

```python
>>> embedder = Embedder("your-name/wavlink-base")
>>> recording = hear(embedder, "night.flac")
>>> locate(recording, embedder.embed_text(["a siren"])[0])
[Span(start=4385.0, end=4400.0, score=0.41...), ...]
```
"""

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from hub_cards.foreign_text import printable
from processing.windows import stream_windows
from wavlink import options as of
from wavlink.console import print_json, run_command

from .destinations import file_destination
from .embedder import Embedder, mean_direction
from .losses_wavlink import truncate_embeddings

WINDOW, HOP = 10.0, 5.0
_LOOKAHEAD = 32  # windows that the embedder sorts by length; they are of one length, so a batch or two is enough


@dataclass(frozen=True)
class Recording:
    """What was heard: `vectors` fp32 `[W, D]` of its windows, from `starts` to `ends` `[W]` s, every `hop` s.

    `whole` `[D]` is their mean, L2-normalised; of a recording of one window that window's vector as it is.
    """

    vectors: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    whole: np.ndarray
    hop: float

    @property
    def duration(self) -> float:
        return float(self.ends[-1])

    @property
    def window(self) -> float:
        return float(self.ends[0] - self.starts[0])


@dataclass(frozen=True)
class Span:
    """From `start` to `end` in seconds; `score` is a cosine."""

    start: float
    end: float
    score: float


def hear(embedder: Embedder, path_or_bytes: str | os.PathLike | bytes, window=WINDOW, hop=HOP) -> Recording:
    """Embeds a sound file's windows (see `processing.windows.stream_windows`) while it is decoded.

    Of the sound itself a few dozen windows are in memory, whatever its length: a day is 17,280 vectors.

    Args:
        window, hop: in seconds; `window` at most the embedder's `max_seconds`.

    Raises:
        ValueError: the file cannot be read, `window` or `hop` is none, or the model gives NaN or infinite values.
    """
    if embedder.max_seconds is not None and window > embedder.max_seconds:
        raise ValueError(f"a window of {window} s is over the {embedder.max_seconds:g} s that the model takes at once")
    times = []

    def clips() -> Iterator[np.ndarray]:
        for part in stream_windows(path_or_bytes, window, hop, embedder.sampling_rate):
            times.append((part.start, part.end))
            yield part.samples

    vectors = list(embedder.embed_clips(clips(), lookahead=_LOOKAHEAD))
    whole, (starts, ends) = mean_direction(vectors), np.array(times).T
    if not np.isfinite(whole).all():
        raise ValueError("the model gives this recording a vector with NaN or infinite values")
    return Recording(np.stack(vectors), starts, ends, whole, hop)


def timeline(recording: Recording, query: np.ndarray, dim: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """How much each step of a recording is like a query.

    A step is a hop long. Its score is the mean of the cosines of the windows that cover it, each weighted by how much
    of the step it covers. What is left at the end is a step of its own if it is half a hop or more.

    Args:
        query: `[D]`, of a text or a sound, from the recording's own model.
        dim: of the vectors that are compared; the first `dim`, L2-normalised again.

    Returns:
        `edges` `[S + 1]` in seconds and `scores` `[S]`.
    """
    cosines = _cosines(recording, query, dim)
    edges = np.arange(max(1, math.floor(recording.duration / recording.hop + 0.5)) + 1) * float(recording.hop)
    edges[-1] = recording.duration
    sums, weights = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    for start, end, cosine in zip(recording.starts, recording.ends, cosines, strict=True):
        part = slice(np.searchsorted(edges, start, "right") - 1, np.searchsorted(edges, end, "left"))
        covered = np.minimum(edges[1:][part], end) - np.maximum(edges[:-1][part], start)
        sums[part] += cosine * covered
        weights[part] += covered
    return edges, sums / weights


def _cosines(recording: Recording, query: np.ndarray, dim: int | None) -> np.ndarray:
    width = recording.vectors.shape[1]
    query = np.asarray(query, dtype=np.float32)
    if query.shape != (width,) or not np.isfinite(query).all() or not query.any():
        raise ValueError(f"a query is one vector [{width}] of finite values from the recording's model, not all zero")
    cut = truncate_embeddings(torch.from_numpy(np.vstack([recording.vectors, query])), width if dim is None else dim)
    return (cut[:-1] @ cut[-1]).double().numpy()  # (W)


def locate(recording: Recording, query: np.ndarray, top_k: int = 5, dim: int | None = None) -> list[Span]:
    """Where in a recording a sound is: up to `top_k` spans that do not overlap, the best first.

    The rule, on the steps of `timeline`: a hit is a step that scores no less than its neighbours, and takes in the
    steps around it that score at least half way from the recording's median to it. Its score is that of its best step.
    Best steps less than a window apart were heard in one window, and are one hit.

    Args:
        query, dim: as for `timeline`.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be 1 span or more, got {top_k}")
    edges, scores = timeline(recording, query, dim)
    padded = np.concatenate([[-np.inf], scores, [-np.inf]])
    peaks = np.flatnonzero((scores >= padded[:-2]) & (scores >= padded[2:]))
    median, spans = np.median(scores), []
    free = np.ones(len(scores), dtype=bool)  # steps of no span
    best = np.ones(len(scores), dtype=bool)  # steps that may still be the best one of a hit
    for peak in peaks[np.argsort(-scores[peaks], kind="stable")]:
        if len(spans) < top_k and free[peak] and best[peak]:
            enough = min((median + scores[peak]) / 2, scores[peak])
            # 1e-6: equal cosines that were weighted differently are not equal to the last bit
            first, last = _run(free & (scores >= enough - 1e-6), peak)
            spans.append(Span(float(edges[first]), float(edges[last + 1]), float(scores[peak])))
            free[first : last + 1] = False
            best &= np.abs(edges[:-1] - edges[peak]) >= recording.window - 1e-6
    return spans


def _run(steps: np.ndarray, place: int) -> tuple[int, int]:
    """The first and the last of the True `steps` without a gap around `place`, which is one."""
    gaps = np.flatnonzero(~np.pad(steps, 1)) - 1  # from -1 to len(steps)
    after = np.searchsorted(gaps, place)
    return int(gaps[after - 1]) + 1, int(gaps[after]) - 1


def envelope(path_or_bytes: str | os.PathLike | bytes, duration: float, points: int = 2000) -> np.ndarray:
    """`[about points]` largest absolute samples of equal parts of a recording of `duration` seconds, as it is
    decoded."""
    step = max(duration / points, 1 / 16000)
    return np.array([np.abs(part.samples).max() for part in stream_windows(path_or_bytes, step, step)])


def main(argv: Sequence[str] | None = None) -> None:
    run(_parser().parse_args(argv))


def run(options: argparse.Namespace) -> None:
    if not options.query and not options.by_sound:
        raise ValueError('nothing to look for: give --query "a siren" or --by_sound FILE')
    if options.picture:
        _check_picture(Path(options.picture))
    embedder = Embedder(options.model, revision=options.revision, device=options.device)
    given = options.window, options.hop, options.top_k, options.dim
    recording, found = locate_all(embedder, options.file, options.query, options.by_sound, *given)
    if options.picture:
        _draw(options, recording, found)
    if options.as_json:
        print_json(_as_dict(options, embedder, recording, found))
    else:
        print(_as_tables(found))


def locate_all(
    embedder: Embedder,
    file,
    texts: Sequence[str],
    sounds: Sequence,
    window: float,
    hop: float,
    top_k: int,
    dim: int | None,
) -> tuple[Recording, list[tuple]]:
    """The recording, and of each text, then of each sound, its name, vector `[D]` and spans (see `locate`).

    Args:
        file, sounds: what `hear` takes; each sound is looked for as a whole.

    Raises:
        ValueError: `hear`'s, no such `dim`, `top_k` below 1, or an empty text.
    """
    dims = sorted({*embedder.matryoshka_dims, embedder.dims})
    if dim not in (None, *dims):
        raise ValueError(f"dim must be one of the nested dims of {embedder.name}, {dims}, got {dim}")
    texts = list(texts)
    queries = list(zip(texts, embedder.embed_text(texts), strict=True)) if texts else []
    queries += [(sound, hear(embedder, sound, window, hop).whole) for sound in sounds]
    recording = hear(embedder, file, window, hop)  # last: it may take an hour
    return recording, [(name, vector, locate(recording, vector, top_k, dim)) for name, vector in queries]


def _check_picture(path: Path) -> None:
    """Before the recording is heard, which may take an hour."""
    if path.suffix != ".png" or not path.parent.is_dir():
        raise ValueError(f"--picture {path}: give the name of a .png in a folder that exists")
    file_destination(path)


def _draw(options: argparse.Namespace, recording: Recording, found: list) -> None:
    from .pictures import draw_timeline

    curves = {
        printable(name): (*timeline(recording, vector, options.dim), [(span.start, span.end) for span in spans])
        for name, vector, spans in found
    }
    draw_timeline(envelope(options.file, recording.duration), recording.duration, curves, Path(options.picture))


def _as_dict(options: argparse.Namespace, embedder: Embedder, recording: Recording, found: list) -> dict:
    asked = ["text"] * len(options.query) + ["sound"] * len(options.by_sound)
    results = [
        {kind: name, "spans": [asdict(span) for span in spans]}
        for kind, (name, _, spans) in zip(asked, found, strict=True)
    ]
    about = {"model": embedder.name, "revision": embedder.revision, "dim": options.dim or embedder.dims}
    heard = {"file": options.file, "duration": recording.duration, "window": options.window, "hop": options.hop}
    return {**about, **heard, "queries": results}


def _as_tables(found: list) -> str:
    lines = []
    for name, _, spans in found:
        lines += [printable(name), f"{'start':>12} {'end':>12} {'score':>7}"]
        lines += [f"{clock(span.start):>12} {clock(span.end):>12} {span.score:7.3f}" for span in spans]
    return "\n".join(lines)


def clock(seconds: float) -> str:
    """`1:02:03.4` of 3723.4 seconds."""
    tenths = round(10 * seconds)
    return f"{tenths // 36000}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"


def _parser() -> argparse.ArgumentParser:
    return of.parser_of(of.where, "python -m modeling_wavlink.long", __doc__)


if __name__ == "__main__":
    sys.exit(run_command("modeling_wavlink.long", main))
