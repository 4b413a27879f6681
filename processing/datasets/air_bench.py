"""AIR-Bench Foundation (arXiv 2402.07729): clips with a question and two to four choices each."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import datasets
import numpy as np
from huggingface_hub import snapshot_download

from processing.file_names import existing

from .paper import MAX_SECONDS
from .youtube_ids import seconds_of

AIR_BENCH = "qyang1021/AIR-Bench-Dataset"
_META = "Foundation_meta.json"
_WANTED = ("path", "question", "choice_a", "choice_b", "answer_gt", "task_name", "dataset_name")
_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
_FLAC_TASK = "Audio_Grounding"  # its paths end in wav, its files in flac
_EXAMPLES = 10
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


@dataclass
class AirBenchReport:
    """How many questions there are, and why there are not more.

    Of `rows`, the `incomplete` lack one of path, question, first or second choice, answer, task and data set, and the
    answer of the `unmatched` is none of the choices, whatever their case and outer space; both are left out, and so
    are questions on the files that are `missing` or `broken` (in both, files are counted; the questions on them are
    `without_sound`). Kept are `loose_answers`, which match only but for case or space, `duplicate_choices`, where two
    choices are alike, and questions with `no_third_choice` or `no_fourth_choice`. `too_long` are files over 30 s.
    `examples` names up to ten of each fault: files, or rows by `uniq_id`.
    """

    source: str = "airbench"
    split: str = "Foundation"
    rows: int = 0
    questions: int = 0
    clips: int = 0
    incomplete: int = 0
    unmatched: int = 0
    missing: int = 0
    broken: int = 0
    without_sound: int = 0
    too_long: int = 0
    loose_answers: int = 0
    duplicate_choices: int = 0
    no_third_choice: int = 0
    no_fourth_choice: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, fault: str, name: str) -> None:
        setattr(self, fault, getattr(self, fault) + 1)
        names = self.examples.setdefault(fault, [])
        if len(names) < _EXAMPLES:
            names.append(name)

    def counts(self) -> dict[str, int]:
        """All numbers, for JSON."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, int)}

    def __str__(self) -> str:
        kept = f"{self.questions} of {self.rows} questions on {self.clips} clips"
        faults = {name: count for name, count in self.counts().items() if count} | {"missing": self.missing}
        for name in ("rows", "questions", "clips"):
            faults.pop(name, None)
        told = [f"{count} {name.replace('_', ' ')}{self._such_as(name)}" for name, count in faults.items()]
        return f"{self.source} {self.split}: {kept}; {'; '.join(told)}"

    def _such_as(self, fault: str) -> str:
        names = self.examples.get(fault, [])[:3]
        return f", such as {', '.join(names)}" if names else ""


def load_air_bench(split: str = "", folder: str = "") -> tuple[datasets.Dataset, AirBenchReport]:
    """A row a question: `audio` (undecoded, `path`), `question`, `choices`, `answer` (the right one's index), `task`,
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
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} is no list of questions")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if missing := [key for key in _WANTED if key not in keys]:
        raise ValueError(f"the questions of {path} have no {', '.join(missing)}, only {', '.join(keys)}")
    return rows


def _question(row: dict, report: AirBenchReport) -> dict | None:
    """The row as `load_air_bench` returns it, but with the file's relative path as `audio`; None if it is unusable."""
    text = {key: _text(row.get(key)) for key in {*_WANTED, *_CHOICES, "uniq_id"}}
    name = text["uniq_id"] or text["path"]
    if not all(text[key] for key in _WANTED):
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
    for fault in [fault for fault, found in faults.items() if found]:
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
    """As it is; times of grounding may be lists of numbers. "" where there is nothing."""
    return "" if value is None or not str(value).strip() else str(value)


def _answer(answer: str, choices: Sequence[str]) -> int | None:
    if answer in choices:
        return choices.index(answer)
    loosely = [choice.strip().casefold() for choice in choices]
    answer = answer.strip().casefold()
    return loosely.index(answer) if answer in loosely else None


def _with_sounds(questions: list[dict], root: Path, report: AirBenchReport) -> list[dict]:
    """The questions whose sound can be heard by its header, with its path and `duration`."""
    files = list(dict.fromkeys(question["audio"] for question in questions))
    places = {file: existing(str(root / file)) for file in files}
    present = [file for file in files if os.path.isfile(places[file])]
    seconds = dict(zip(present, seconds_of(places[file] for file in present), strict=True))
    for file in files:
        if file not in seconds:
            report.note("missing", file)
        elif np.isnan(seconds[file]):
            report.note("broken", file)
        elif seconds[file] > MAX_SECONDS:
            report.note("too_long", file)
    kept = [
        question | {"audio": {"bytes": None, "path": places[file]}, "duration": seconds[file]}
        for question in questions
        if not np.isnan(seconds.get(file := question["audio"], np.nan))
    ]
    report.without_sound = len(questions) - len(kept)
    report.questions, report.clips = len(kept), len(files) - report.missing - report.broken
    return kept
