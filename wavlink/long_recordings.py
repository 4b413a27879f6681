"""Recordings of any length: heard in overlapping windows as they are decoded, and searched for where a sound is.

    python -m wavlink.long_recordings MODEL FILE --query "a siren" ["a dog barks" ...] [--by_sound FILE ...]
        [--window 10 --hop 5 --top_k 5 --min_score 0.4 --dim D --json --picture timeline.png]

```python
>>> embedder = Embedder("your-name/wavlink-base")
>>> recording = hear(embedder, "night.flac")
>>> locate(recording, embedder.embed_text(["a siren"])[0])
[Span(start=4385.0, end=4400.0, score=0.41...), ...]
>>> locate(recording, embedder.embed_text(["a violin"])[0], min_score=noise_score(embedder, recording))
[]
```
"""

import argparse
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from modeling_wavlink.losses_wavlink import truncate_embeddings
from processing.prompts import PROMPT
from processing.windows import stream_windows

from . import options as of
from .common_sounds import COMMON_SOUNDS
from .console import print_json
from .destinations import file_destination
from .embedder import Embedder, mean_direction
from .options import HOP, SHORT, SHORT_HOP, SHORT_WINDOW, WINDOW
from .sanitize import printable

# Of common sounds that score less. With the model of `quickstart`, in 12 minutes with 48 of its sounds over noise,
# 72 % of those found by their label score more, and 7 % of absent labels (by another sound of the label: 74 and 8 %).
NOISE_SHARE = 0.9
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


def windows_for(path_or_bytes: str | os.PathLike | bytes, longest: float | None = None) -> tuple[float, float]:
    """Choose a window and a hop, in seconds, by a recording's length; up to `SHORT` of it is decoded.

    Args:
        longest: seconds that the model takes at once; None where it has no limit.
    """
    parts = stream_windows(path_or_bytes, SHORT, SHORT)
    next(parts)
    window, hop = (SHORT_WINDOW, SHORT_HOP) if next(parts, None) is None else (WINDOW, HOP)
    window = min(window, longest or window)
    return window, min(hop, window)


def noise_score(embedder: Embedder, recording: Recording, dim: int | None = None) -> float:
    """Compute the score from which a query stands out in a recording.

    Nine of ten common sounds (`COMMON_SOUNDS`) score less where they score best. Most of them are not in the
    recording, so this is what a model gives without reason: it follows the model's own scale, and a sound that goes on
    all the time can stand out as well.

    Args:
        dim: as for `timeline`.
    """
    names = embedder.embed_text([PROMPT.replace("{}", name) for name in COMMON_SOUNDS])
    names = np.unique(names.astype(np.float32).round(3), axis=0)  # words a tokenizer does not know have one vector
    count, width = recording.vectors.shape
    both = torch.from_numpy(np.vstack([recording.vectors, names]))
    cut = truncate_embeddings(both, width if dim is None else dim)
    _, scores = _steps(recording, (cut[:count] @ cut[count:].T).double().numpy())  # (S, N)
    return float(np.quantile(scores.max(0), NOISE_SHARE))


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
    return _steps(recording, _cosines(recording, query, dim))


