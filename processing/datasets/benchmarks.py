"""Benchmarks by name: clips with labels, or with questions (see `air_bench`).

| name | Hub | label column | as published | splits |
|---|---|---|---|---|
| `esc50` | `mteb/esc50`, `ashraq/esc50` | `category` | `meta/esc50.csv`, `audio/` | train |
| `us8k` | `mteb/urbansound8K`, `danavery/urbansound8K` | `class` | `metadata/UrbanSound8K.csv`, `audio/` | train |
| `vggsound` | `mteb/VGGSound` | `label` | `vggsound.csv`, clips by YouTube id | test, train |
| `airbench` | `qyang1021/AIR-Bench-Dataset` | | `Foundation/` | |

The train splits of ESC-50 and UrbanSound8K hold all of their clips. AudioCaps and Clotho are in `paper`.
"""

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.compute as pc
from transformers.utils import logging

from processing.file_names import existing
from processing.hub_names import needs_cache

from .air_bench import load_air_bench
from .caption_tables import read_csv
from .folder_form import parquet_files
from .paper import judge, sounds_of
from .report import AirBenchReport, LabelReport
from .youtube_ids import clip_keys, find_clips, index_folder, seconds_of

logger = logging.get_logger(__name__)

BENCHMARKS = ("esc50", "us8k", "vggsound", "airbench")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FEATURES = datasets.Features(
    {
        "audio": datasets.Audio(decode=False),
        "label": datasets.Value("string"),
        "duration": datasets.Value("float64"),
    }
)


@dataclass(frozen=True)
class _Labelled:
    """Location of a labelled data set: on the Hub, and the `table` of its clips in the published folder."""

    hub: str
    column: str  # of the labels, on the Hub and in the table
    labels: int  # number in the complete split
    split: str
    table: str


_LABELLED = {
    "esc50": _Labelled("mteb/esc50", "category", 50, "train", "meta/esc50.csv"),
    "us8k": _Labelled("mteb/urbansound8K", "class", 10, "train", "metadata/UrbanSound8K.csv"),
    "vggsound": _Labelled("mteb/VGGSound", "label", 309, "test", "vggsound.csv"),
}


def load_benchmark(
    name: str, split: str = "", folder: str = ""
) -> tuple[datasets.Dataset, LabelReport | AirBenchReport]:
    """Load a benchmark's clips and a report of missing ones, which is also logged.

    Columns are `audio` (undecoded: `bytes` or `path`), `duration` (seconds, by the file's header) and `label` as the
    data set names it (`chirping_birds`); of `airbench` those of `load_air_bench`. A clip whose sound is missing or
    broken is left out and counted. Clips over 30 s stay in and are counted.

    Args:
        name: one of `BENCHMARKS`.
        split: default: the evaluation split, the first one in the table above.
        folder: a copy of the Hub repository, the folder as published, or the id of another Hub repository with the
            same columns; default: the Hub's first.

    Raises:
        ValueError: an unknown name or split, a folder of neither layout, missing columns, no label, or no clip left.
    """
    if name not in BENCHMARKS:
        raise ValueError(
            f"no benchmark is called {name!r}: {', '.join(BENCHMARKS)} (captions: see processing.datasets.paper)"
        )
    if folder and not Path(folder).is_dir() and not _HUB_ID.fullmatch(folder):
        raise ValueError(f"{folder} is neither a folder nor a Hub id such as owner/name")
    if name == "airbench":
        rows, report = load_air_bench(split, folder)
    else:
        report = LabelReport(name, split or _LABELLED[name].split, kept_too_long=True)
        rows = _load_labelled(_LABELLED[name], report, folder)
        if len(report.labels) != _LABELLED[name].labels:
            expected = _LABELLED[name].labels
            logger.warning(f"{name} {report.split} has {len(report.labels)} labels here, {expected} as published")
    logger.log(logging.WARNING if report.missing or report.broken else logging.INFO, str(report))
    return rows, report


def _load_labelled(data: _Labelled, report: LabelReport, folder: str) -> datasets.Dataset:
    name = report.source
    if folder and (Path(folder) / data.table).is_file():
        if name != "vggsound" and report.split != data.split:
            raise ValueError(f"{name} has no split {report.split!r}: all of its clips are in {data.split!r}")
        clips = {"esc50": _esc50, "us8k": _us8k, "vggsound": _vggsound}[name](Path(folder), data, report.split)
        return _from_paths(report, folder, clips)
    if folder and Path(folder).is_dir() and not parquet_files(folder):
        raise ValueError(f"{folder} holds neither {data.table} nor parquet files: is it a copy of {name}?")
    return _from_parquet(report, folder or data.hub, data.column)


