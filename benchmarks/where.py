"""Where in a recording is this sound? Recordings made of real clips at known times, asked for each of them.

    python benchmarks/where.py MODEL [MODEL ...] FOLDER [--windows frames 10/5 4/2] [--seeds 0 1 2] [--record]

FOLDER is an audiofolder whose metadata has `caption` and `label`; its test split is used. `frames` are the steps of a
model's frame head. Each seed has its own recordings, and its own model if as many are given. A recording is a
background of clips end to end, and over it, in every quarter of a minute, one clip of up to 12 s at a random place,
`--snr` dB louder. No two of these have the same label or caption, and none in the background has theirs. Each is asked
for by its caption, by its label in the zero-shot prompt, and by another clip of its label.

A span hits if its middle is inside the clip or the clip's middle is inside it. `error` is the median distance of the
middles of the best span and the clip, `iou` how much the two share. The random baseline is the same spans, turned
about the recording by a random time. Intervals are 95 % bootstrap intervals over recordings.
"""

import argparse
import io
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import records
import soundfile
import tables
from tqdm import tqdm

from processing.audio import load_column
from processing.datasets.load import load_split
from wavlink.embedder import Embedder
from wavlink.evaluation.metrics import Correspondence, figure
from wavlink.evaluation.zero_shot import PROMPT, label_texts
from wavlink.long_recordings import Recording, Span, encode_recording, locate
from wavlink.span_search import frame_head_of, steps_of

SLOT, LONGEST, SHORTEST = 15.0, 12.0, 0.5  # seconds
TOP_K = 5
FRAMES = "frames"
_STATE: dict = {}  # of a process that measures recordings
FIGURES = ("hit@1", "hit@5", "iou", "error")


@dataclass(frozen=True)
class Planted:
    """A clip in a recording, from `start` to `end` s; `like` is the row of another clip with its label."""

    start: float
    end: float
    caption: str
    label: str
    like: int


def compose(rows, minutes: float, snr: float, rng: np.random.Generator, rate: int) -> tuple[np.ndarray, list[Planted]]:
    """A recording `[samples]` and what is planted in it."""
    samples = np.zeros(round(60 * minutes * rate), np.float32)
    chosen = _choose(rows, round(60 * minutes / SLOT), rng)
    planted = []
    for number, (row, like) in enumerate(chosen):
        clip = _level(load_column(rows[row]["audio"], rate), 0)
        start = round((number + rng.uniform(0, 1 - len(clip) / rate / SLOT)) * SLOT * rate)
        samples[start : start + len(clip)] += clip
        times = start / rate, (start + len(clip)) / rate
        planted.append(Planted(*times, rows[row]["caption"], rows[row]["label"], like))
    _lay_background(samples, rows, planted, snr, rng, rate)
    return 0.5 * samples / np.abs(samples).max(), planted


