"""Audio moment retrieval: recordings with sentences, and the windows in which each sentence is true.

| name | sounds | annotations, as published |
|---|---|---|
| `clotho-moment` | `VID.wav` | `text/SPLIT.jsonl`, or `clotho_moment_SPLIT_release.jsonl` of lighthouse |
| `castella` | `YID.*` | `json/en/SPLIT.json`, or `castella_SPLIT_release.jsonl` of lighthouse |

A line of JSONL is `{"qid", "query", "vid", "duration", "relevant_windows": [[start, end], ...]}`, in seconds.
CASTELLA's JSON is a list of `{"yid", "duration", "moments": [{"local_caption", "timestamps": [[start, end], ...]}]}`.
Clotho-Moment: arXiv 2409.15672, CASTELLA: arXiv 2511.15131, lighthouse: arXiv 2408.02901.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow

from processing.text_inputs_wavlink import has_half_pair

from .report import MomentReport
from .youtube_ids import clip_keys, find_clips, index_folder, seconds_of

MOMENTS = ("clotho-moment", "castella")
_SPLITS = (("train",), ("val", "valid", "validation"), ("test",))  # names of the same split
_LIGHTHOUSE = ("{name}_{split}_release.jsonl", "data/{name}/{name}_{split}_release.jsonl")
_FILES = {
    "clotho-moment": ("text/{split}.jsonl", "{split}.jsonl", *_LIGHTHOUSE),
    "castella": ("json/en/{split}.json", "en/{split}.json", "{split}.json", *_LIGHTHOUSE),
}
_ROUNDED = 1.0  # seconds: durations are cut to whole seconds, ends of windows are not
_FEATURES = datasets.Features(
    {
        "audio": datasets.Audio(decode=False),
        "vid": datasets.Value("string"),
        "duration": datasets.Value("float64"),
        "moments": datasets.List(
            {
                "qid": datasets.Value("string"),
                "query": datasets.Value("string"),
                "windows": datasets.List(datasets.List(datasets.Value("float64"))),
            }
        ),
    }
)


def load_moments(name: str, split: str = "", folder: str = "") -> tuple[datasets.Dataset, MomentReport]:
    """Load a split with a row for each recording, and a report of what is left out.

    Columns are `audio` (undecoded, `path`), `vid`, `duration` (seconds, by the file's header) and `moments`, a list of
    `qid`, `query` and `windows` `[[start, end], ...]` in seconds. A window that is empty, or ends over a second after
    its recording, is left out, and so is a query without windows or on a recording without sound. All are counted and
    named.

    Args:
        name: one of `MOMENTS`.
        split: default: `test`; `val`, `valid` and `validation` are the same.
        folder: with the annotations and, at any depth, the sounds. A sound has the recording's id as its name, or a
            known form of its YouTube id (see `clip_keys`).

    Raises:
        ValueError: an unknown name or split, no folder, annotations that cannot be read, or no query left.
    """
    if name not in MOMENTS:
        raise ValueError(f"no data set of moments is called {name!r}: {', '.join(MOMENTS)}")
    if not folder or not Path(folder).is_dir():
        raise ValueError(
            f"{name} is no data set of the Hub that can be loaded by itself: download its sounds and annotations, and "
            f"name their folder by data (--data FOLDER){f', {folder} is none' if folder else ''}"
        )
    path = _annotations(name, split or "test", Path(folder))
    report = MomentReport(name, split or "test")
    moments, seconds = _by_recording(path, report)
    rows = _with_sounds(moments, seconds, folder, report)
    if not rows:
        raise ValueError(f"no query of {path} is left: {report}")
    return datasets.Dataset.from_list(rows).cast(_FEATURES), report


def _annotations(name: str, split: str, folder: Path) -> Path:
    """Return the file of a split: the first of the published names that exists."""
    same = next((names for names in _SPLITS if split in names), None)
    if same is None:
        raise ValueError(f"{name} has no split {split!r}: {', '.join(names[0] for names in _SPLITS)}")
    tried = [form.format(name=name.replace("-", "_"), split=one) for form in _FILES[name] for one in same]
    for relative in tried:
        if (folder / relative).is_file():
            return folder / relative
    raise ValueError(f"{folder} holds no annotations of {name} {split}: one of {', '.join(tried)} is needed")


def _by_recording(path: Path, report: MomentReport) -> tuple[dict[str, list[dict]], dict[str, float]]:
    """Return the usable queries of each recording, and the recording's length as annotated, NaN if it is not."""
    moments: dict[str, list[dict]] = {}
    seconds: dict[str, float] = {}
    known = set()
    for where, row in _rows(path):
        report.rows += 1
        if (query := _query(row)) is None:
            report.note("malformed", where)
            continue
        vid, qid, text, duration, windows = query
        kept = [window for window in windows if 0 <= window[0] < window[1] <= duration + _ROUNDED]
        if len(kept) < len(windows):
            report.note("bad_windows", f"{qid} of {where}", len(windows) - len(kept))
        if qid in known:
            report.note("repeated", f"{qid} of {where}")
        elif not kept:
            report.note("without_windows", f"{qid} of {where}")
        else:
            known.add(qid)
            moments.setdefault(vid, []).append({"qid": qid, "query": text, "windows": kept})
            seconds[vid] = duration
    return moments, seconds


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield a name for messages and the row of each query, in JSONL's form; what cannot be read is None."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors write a byte order mark
        content = json.loads(text) if path.suffix == ".json" else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"line {number}", _parsed(line)
        return
    if not isinstance(content, list):
        raise ValueError(f"{path} is no list of recordings")
    for number, recording in enumerate(content, start=1):
        moments = recording.get("moments") if isinstance(recording, dict) else None
        if not isinstance(moments, list):
            yield f"recording {number}", None
            continue
        for place, moment in enumerate(moments, start=1):
            moment = moment if isinstance(moment, dict) else {}
            yield (
                f"recording {number}",
                {
                    "qid": f"{recording.get('yid')}_{place}",
                    "vid": recording.get("yid"),
                    "duration": recording.get("duration"),
                    "query": moment.get("local_caption"),
                    "relevant_windows": moment.get("timestamps"),
                },
            )


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _query(row: Any) -> tuple[str, str, str, float, list[list[float]]] | None:
    """Return vid, qid, query, duration (infinite where there is none) and windows; None for a row of another form."""
    if not isinstance(row, dict):
        return None
    vid, qid, text, windows = (row.get(key) for key in ("vid", "qid", "query", "relevant_windows"))
    duration = math.inf if row.get("duration") is None else row["duration"]
    if not (isinstance(vid, str) and vid and isinstance(qid, str | int) and isinstance(text, str) and text.strip()):
        return None
    if any(map(has_half_pair, (vid, str(qid), text))):
        return None
    if not _is_number(duration) or not isinstance(windows, list):
        return None
    if not all(isinstance(window, list) and len(window) == 2 and all(map(_is_number, window)) for window in windows):
        return None
    return vid, str(qid), text.strip(), float(duration), [[float(time) for time in window] for window in windows]


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return not math.isnan(value)
    except OverflowError:  # no float is so large
        return False


def _with_sounds(
    moments: dict[str, list[dict]], seconds: dict[str, float], folder: str, report: MomentReport
) -> list[dict]:
    """Return the rows of the recordings whose sound can be read, and fill the report."""
    if not moments:
        return []
    files = index_folder(folder)
    found = find_clips(clip_keys(pyarrow.array(list(moments), "string")), clip_keys(files["stem"]))
    paths = [files["path"][int(row)].as_py() if row >= 0 else "" for row in found]
    lengths = np.full(len(paths), np.nan)
    present = [number for number, path in enumerate(paths) if path]
    lengths[present] = seconds_of(paths[number] for number in present)
    rows = []
    for (vid, queries), path, length in zip(moments.items(), paths, lengths.tolist(), strict=True):
        if math.isnan(length):
            report.note("broken" if path else "missing", vid)
            report.without_sound += len(queries)
            continue
        if math.isinf(seconds[vid]):
            queries = _ending_by(length + _ROUNDED, vid, queries, report)
        elif abs(length - seconds[vid]) > _ROUNDED:
            report.note("other_length", vid)
        if not queries:
            continue
        report.queries += len(queries)
        rows.append({"audio": {"bytes": None, "path": path}, "vid": vid, "duration": length, "moments": queries})
    report.clips = len(rows)
    return rows


def _ending_by(end: float, vid: str, queries: list[dict], report: MomentReport) -> list[dict]:
    """Return the queries with the windows that end by then: for a recording whose length is not annotated."""
    kept = []
    for query in queries:
        windows = [window for window in query["windows"] if window[1] <= end]
        if len(windows) < len(query["windows"]):
            report.note("bad_windows", f"{query['qid']} of {vid}", len(query["windows"]) - len(windows))
        if windows:
            kept.append({**query, "windows": windows})
        else:
            report.note("without_windows", f"{query['qid']} of {vid}")
    return kept
