"""AIR-Bench Foundation (arXiv 2402.07729): clips with a question and two to four choices each."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
from huggingface_hub import snapshot_download

from processing.file_names import existing

from .report import MAX_SECONDS, AirBenchReport
from .youtube_ids import seconds_of

AIR_BENCH = "qyang1021/AIR-Bench-Dataset"
_META = "Foundation_meta.json"
_REQUIRED = ("path", "question", "choice_a", "choice_b", "answer_gt", "task_name", "dataset_name")
_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
_FLAC_TASK = "Audio_Grounding"  # its paths end in wav, but its files in flac
_FEATURES = datasets.Features(
    {
        "audio": datasets.Audio(decode=False),
        "question": datasets.Value("string"),
        "choices": datasets.List(datasets.Value("string")),
        "answer": datasets.Value("int64"),
        "task": datasets.Value("string"),
        "dataset": datasets.Value("string"),
        "uniq_id": datasets.Value("string"),
        "duration": datasets.Value("float64"),
    }
)


def load_air_bench(split: str = "", folder: str = "") -> tuple[datasets.Dataset, AirBenchReport]:
    """Load AIR-Bench with a row for each question, and a report of faults.

    Columns are `audio` (undecoded, `path`), `question`, `choices`, `answer` (the index of the right choice), `task`,
    `dataset`, `uniq_id` (as text) and `duration` (seconds, by the file's header).

    Args:
        split: `Foundation`, the only one with choices.
        folder: a copy of the Hub repository, or of its folder `Foundation`, or another Hub id; default: the Hub.

    Raises:
        ValueError: an unknown split, no list of questions, or no question left.
    """
    if split not in ("", "Foundation"):
        raise ValueError(f"airbench has no split {split!r} with choices: Foundation")
    if not folder or not Path(folder).is_dir():
        folder = snapshot_download(folder or AIR_BENCH, repo_type="dataset", allow_patterns=["Foundation/*"])
    roots = [root for root in (Path(folder), Path(folder) / "Foundation") if (root / _META).is_file()]
    if not roots:
        raise ValueError(f"{folder} holds neither {_META} nor Foundation/{_META}")
    report = AirBenchReport()
    rows = _read_meta(roots[0] / _META)
    report.rows = len(rows)
    questions = [question for row in rows if (question := _question(row, report))]
    kept = _with_sounds(questions, roots[0], report)
    if not kept:
        raise ValueError(f"no question is left in {roots[0]}: {report}")
    return datasets.Dataset.from_list(kept).cast(_FEATURES), report


def _read_meta(path: Path) -> list[dict]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} is no list of questions")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if missing := [key for key in _REQUIRED if key not in keys]:
        raise ValueError(f"the questions of {path} have no {', '.join(missing)}, only {', '.join(keys)}")
    return rows


def _question(row: dict, report: AirBenchReport) -> dict | None:
    """Return the row of `load_air_bench`, but with the file's relative path as `audio`; None if it is unusable."""
    text = {key: _text(row.get(key)) for key in {*_REQUIRED, *_CHOICES, "uniq_id"}}
    name = text["uniq_id"] or text["path"]
    if not all(text[key] for key in _REQUIRED):
        return report.note("incomplete", name)
    choices = [text[key] for key in _CHOICES if text[key]]
    answer = _answer(text["answer_gt"], choices)
    if answer is None:
        return report.note("unmatched", name)
    faults = {
        "loose_answers": text["answer_gt"] not in choices,
        "duplicate_choices": len(set(choices)) < len(choices),
        "no_third_choice": not text["choice_c"],
        "no_fourth_choice": not text["choice_d"],
    }
    for fault, present in faults.items():
        if present:
            report.note(fault, name)
    path = Path(f"{text['task_name']}_{text['dataset_name']}", text["path"])
    return {
        "audio": str(path.with_suffix(".flac") if text["task_name"] == _FLAC_TASK else path),
        "question": text["question"],
        "choices": choices,
        "answer": answer,
        "task": text["task_name"],
        "dataset": text["dataset_name"],
        "uniq_id": text["uniq_id"],
    }


def _text(value) -> str:
    """Return a value as text, "" where there is none; times of grounding may be lists of numbers."""
    return "" if value is None or not str(value).strip() else str(value)


def _answer(answer: str, choices: Sequence[str]) -> int | None:
    if answer in choices:
        return choices.index(answer)
    folded = [choice.strip().casefold() for choice in choices]
    answer = answer.strip().casefold()
    return folded.index(answer) if answer in folded else None


def _with_sounds(questions: list[dict], root: Path, report: AirBenchReport) -> list[dict]:
    """Return the questions whose sound can be read by its header, with its path and `duration`."""
    files = list(dict.fromkeys(question["audio"] for question in questions))
    paths = {file: existing(str(root / file)) for file in files}
    present = [file for file in files if os.path.isfile(paths[file])]
    seconds = dict(zip(present, seconds_of(paths[file] for file in present), strict=True))
    for file in files:
        if file not in seconds:
            report.note("missing", file)
        elif np.isnan(seconds[file]):
            report.note("broken", file)
        elif seconds[file] > MAX_SECONDS:
            report.note("too_long", file)
    kept = [
        question | {"audio": {"bytes": None, "path": paths[file]}, "duration": seconds[file]}
        for question in questions
        if not np.isnan(seconds.get(file := question["audio"], np.nan))
    ]
    report.without_sound = len(questions) - len(kept)
    report.questions, report.clips = len(kept), len(files) - report.missing - report.broken
    return kept
