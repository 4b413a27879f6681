"""List the sounds to index: in folders, in lists of files, or in a data set, each by a stable path."""

import hashlib
import logging
import os
import re
import stat
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from processing.datasets.folder_form import parquet_files
from processing.file_names import existing, stays_below
from processing.sound_files import SUFFIXES as SOUNDS
from processing.sound_files import SoundFiles

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

DATA_SET = "dataset:"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_COARSE = 3 * 10**9  # ns: FAT keeps times to 2 s
UNKNOWN = -1  # the version of a file that cannot be read now: it is read again each time


class Sound(NamedTuple):
    """A sound file, or a row of a data set."""

    path: str  # in the index: relative to the root, with "/", bytes that are no UTF-8 as \xff
    size: int  # bytes
    version: int  # of a file its modification time in ns, of a row a digest of its bytes
    source: str | int  # the full path of the file, or the number of the row
    error: str = ""  # why it cannot be read, where that is known without opening it


@dataclass
class Listing:
    """Sounds in the order of their paths."""

    root: str  # a folder's absolute path, or dataset:ID@SPLIT
    sounds: list[Sound] = field(default_factory=list)
    covered: list[str] = field(default_factory=list)  # folders that were listed completely, such as "dog/"
    unreadable: dict[str, str] = field(default_factory=dict)  # "cat/": why the folder could not be listed
    rows: "datasets.Dataset | None" = None  # the data set

    def covers(self, path: str) -> bool:
        """True if a sound of this path would be among `sounds` if it existed."""
        return path.startswith(tuple(self.covered)) and not path.startswith(tuple(self.unreadable))

    def content(self, sound: Sound) -> str | bytes:
        """Return a file's path, or a row's bytes."""
        if isinstance(sound.source, str):
            return sound.source
        return self.rows[sound.source]["audio"]["bytes"]


def list_sounds(sources: Sequence[str], root: str = "", split: str = "train") -> Listing:
    """List sounds without opening any.

    Args:
        sources: folders (with all subfolders, links followed), files, `@list.txt` (a path per line), or one data set:
            a Hub id, or whatever else `processing.datasets.load.load_split` takes.
        root: the folder that paths are relative to; default: the folder given, of several sources their common
            folder. For an existing index, give its root.
        split: of a data set.

    Raises:
        ValueError: no such source, no sounds, or a source outside `root`.
    """
    sources = list(sources)
    if not sources:
        raise ValueError("name what to index: a folder, files, @list.txt or a data set")
    if is_data_set(sources):
        listing = _list_data_set(sources, root, split)
    else:
        listing = _list_files([path for source in sources for path in _expanded(source)], root)
    if not listing.sounds:
        raise ValueError(_no_sounds(sources, listing))
    listing.sounds.sort()
    return listing


def is_data_set(sources: Sequence[str]) -> bool:
    """True if sources are no files and folders: the name of a data set, or a folder of parquet files alone."""
    files = any(os.path.lexists(source) or source.startswith("@") for source in sources)
    return not files or (len(sources) == 1 and _holds_parquet_alone(sources[0]))


def file_of(root: str, path: str) -> str | None:
    """Return the file of an index's path; None if the root is no folder on this machine, or the path leaves it."""
    parts = path.split("/")
    if not os.path.isabs(root) or {"", "."} & set(parts) or not stays_below(path):
        return None
    file = existing(os.path.join(root, *parts))
    if "\\x" in path and not os.path.lexists(file):
        escapes = re.compile(rb"\\x([89a-f][0-9a-f])")
        file = os.path.join(root, os.fsdecode(escapes.sub(lambda x: bytes.fromhex(x[1].decode()), path.encode())))
    return file


def size_and_time(root: str, path: str) -> tuple[int, int]:
    """Return the size of an index's file, -1 without it, and its modification time in ns."""
    try:
        status = os.stat(file_of(root, path) or "")
    except (OSError, ValueError):  # a path with a null character
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _holds_parquet_alone(folder: str) -> bool:
    """True for a folder such as a copy of a Hub repository."""
    return bool(parquet_files(folder)) and not any(True for _ in SoundFiles(folder))


def _expanded(source: str) -> list[str]:
    if not source.startswith("@") or os.path.lexists(source):
        if not os.path.lexists(source):
            raise ValueError(f"{source} does not exist; of a data set, give no other source with it")
        return [os.path.abspath(source)]
    try:
        with open(source[1:], encoding="utf-8", errors="surrogateescape") as lines:
            return [os.path.abspath(line.rstrip("\r\n")) for line in lines if line.strip()]
    except OSError as error:
        raise ValueError(f"cannot read the list {source[1:]}: {error.strerror}") from error