def _choose(rows, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Rows of distinct labels and captions, the labels drawn first, each with another row of its label."""
    of_label = defaultdict(list)
    for index, (label, caption, seconds) in enumerate(
        zip(rows["label"], rows["caption"], rows["duration"], strict=True)
    ):
        if label and caption and SHORTEST <= seconds <= LONGEST:
            of_label[label].append(index)
    chosen, captions = [], set()
    several = sorted(label for label, clips in of_label.items() if len(clips) > 1)
    for label in rng.permutation(several):
        row, like = rng.choice(of_label[label], 2, replace=False).tolist()
        if len(chosen) < count and rows[row]["caption"] not in captions:
            chosen.append((row, like))
            captions.add(rows[row]["caption"])
    if len(chosen) < count:
        raise ValueError(f"{count} labels of two clips or more are needed, there are {len(chosen)}: lower --minutes")
    return [chosen[place] for place in rng.permutation(count)]


def _lay_background(samples: np.ndarray, rows, planted: list[Planted], snr: float, rng, rate: int) -> None:
    """Adds clips of other labels and captions, end to end, `snr` dB below those planted."""
    labels, captions = {clip.label for clip in planted}, {clip.caption for clip in planted}
    others = [
        index
        for index, (label, caption) in enumerate(zip(rows["label"], rows["caption"], strict=True))
        if label not in labels and caption not in captions
    ]
    if not others:
        raise ValueError("every clip has a label of those planted: none is left for the background")
    place = 0
    while place < len(samples):
        clip = _level(load_column(rows[int(rng.choice(others))]["audio"], rate), -snr)[: len(samples) - place]
        samples[place : place + len(clip)] += clip
        place += len(clip)


def _level(clip: np.ndarray, decibels: float) -> np.ndarray:
    """A clip at -20 dB (RMS) and so many more; one of silence stays one."""
    return clip * np.float32(0.1 * 10 ** (decibels / 20) / max(np.sqrt(np.mean(clip**2)), 1e-6))


def questions(embedder: Embedder, rows, planted: list[Planted]) -> dict[str, list[np.ndarray]]:
    """How it is asked -> of each planted clip the query `[D]`."""
    texts = label_texts([clip.label for clip in planted])
    sounds = [load_column(rows[clip.like]["audio"], embedder.sampling_rate) for clip in planted]
    return {
        "caption": list(embedder.embed_text([clip.caption for clip in planted])),
        "label": list(embedder.embed_text([PROMPT.replace("{}", text) for text in texts])),
        "sound": list(embedder.embed_clips(sounds)),
    }


def scores(spans: Sequence[Span], clip: Planted) -> dict[str, float]:
    hits = [
        span.start <= (clip.start + clip.end) / 2 <= span.end or clip.start <= (span.start + span.end) / 2 <= clip.end
        for span in spans
    ]
    best = spans[0]
    shared = max(0.0, min(best.end, clip.end) - max(best.start, clip.start))
    iou = shared / (best.end - best.start + clip.end - clip.start - shared)
    error = abs(best.start + best.end - clip.start - clip.end) / 2
    return {"hit@1": float(hits[0]), "hit@5": float(any(hits)), "iou": iou, "error": error}


def turned(spans: Sequence[Span], duration: float, rng: np.random.Generator) -> list[Span]:
    """The same spans, all later by one random time; those past the end go on at the beginning."""
    by = rng.uniform(0, duration)
    starts = [(span.start + by) % duration for span in spans]
    return [Span(start, start + span.end - span.start, span.score) for start, span in zip(starts, spans, strict=True)]


def ask(recording: Recording, planted: list[Planted], queries: dict, number: int, rng) -> list[dict]:
    """A row of scores for each question of recording `number`, and beside them those of the random baseline."""
    rows = []
    for kind, vectors in queries.items():
        for clip, vector in zip(planted, vectors, strict=True):
            spans = locate(recording, vector, TOP_K)
            baseline = scores(turned(spans, recording.duration, rng), clip)
            rows.append({"kind": kind, "recording": number, "found": scores(spans, clip), "random": baseline})
    return rows


def summary(rows: list[dict]) -> dict:
    """kind -> figure -> `{"found", "random"}`, each with its interval over recordings; "error" is a median."""
    result = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        asked = [row for row in rows if row["kind"] == kind]
        recordings = Correspondence([[row["recording"]] for row in asked], 1 + max(row["recording"] for row in asked))
        result[kind] = {"questions": len(asked)}
        for name in FIGURES:
            result[kind][name] = {
                who: figure([row[who][name] for row in asked], recordings, median=name == "error")
                for who in ("found", "random")
            }
    return result


def measure(options: argparse.Namespace) -> tuple[dict, list]:
    """window/hop, or `frames` -> `summary` over the recordings of all seeds; and the model and revision of each."""
    models = options.models * (len(options.seeds) // len(options.models))
    jobs = [
        (place * options.count + number, seed, number, model)
        for place, (seed, model) in enumerate(zip(options.seeds, models, strict=True))
        for number in range(options.count)
    ]
    asked, named = defaultdict(list), {}
    with ProcessPoolExecutor(options.processes, get_context("spawn"), _open, (options,)) as pool:
        for job, (about, rows) in zip(jobs, tqdm(pool.map(_measure_one, jobs), total=len(jobs)), strict=True):
            named[job[1]] = about
            for windows, found in rows.items():
                asked[windows] += found
    return {windows: summary(found) for windows, found in asked.items()}, [named[seed] for seed in options.seeds]


def _open(options: argparse.Namespace) -> None:
    """Load what every recording of this process needs."""
    _STATE.update(options=options, rows=load_split(options.folder, options.split), embedders={})


def _measure_one(job: tuple[int, int, int, str]) -> tuple[tuple[str, str], dict]:
    """Compose one recording and ask for what is planted in it, in each of the windows."""
    place, seed, number, model = job
    options, rows = _STATE["options"], _STATE["rows"]
    if model not in _STATE["embedders"]:
        _STATE["embedders"][model] = Embedder(model)
    embedder = _STATE["embedders"][model]
    rng = np.random.default_rng([seed, number])
    samples, planted = compose(rows, options.minutes, options.snr, rng, embedder.sampling_rate)
    queries = questions(embedder, rows, planted)
    file = io.BytesIO()
    soundfile.write(file, samples, embedder.sampling_rate, format="WAV", subtype="FLOAT")
    found = {}
    for windows in options.windows:
        recording = encode(embedder, file.getvalue(), windows)
        found[windows] = ask(recording, planted, queries, place, np.random.default_rng([seed, number, 1]))
    return (embedder.name, embedder.revision), found


def encode(embedder: Embedder, sound: bytes, windows: str) -> Recording:
    """A recording in windows (`10/5`) or, for `frames`, in the steps of the model's frame head."""
    if windows != FRAMES:
        return encode_recording(embedder, sound, *map(float, windows.split("/")))
    fitted = frame_head_of(embedder)
    if fitted is None:
        raise ValueError(f"{embedder.name} has no frame head: `wavlink train-frames` makes one")
    return steps_of(embedder, fitted, sound)


def as_values(results: dict) -> dict:
    """The table of a record: each figure beside that of the same spans at a random place."""
    columns = ["window / hop", "asked by", "first span hits", "random", "one of five", "random", "IoU", "random"]
    columns += ["distance", "random"]
    rows = [
        [
            *(windows, kind),
            *(
                records.percent(figures[name][who])
                for name in ("hit@1", "hit@5", "iou")
                for who in ("found", "random")
            ),
            *({**figures["error"][who], "digits": 0, "unit": "s"} for who in ("found", "random")),
        ]
        for windows, kinds in results.items()
        for kind, figures in kinds.items()
    ]
    return {"spans": records.table(columns, rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folders or Hub ids: one, or one for each seed")
    parser.add_argument("folder", help="an audiofolder with a test split")
    parser.add_argument("--windows", nargs="+", default=["10/5", "4/2", "2/0.5"], help="window/hop in s, or frames")
    parser.add_argument("--split", default="test", help="of the folder")
    parser.add_argument("--count", type=int, default=40, help="recordings of each seed")
    parser.add_argument("--minutes", type=float, default=5.0, help="of each")
    parser.add_argument("--snr", type=float, default=10.0, help="dB by which a planted clip is louder")
    parser.add_argument("--processes", type=int, default=1, help="that measure recordings side by side")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the recordings")
    records.add_option(parser, "where")
    options = parser.parse_args()
    if len(options.models) not in (1, len(options.seeds)):
        parser.error(f"{len(options.models)} models for {len(options.seeds)} seeds: give one, or one for each")
    rows = load_split(options.folder, options.split)
    if missing := {"caption", "label", "duration"} - set(rows.column_names):
        parser.error(f"{options.folder} has no column {', '.join(sorted(missing))}")
    results, models = measure(options)
    values = as_values(results)
    print(tables.markdown(values["spans"]))
    records.write(
        options.record,
        title="Spans found in recordings made of known clips",
        seed=options.seeds[0],
        note=f"{options.count} recordings of {options.minutes:g} minutes for each of the seeds "
        f"{', '.join(map(str, options.seeds))}, {options.snr:g} dB over the background, of the split {options.split}; "
        "percent, with 95 % bootstrap intervals over recordings.",
        values=values,
        raw={"models": models, "results": results},
    )


if __name__ == "__main__":
    main()
