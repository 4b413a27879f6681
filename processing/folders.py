"""A folder of sounds to a data set: captions and labels from its metadata, or labels from its folders."""

import csv
import json
import math
from pathlib import Path

import datasets
import pyarrow
from transformers.utils import logging

from .clip_files import EXTENSIONS
from .file_names import existing, stays_below
from .processing_wavlink import has_half_pair

logger = logging.get_logger(__name__)


def load_folder(folder: Path, split: str) -> datasets.Dataset:
    """A split with undecoded `audio` and what else is said of each clip.

    The layouts are those of `datasets`' audiofolder, whose builder cannot run without torchcodec: `SPLIT/metadata.csv`
    (or `.jsonl`) with a `file_name` column, the same without split folders, or no such file and a folder a class,
    `SPLIT/LABEL/*.wav`, whose name is the `label`.
    """
    names = [root / f"metadata.{suffix}" for root in (folder / split, folder) for suffix in ("csv", "jsonl")]
    found = [path for path in names if path.is_file()]
    if not found:
        return _from_classes(folder, split)
    metadata = found[0]
    rows = read_metadata(metadata)
    if metadata.parent == folder and (folder / split).is_dir():  # one list for all split folders
        rows = [row for row in rows if Path(row["file_name"]).parts[:1] == (split,)]
    elif metadata.parent == folder:
        logger.warning(f"{folder} has no split folders: all of its rows are taken as {split!r}")
    if not rows:
        raise ValueError(f"{metadata} has no rows for {split}")
    for row in rows:
        row["audio"] = {"bytes": None, "path": _file_of(metadata, row.pop("file_name"))}
    try:
        return _as_dataset(rows)
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{metadata} has a column whose values are of several kinds: {error}") from error


def _file_of(metadata: Path, name: str) -> str:
    """The file that a row names, at or below its metadata: data from elsewhere may name no other. Links are followed,
    as folders of the Hub's cache are made of them."""
    if "\0" not in name and not stays_below(name):
        raise ValueError(
            f"{metadata} names {name!r}, which may lie outside its folder: put the sounds (or links to them) below "
            f"{metadata.parent}, and name them from there"
        )
    path = metadata.parent / name
    try:
        path = Path(existing(str(path)))
        found = path.is_file()
    except (OSError, ValueError):  # too long, or with a NUL
        found = False
    if not found:
        raise ValueError(f"{metadata} names {str(path)[:300]}, which does not exist")
    return str(path)


def _as_dataset(rows: list[dict]) -> datasets.Dataset:
    dataset = datasets.Dataset.from_list(rows)
    return dataset.cast(datasets.Features({**dataset.features, "audio": datasets.Audio(decode=False)}))


def _from_classes(folder: Path, split: str) -> datasets.Dataset:
    split_folders = any((folder / name).is_dir() for name in (split, "train", "validation", "test"))
    root = folder / split if split_folders else folder
    files = [path for path in sorted(root.glob("*/*")) if path.suffix.lower() in EXTENSIONS]
    if not files:
        raise ValueError(
            f"{folder} holds neither {split}/metadata.csv (or .jsonl) nor metadata.csv (or .jsonl), nor sounds in a "
            f"folder a class, such as {split}/dog/1.wav"
        )
    if root == folder:
        logger.warning(f"{folder} has no split folders: all of its clips are taken as {split!r}")
    return _as_dataset([{"label": path.parent.name, "audio": {"bytes": None, "path": str(path)}} for path in files])


def read_metadata(path: Path) -> list[dict]:
    """Rows that all have the same keys, None where a row has no such cell, and `duration` in seconds."""
    with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
        lines = csv.DictReader(file) if path.suffix == ".csv" else (json.loads(x) for x in file if x.strip())
        try:
            rows = list(lines)
            for row in rows:
                _check_row(row)
        except (ValueError, RecursionError, csv.Error) as error:
            raise ValueError(f"cannot read {path}: {error}") from error
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name is not None]
    if rows and "file_name" not in names:
        raise ValueError(f"{path} has no column 'file_name', only {', '.join(names)}")
    for number, row in enumerate(rows, start=1):
        if not row.get("file_name") or not isinstance(row["file_name"], str):
            raise ValueError(f"{path} has no file_name in row {number}")
        if None in row:
            raise ValueError(
                f"{path} has more cells than columns for {row['file_name']}: put a text that holds a comma in quotes"
            )
    return [{name: row.get(name) for name in names} for row in rows]


def _check_row(row) -> None:
    """Of JSON, any value may have come; `duration` becomes a number."""
    if not isinstance(row, dict):
        raise ValueError(f"a row is an object such as {{'file_name': ...}}, not {str(row)[:40]!r}")
    texts = [text for text in (*row, *row.values()) if isinstance(text, str)]
    if any(has_half_pair(text) for text in texts):
        raise ValueError("a text holds half of a surrogate pair, which is no character")
    if row.get("duration") not in (None, ""):
        try:
            seconds = float(row["duration"])
        except (TypeError, ValueError, OverflowError):
            seconds = math.nan
        if not 0 <= seconds < math.inf:
            raise ValueError(f"the duration {row['duration']!r:.40} is no number of seconds")
        row["duration"] = seconds
    elif "duration" in row:
        row["duration"] = None
