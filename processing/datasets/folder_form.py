"""What a folder of data is: an audiofolder, a copy of a Hub repository with parquet files, or tar shards."""

import os
import re
from pathlib import Path

from processing.sound_files import SoundFiles, is_hidden

_INDEX = "index.json"  # what `wavlink index` writes beside its parquet files
_AT_LEAST_ONE_SPLIT = ("train", "validation", "test")


def metadata_of(folder: Path, split: str) -> Path | None:
    """The file that lists the sounds of a split of an audiofolder, if there is one."""
    names = [root / f"metadata.{suffix}" for root in (folder / split, folder) for suffix in ("csv", "jsonl")]
    return next((path for path in names if path.is_file()), None)


def class_root(folder: Path, split: str) -> Path:
    """Where the folders of classes are: in the split's folder, or in `folder` if it has no folders of splits."""
    split_folders = any((folder / name).is_dir() for name in (split, *_AT_LEAST_ONE_SPLIT))
    return folder / split if split_folders else folder


def files_below(folder: str | os.PathLike, suffix: str) -> list[Path]:
    """Files by suffix, in order; not those with hidden names, nor those of an index that lies in the folder."""
    found = []
    for place, folders, names in os.walk(folder):
        if _INDEX in names and place != os.fspath(folder):
            folders.clear()
            continue
        folders[:] = [name for name in folders if not is_hidden(name)]
        found += [Path(place, name) for name in names if name.lower().endswith(suffix) and not is_hidden(name)]
    return sorted(found)


def parquet_files(folder: str | os.PathLike) -> list[Path]:
    return files_below(folder, ".parquet")


def holds_parquet(folder: Path, split: str) -> bool:
    """Whether a split is to be read from parquet files: where they lie somewhere else than a Hub repository has
    them, metadata and sounds in folders of classes go before them."""
    files = parquet_files(folder)
    if not files or metadata_of(folder, split):
        return False
    root = class_root(folder, split)
    if root == folder and hub_parquet(folder, split, files):
        return True
    return not any(Path(path).parent != root for path in SoundFiles(root))


def hub_parquet(folder: Path, split: str, files: list[Path]) -> bool:
    """Whether one of `files` is where a Hub repository has a split: its name, in `folder` or in its `data`."""
    name = re.compile(rf"(?<![a-z0-9]){re.escape(split)}(?![a-z0-9])", re.IGNORECASE)
    return any(path.parent in (folder, folder / "data") and name.search(path.name) for path in files)
