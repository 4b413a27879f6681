"""Captioned sounds for a first try of every command: made by code, or twelve real ones."""

import argparse
import csv
import difflib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from .atomic_files import new_folder
from .console import stdout_for
from .sanitize import counted

REAL_SAMPLES = "example_sounds"  # beside this file, in an installation
_CLIPS_PER_KIND = 2
_COLUMNS = ("caption", "caption_2", "caption_3", "label", "group")
# A wheel has the clips beside this file, a checkout in its examples.
_REAL = next(
    (
        folder
        for folder in (Path(__file__).with_name(REAL_SAMPLES), Path(__file__).parents[1] / "examples/sounds")
        if folder.is_dir()
    ),
    None,
)


def write_samples(
    folder: str | os.PathLike[str], clips_per_kind: int, kinds: Sequence[str] | None = None
) -> dict[str, int]:
    """Write an audiofolder of captioned sounds made by code, atomically; return the number of sounds of each split.

    The sounds of a split differ from those of the others, and those of `test` are in no training of `quickstart`.

    Args:
        folder: new or empty; `train`, `validation` and `test` will be in it, each with a `metadata.csv`.
        clips_per_kind: sounds of each kind in each split.
        kinds: labels of `processing.datasets.synthetic.KINDS` (default: all).

    Raises:
        ValueError: fewer than 1 sound of a kind, an unknown kind, or a folder that holds something.
    """
    from processing.datasets.synthetic import KINDS, SPLITS

    for kind in kinds or ():
        if kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f": there are {', '.join(KINDS)}"
            raise ValueError(f"no kind of sound {kind!r} is made by code{hint}")
    with new_folder(folder) as unfinished:
        return {split: _write_split(unfinished / split, split, clips_per_kind, kinds or KINDS) for split in SPLITS}


def real_samples() -> list[dict[str, str]]:
    """Return the rows of the twelve real clips' `metadata.csv`, each with the clip's `path` in this installation.

    There are none in an installation without the clips.
    """
    if _REAL is None:
        return []
    with open(_REAL / "metadata.csv", newline="", encoding="utf-8") as file:
        return [row | {"path": str(_REAL / row["file_name"])} for row in csv.DictReader(file)]


def write_real_samples(folder: str | os.PathLike[str]) -> int:
    """Write the twelve real clips, their `metadata.csv` and CREDITS.md, atomically; return the number of clips.

    Args:
        folder: new or empty.

    Raises:
        ValueError: a folder that holds something, or an installation without the clips.
    """
    if _REAL is None:
        raise ValueError("this installation has no real clips: install the package again")
    with new_folder(folder) as unfinished:
        for path in sorted(_REAL.iterdir()):
            if path.suffix in (".ogg", ".csv", ".md"):
                shutil.copyfile(path, unfinished / path.name)
        return len(list(unfinished.glob("*.ogg")))


def _write_split(folder: Path, split: str, clips_per_kind: int, kinds: Sequence[str]) -> int:
    from processing.datasets.synthetic import synthetic_dataset

    folder.mkdir()
    clips = synthetic_dataset(split, clips_per_kind, kinds=kinds)
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
        if options.real:
            _refuse_synthetic(options)
            count = write_real_samples(options.folder)
            print(f"{count} real sounds in {options.folder}, with metadata.csv and CREDITS.md")
            print_json({"folder": options.folder, "sounds": count})
            return
        clips = _CLIPS_PER_KIND if options.clips_per_kind is None else options.clips_per_kind
        counts = write_samples(options.folder, clips, options.kinds)
        kinds = list(dict.fromkeys(options.kinds or _all_kinds()))
        made = f"{counted(sum(counts.values()), 'sound')} of {counted(len(kinds), 'kind')}"
        print(f"{made} in {options.folder}: {', '.join(counts)}")
        print_json({"folder": options.folder, "kinds": kinds, "sounds": counts})


def _refuse_synthetic(options: argparse.Namespace) -> None:
    """Refuse options that the real clips do not have."""
    for name in ("kinds", "clips_per_kind"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} is of sounds made by code: leave it or --real out")


def _all_kinds() -> list[str]:
    from processing.datasets.synthetic import KINDS

    return list(KINDS)