def _steps(recording: Recording, cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The edges of the steps, and their scores `[S, ...]` by the windows' cosines `[W, ...]`."""
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
    cut = truncate_embeddings(torch.from_numpy(np.vstack([recording.vectors, query])), width if dim is None else dim)
    return (cut[:-1] @ cut[-1]).double().numpy()  # (W)


def locate(
    recording: Recording, query: np.ndarray, top_k: int = 5, dim: int | None = None, min_score: float | None = None
) -> list[Span]:
    """Where in a recording a sound is: up to `top_k` spans that do not overlap, the best first.

    The rule, on the steps of `timeline`: a hit is a step that scores no less than its neighbours, and takes in the
    steps around it that score at least half way from the recording's median to it. Its score is that of its best step.
    Best steps less than a window apart were heard in one window, and are one hit.

    Args:
        query, dim: as for `timeline`.
        min_score: of a span; there is none where nothing scores so much. `noise_score` gives one.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be 1 span or more, got {top_k}")
    _check_score(min_score)
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
            if min_score is None or scores[peak] >= min_score:
                spans.append(Span(float(edges[first]), float(edges[last + 1]), float(scores[peak])))
            free[first : last + 1] = False
            best &= np.abs(edges[:-1] - edges[peak]) >= recording.window - 1e-6
    return spans


def _check_score(min_score: float | None) -> None:
    if min_score is not None and not -1 <= min_score <= 1:
        raise ValueError(f"min_score is a cosine, from -1 to 1, got {min_score}")


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
    _check_score(options.min_score)
    embedder = Embedder(options.model, revision=options.revision, device=options.device)
    given = options.window, options.hop, options.top_k, options.dim, options.min_score
    recording, least, found = locate_all(embedder, options.file, options.query, options.by_sound, *given)
    if options.picture:
        _draw(options, recording, found, least)
    if options.as_json:
        print_json(_as_dict(options, embedder, recording, found, least))
    else:
        print(_as_tables(found, least))


def locate_all(
    embedder: Embedder,
    file,
    texts: Sequence[str],
    sounds: Sequence,
    window: float | None,
    hop: float | None,
    top_k: int,
    dim: int | None,
    min_score: float | None,
) -> tuple[Recording, float, list[tuple]]:
    """The recording, the least score of a span, and of each text, then of each sound, what was found.

    That is its name, vector `[D]`, the spans that stand out (see `locate`), and the best span in any case.

    Args:
        file, sounds: what `hear` takes; each sound is looked for as a whole.
        window, hop: in seconds; None: `windows_for` chooses for the recording, and the hop is half of a window that is
            given.
        min_score: None is `noise_score`'s.

    Raises:
        ValueError: `hear`'s, no such `dim`, `top_k` below 1, or an empty text.
    """
    _check_score(min_score)
    dims = sorted({*embedder.matryoshka_dims, embedder.dims})
    if dim not in (None, *dims):
        raise ValueError(f"dim must be one of the nested dims of {embedder.name}, {dims}, got {dim}")
    texts = list(texts)
    queries = list(zip(texts, embedder.embed_text(texts), strict=True)) if texts else []
    for sound in sounds:
        of_sound = _windows(embedder, sound, WINDOW if window is None else window, hop)
        queries.append((sound, hear(embedder, sound, *of_sound).whole))
    recording = hear(embedder, file, *_windows(embedder, file, window, hop))  # last: it may take an hour
    least = noise_score(embedder, recording, dim) if min_score is None else min_score
    found = []
    for name, vector in queries:
        spans = locate(recording, vector, top_k, dim)
        found.append((name, vector, [span for span in spans if span.score >= least], spans[0]))
    return recording, least, found


def _windows(embedder: Embedder, file, window: float | None, hop: float | None) -> tuple[float, float]:
    """The window and the hop; a hop that is not given is half of a window that is."""
    if window is not None:
        return window, window / 2 if hop is None else hop
    window, chosen = windows_for(file, embedder.max_seconds)
    return window, chosen if hop is None else hop


def _check_picture(path: Path) -> None:
    """Before the recording is embedded, which may take an hour."""
    if path.suffix != ".png" or not path.parent.is_dir():
        raise ValueError(f"--picture {path}: give the name of a .png in a folder that exists")
    file_destination(path)


def _draw(options: argparse.Namespace, recording: Recording, found: list, least: float) -> None:
    from .plots import draw_timeline

    curves = {
        printable(name): (*timeline(recording, vector, options.dim), [(span.start, span.end) for span in spans])
        for name, vector, spans, _ in found
    }
    peaks = envelope(options.file, recording.duration)
    draw_timeline(peaks, recording.duration, curves, Path(options.picture), min_score=least)


def _as_dict(options: argparse.Namespace, embedder: Embedder, recording: Recording, found: list, least: float) -> dict:
    asked = ["text"] * len(options.query) + ["sound"] * len(options.by_sound)
    results = [
        {kind: name, "spans": [asdict(span) for span in spans], "closest": asdict(closest)}
        for kind, (name, _, spans, closest) in zip(asked, found, strict=True)
    ]
    about = {"model": embedder.name, "revision": embedder.revision, "dim": options.dim or embedder.dims}
    heard = {"file": options.file, "duration": recording.duration, "window": recording.window, "hop": recording.hop}
    return {**about, **heard, "min_score": least, "queries": results}


def _as_tables(found: list, least: float) -> str:
    lines = []
    for name, _, spans, best in found:
        lines.append(printable(name))
        if spans:
            lines.append(f"{'start':>12} {'end':>12} {'score':>7}")
            lines += [f"{clock(span.start):>12} {clock(span.end):>12} {span.score:7.3f}" for span in spans]
        else:
            closest = f"the closest is {clock(best.start)} to {clock(best.end)}, score {best.score:.3f}"
            lines.append(f"  nothing stands out; {closest} of at least {least:.3f}")
    return "\n".join(lines)


def clock(seconds: float) -> str:
    """`1:02:03.4` of 3723.4 seconds."""
    tenths = round(10 * seconds)
    return f"{tenths // 36000}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"


def _parser() -> argparse.ArgumentParser:
    return of.parser_of(of.where, "wavlink where", __doc__)