def _esc50(folder: Path, data: _Labelled, split: str) -> list[tuple[str, str, str]]:
    """Return the name, label and path of each clip, the path "" where there is no file."""
    rows = read_csv(folder / data.table, ["filename", data.column]).to_pydict()
    clips = zip(rows["filename"], rows[data.column], strict=True)
    return [(name, label, _existing(folder / "audio" / name)) for name, label in clips]


def _us8k(folder: Path, data: _Labelled, split: str) -> list[tuple[str, str, str]]:
    rows = read_csv(folder / data.table, ["slice_file_name", "fold", data.column]).to_pydict()
    clips = zip(rows["slice_file_name"], rows["fold"], rows[data.column], strict=True)
    return [(name, label, _existing(folder / "audio" / f"fold{fold}" / name)) for name, fold, label in clips]


def _existing(path: Path) -> str:
    path = existing(str(path))
    return path if os.path.isfile(path) else ""


def _vggsound(folder: Path, data: _Labelled, split: str) -> list[tuple[str, str, str]]:
    """Return the same as `_esc50`; files are matched at any depth by YouTube id and start, see `clip_keys`."""
    table = folder / data.table
    with open(table, newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    for number, row in enumerate(rows, start=1):
        if len(row) != 4 or not row[1].strip().isdigit():
            raise ValueError(f"row {number} of {table} is no YouTube id, start in seconds, label, split: {row}")
    splits = sorted({row[3] for row in rows})
    if split not in splits:
        raise ValueError(f"{table} has no split {split!r}: {', '.join(splits)}")
    rows = [row for row in rows if row[3] == split]
    names = [f"{video}_{int(start):06d}" for video, start, _, _ in rows]
    files = index_folder(folder)
    file_rows = find_clips(clip_keys(pyarrow.array(names, "string")), clip_keys(files["stem"]))
    paths = [files["path"][int(row)].as_py() if row >= 0 else "" for row in file_rows]
    return [(name, label, path) for name, (_, _, label, _), path in zip(names, rows, paths, strict=True)]


def _from_paths(report: LabelReport, folder: str, clips: list[tuple[str, str, str]]) -> datasets.Dataset:
    names, labels, paths = ([clip[part] for clip in clips] for part in range(3))
    present = np.array([bool(path) for path in paths])
    seconds = np.full(len(paths), np.nan)
    seconds[present] = seconds_of(path for path in paths if path)
    rows = [
        {"audio": {"bytes": None, "path": paths[row]}, "label": labels[row], "duration": seconds[row]}
        for row in _choose(report, folder, names, labels, present, seconds)
    ]
    return datasets.Dataset.from_list(rows).cast(_FEATURES)


def _from_parquet(report: LabelReport, source: str, column: str) -> datasets.Dataset:
    """Load a copy of a Hub repository; sounds are not copied, and only their headers are read."""
    needs_cache(source, "README.md", kind="dataset")
    rows = datasets.load_dataset(source, split=report.split)
    if missing := [name for name in ("audio", column) if name not in rows.column_names]:
        raise ValueError(f"{source} has no column {', '.join(missing)}, only {', '.join(rows.column_names)}")
    labels = _label_names(rows, source, column)
    rows = rows.select_columns("audio").cast_column("audio", _FEATURES["audio"])
    present, seconds = sounds_of(rows.data.column("audio"))
    paths = pc.struct_field(rows.data.column("audio"), "path").to_pylist()
    names = [Path(path or f"row {row}").name for row, path in enumerate(paths)]
    kept = _choose(report, source, names, labels, present, seconds)
    for name, values in {"label": labels, "duration": seconds}.items():
        rows = rows.add_column(name, values, feature=_FEATURES[name])
    return rows.select(kept)


def _label_names(rows: datasets.Dataset, source: str, column: str) -> list[str]:
    """Return the label of each row, "" where there is none; class numbers without names are refused."""
    names, values = getattr(rows.features[column], "names", None), rows[column]
    if names:
        return [names[value] if value is not None and value >= 0 else "" for value in values]
    if not all(value is None or isinstance(value, str) for value in values):
        raise ValueError(
            f"column {column} of {source} holds no names of labels but {rows.features[column]}; the columns are "
            f"{', '.join(rows.column_names)}"
        )
    return [value or "" for value in values]


def _choose(report: LabelReport, source: str, names, labels, present: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Fill the report and return the rows to keep: those with a label and a sound."""
    labelled = np.flatnonzero([bool(label.strip()) for label in labels])
    if not len(labelled):
        raise ValueError(f"none of the {len(labels)} rows of {source} has a label")
    report.rows, report.empty = len(labels), len(labels) - len(labelled)
    report.labels = sorted({labels[row] for row in labelled})
    names = pyarrow.chunked_array([[names[row] for row in labelled]], "string")
    return labelled[judge(report, names, present[labelled], seconds[labelled])]
