"""Arrow files in the cache folder of this package, which all processes of the machine share."""

import os
from pathlib import Path

import huggingface_hub
import pyarrow
import pyarrow.feather


def cache_folder(name: str) -> Path:
    """Return the folder `HF_HOME/wavlink/name`, which may not exist yet."""
    return Path(huggingface_hub.constants.HF_HOME) / "wavlink" / name


def read_table(path: Path) -> pyarrow.Table:
    """Read a table, mapped into memory."""
    return pyarrow.feather.read_table(path, memory_map=True)


def write_table(table: pyarrow.Table, path: Path) -> None:
    """Write a table atomically, in one chunk; its folder must exist."""
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        pyarrow.feather.write_feather(table, str(unfinished), compression="uncompressed", chunksize=max(len(table), 1))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