def _list_files(paths: list[str], root: str) -> Listing:
    if root.startswith(DATA_SET):
        raise ValueError(f"the index is of {root}: index files and folders into another")
    if not paths:
        raise ValueError("the list names no files")
    folders = {path for path in paths if os.path.isdir(path)}
    if not root:
        root = os.path.commonpath([path if path in folders else os.path.dirname(path) for path in paths])
    listing, sounds = Listing(os.path.abspath(root)), {}
    for path in dict.fromkeys(paths):
        if path != listing.root and not path.startswith(os.path.join(listing.root, "")):
            raise ValueError(
                f"{path} is not below {listing.root}, which the index's paths are relative to: index it separately, "
                "or name the folder by --root if the sounds have moved there"
            )
        for sound in _walk(path, listing) if path in folders else [_file(path, listing.root)]:
            sounds.setdefault(sound.path, sound)
    listing.sounds = list(sounds.values())
    return listing


def _walk(top: str, listing: Listing) -> Iterable[Sound]:
    """Yield all sound files of a folder, in no order; log files that look like sound and are not taken."""
    listing.covered.append(_below(listing.root, top))
    files = SoundFiles(top)
    for path in files:
        yield _file(path, listing.root)
    listing.unreadable |= {_below(listing.root, folder): why for folder, why in files.unlisted.items()}
    if warning := files.left_out_warning():
        logger.warning(warning)


def _below(root: str, folder: str) -> str:
    return "" if folder == root else _name(root, folder) + "/"


def _name(root: str, path: str) -> str:
    return readable(path[len(os.path.join(root, "")) :].replace(os.sep, "/"))


def readable(name: str) -> str:
    """Return a name as an index holds it: bytes that are no UTF-8 as `\\xff`."""
    if name.isascii():
        return name
    errors = "surrogateescape" if os.name == "posix" else "backslashreplace"  # Windows allows lone surrogates
    return name.encode("utf-8", errors).decode("utf-8", "backslashreplace")


def _file(path: str, root: str) -> Sound:
    name = _name(root, path)
    if not stays_below(name):
        return Sound(ascii(name), 0, UNKNOWN, path, "its name is a path on Windows: rename it")
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is not a file")
        if not os.access(path, os.R_OK):
            raise PermissionError(0, "there is no right to read it")
    except OSError as error:
        return Sound(name, 0, UNKNOWN, path, f"{error.strerror}")
    return Sound(name, status.st_size, _version(status), path, "" if status.st_size else "it holds no bytes")


def _version(status: os.stat_result) -> int:
    """Return a file's modification time in ns.

    Some file systems keep whole seconds: a file that has changed just now may change again within that second. Its
    version is unknown, so that it is read again.
    """
    new = abs(time.time_ns() - status.st_mtime_ns) < _COARSE and status.st_mtime_ns % 10**9 == 0
    return UNKNOWN if new else status.st_mtime_ns


def _list_data_set(sources: list[str], root: str, split: str) -> Listing:
    source = sources[0]
    if len(sources) > 1 or not (_HUB_ID.fullmatch(source) or os.path.isdir(source)):
        raise ValueError(f"{source} does not exist" + "; give one data set at a time" * (len(sources) > 1))
    name = f"{DATA_SET}{os.path.abspath(source) if os.path.isdir(source) else source}@{split}"
    if root not in ("", name):
        there = "" if os.path.isdir(source) or root.startswith(DATA_SET) else f"{source} is no file or folder here; "
        raise ValueError(f"{there}the index is of {root}: index {name} into another")
    from processing.datasets.load import load_split  # only a data set needs datasets

    try:
        rows = load_split(source, split)
    except (OSError, ConnectionError) as error:
        raise ValueError(f"{source} is neither a file or folder here nor a data set: {error}") from error
    listing = Listing(name, covered=[""], rows=rows.select_columns("audio"))
    sounds = [_row(number, row["audio"]) for number, row in enumerate(listing.rows)]
    named = len({sound.path for sound in sounds}) == len(sounds) and all(sound.path for sound in sounds)
    listing.sounds = sounds if named else [sound._replace(path=f"row {n:07d}") for n, sound in enumerate(sounds)]
    return listing


def _row(number: int, audio: dict) -> Sound:
    name = os.path.basename(audio["path"] or "")
    if audio["bytes"] is None:
        return (
            _file(audio["path"], os.path.dirname(audio["path"])) if name else Sound("", 0, UNKNOWN, number, "no sound")
        )
    digest = hashlib.blake2b(audio["bytes"], digest_size=8).digest()
    size = len(audio["bytes"])
    return Sound(name, size, int.from_bytes(digest, "big") >> 1, number, "" if size else "it holds no bytes")


def _no_sounds(sources: list[str], listing: Listing) -> str:
    if listing.unreadable:
        folder, why = next(iter(listing.unreadable.items()))
        return f"{os.path.join(listing.root, folder)} cannot be listed: {why}"
    return f"no sounds in {', '.join(sources)}: files are taken that end in {', '.join(SOUNDS)}"
