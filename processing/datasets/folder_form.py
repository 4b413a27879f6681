"""The layout of a data folder: an audiofolder, a copy of a Hub repository with parquet files, or tar shards."""

import os
import re
from pathlib import Path

from processing.sound_files import SoundFiles, is_hidden

METADATA_SUFFIXES = (".csv", ".jsonl", ".parquet")  # of the file that lists an audiofolder's sounds, the first first
_INDEX = "index.json"  # `wavlink index` writes it beside its parquet files
_USUAL_SPLITS = ("train", "validation", "test")


def metadata_of(folder: Path, split: str) -> Path | None:
    """Return the file that lists the sounds of a split of an audiofolder, None if there is none."""
    names = [root / f"metadata{suffix}" for root in (folder / split, folder) for suffix in METADATA_SUFFIXES]
    return next((path for path in names if path.is_file() and _lists_sounds(path)), None)


def _lists_sounds(path: Path) -> bool:
    """Whether a file called metadata is one: of a Hub repository's parquet files, one may be called so too."""
    if path.suffix != ".parquet":
        return True
    import pyarrow.parquet  # not for folders without such a file

    try:
        return "file_name" in pyarrow.parquet.read_schema(path).names
    except (OSError, pyarrow.ArrowException):
        return True  # it is read, and the error names it


def class_root(folder: Path, split: str) -> Path:
    """Return the folder that holds the class folders: the split's, or `folder` if it has no split folders."""
    split_folders = any((folder / name).is_dir() for name in (split, *_USUAL_SPLITS))
    return folder / split if split_folders else folder


def files_below(folder: str | os.PathLike, suffix: str) -> list[Path]:
    """List the files with a suffix, sorted, without hidden names and without those of an index in the folder."""
    files = []
    for current, folders, names in os.walk(folder):
        if _INDEX in names and current != os.fspath(folder):
            folders.clear()
            continue
        folders[:] = [name for name in folders if not is_hidden(name)]
        files += [Path(current, name) for name in names if name.lower().endswith(suffix) and not is_hidden(name)]
    return sorted(files)


def parquet_files(folder: str | os.PathLike) -> list[Path]:
    """List the parquet files below a folder, see `files_below`."""
    return files_below(folder, ".parquet")


def holds_parquet(folder: Path, split: str) -> bool:
    """Whether a split is read from parquet files.

    Metadata takes precedence over them, and so do sounds in class folders over parquet files that are not where a Hub
    repository has them.
    """
    files = parquet_files(folder)
    if not files or metadata_of(folder, split):
        return False
    root = class_root(folder, split)
    if root == folder and hub_parquet(folder, split, files):
        return True
    return not any(Path(path).parent != root for path in SoundFiles(root))


def hub_parquet(folder: Path, split: str, files: list[Path]) -> bool:
    """Whether one of `files` has the name and folder (`folder` or its `data`) of a split in a Hub repository."""
    name = re.compile(rf"(?<![a-z0-9]){re.escape(split)}(?![a-z0-9])", re.IGNORECASE)
    return any(path.parent in (folder, folder / "data") and name.search(path.name) for path in files)
