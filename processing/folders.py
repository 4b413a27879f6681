"""A folder of sounds to a data set: captions and labels from its metadata, or labels from its folders."""

import csv
import json
from pathlib import Path

import datasets
from transformers.utils import logging

from .clip_files import EXTENSIONS

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
        rows = [row for row in rows if Path(row["file_name"]).parts[0] == split]
    elif metadata.parent == folder:
        logger.warning(f"{folder} has no split folders: all of its rows are taken as {split!r}")
    if not rows:
        raise ValueError(f"{metadata} has no rows for {split}")
    for row in rows:
        path = metadata.parent / row.pop("file_name")
        if not path.is_file():
            raise ValueError(f"{metadata} names {path}, which does not exist")
        row["audio"] = {"bytes": None, "path": str(path)}
    return _as_dataset(rows)


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
            for row in [row for row in rows if "duration" in row]:
                row["duration"] = float(row["duration"]) if row["duration"] else None
        except ValueError as error:
            raise ValueError(f"cannot read {path}: {error}") from error
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name is not None]
    if rows and "file_name" not in names:
        raise ValueError(f"{path} has no column 'file_name', only {', '.join(names)}")
    for number, row in enumerate(rows, start=1):
        if not row.get("file_name"):
            raise ValueError(f"{path} has no file_name in row {number}")
        if None in row:
            raise ValueError(
                f"{path} has more cells than columns for {row['file_name']}: put a text that holds a comma in quotes"
            )
    return [{name: row.get(name) for name in names} for row in rows]
