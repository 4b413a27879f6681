"""Captioned sounds made by code, written as files, for a first try of every command."""

import argparse
import csv
import os
from pathlib import Path

from processing.datasets.synthetic import KINDS, SPLITS, synthetic_dataset

from .atomic_files import new_folder
from .console import stdout_for

_COLUMNS = ("caption", "caption_2", "caption_3", "label", "group")


def write_samples(folder: str | os.PathLike[str], clips_per_kind: int) -> dict[str, int]:
    """Write an audiofolder of captioned sounds, atomically, and return the number of sounds of each split.

    The sounds of a split differ from those of the others, and those of `test` are in no training of `quickstart`.

    Args:
        folder: new or empty; `train`, `validation` and `test` will be in it, each with a `metadata.csv`.
        clips_per_kind: sounds of each kind in each split.

    Raises:
        ValueError: fewer than 1 sound of a kind, or a folder that holds something.
    """
    with new_folder(folder) as unfinished:
        return {split: _write_split(unfinished / split, split, clips_per_kind) for split in SPLITS}


def _write_split(folder: Path, split: str, clips_per_kind: int) -> int:
    folder.mkdir()
    clips = synthetic_dataset(split, clips_per_kind)
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("file_name", *_COLUMNS))
        for number, clip in enumerate(clips):
            name = f"{clip['label'].replace(' ', '_')}_{number % clips_per_kind}.flac"
            (folder / name).write_bytes(clip["audio"]["bytes"])
            rows.writerow((name, *(clip[column] for column in _COLUMNS)))
    return len(clips)


def run(options: argparse.Namespace) -> None:
    """Write the sounds and print how many there are."""
    with stdout_for(options.as_json) as print_json:
        counts = write_samples(options.folder, options.clips_per_kind)
        total = sum(counts.values())
        print(f"{total} sounds of {len(KINDS)} kinds in {options.folder}: {', '.join(counts)}")
        print_json({"folder": options.folder, "kinds": list(KINDS), "sounds": counts})
