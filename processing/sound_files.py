"""Sound files by their names: the one list of suffixes, for data sets, indexes, classification and the Space."""

import logging
import os
from collections.abc import Iterable, Iterator
from typing import Any

logger = logging.getLogger(__name__)

# Formats that libsndfile reads; not .mat and .raw, which are rarely sound.
LIBSNDFILE = tuple(
    f".{suffix}"
    for suffix in "wav flac ogg opus mp3 wave oga aif aiff aifc au snd caf w64 rf64 voc sph nist ircam sf svx 8svx "
    "iff avr paf pvf sd2 sds wve xi htk mp2".split()
)
# Formats that PyAV reads (the extra `formats`): of phones, browsers and video cameras. Not .ts, which is TypeScript.
CONTAINERS = tuple(
    f".{suffix}"
    for suffix in "m4a m4b m4r aac wma asf webm weba mp4 m4v mov qt mkv mka 3gp 3gpp 3g2 amr awb ac3 eac3 dts ape wv "
    "tta mpc dsf dff ra rm spx ogv avi flv f4v mpg mpeg m2ts vob".split()
)
SUFFIXES = LIBSNDFILE + CONTAINERS
SUFFIXES_IN_WORDS = ", ".join(SUFFIXES)
_NO_SAMPLES = {  # formats that are related to sound, but cannot be decoded
    ".mid": "it holds notes: render it to wav",
    ".midi": "it holds notes: render it to wav",
    ".kar": "it holds notes: render it to wav",
    ".pcm": "it has no header: convert it to wav",
}
_NO_SUFFIX = "its name has no suffix: give it one, such as .wav"
# Names of system files and folders, besides names that begin with a dot.
_OF_SYSTEMS = {"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "@eadir"}
_NAMES_SHOWN = 3  # in a message


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name (without its folder) is hidden or made by the operating system."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in _OF_SYSTEMS


def is_sound(name: str) -> bool:
    """Whether a file's name has the suffix of a sound file; the content may still be something else."""
    return name.lower().endswith(SUFFIXES)


def is_utf8(path: str) -> bool:
    """Whether a path is valid text; on Linux a name may be any bytes, which a data set cannot store."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


class SoundFiles:
    """The paths of the sound files in a folder and all folders below it, in no order; iterate once.

    Hidden names are skipped. Links are followed; a folder that is reached twice is listed once, under its real name
    where that is below `top`, so that loops end. After the iteration:

        left_out: path -> advice, for files that look like sound and are skipped.
        unlisted: folder -> reason, for folders that cannot be listed.
        repeated: links to folders that are listed under another name.
    """

    def __init__(self, top: str | os.PathLike):
        self.top = os.fspath(top)
        self.left_out: dict[str, str] = {}
        self.unlisted: dict[str, str] = {}
        self.repeated: list[str] = []

    def __iter__(self) -> Iterator[str]:
        folders, links, seen = [self.top], [], set()
        while folders or links:
            folder = folders.pop() if folders else links.pop()
            try:
                status = os.stat(folder)
                with os.scandir(folder) as entries:
                    entries = sorted(entries, key=lambda entry: entry.name, reverse=True)
            except OSError as error:
                self.unlisted[folder] = error.strerror
                continue
            if (status.st_dev, status.st_ino) in seen:
                self.repeated.append(folder)
                continue
            seen.add((status.st_dev, status.st_ino))
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if _is_folder(entry):
                    (links if entry.is_symlink() else folders).append(entry.path)
                elif is_sound(entry.name):
                    yield entry.path
                elif advice := _advice(entry):
                    self.left_out[entry.path] = advice

    def left_out_warning(self) -> str:
        """Return how many files look like sound and are left out, with names and advice; "" if there are none."""
        if not self.left_out:
            return ""
        names = such_as(f"{path} ({advice})" for path, advice in self.left_out.items())
        return f"{len(self.left_out)} files that look like sound are left out: {names}"

    def warning(self) -> str:
        """Return the numbers and names of all skipped files and folders; "" if there are none."""
        parts = [self.left_out_warning()]
        if self.unlisted:
            names = such_as(f"{folder} ({why})" for folder, why in self.unlisted.items())
            parts.append(f"{len(self.unlisted)} folders cannot be listed: {names}")
        if self.repeated:
            names = such_as(self.repeated)
            parts.append(f"{len(self.repeated)} links lead to folders that are listed by another name: {names}")
        return "; ".join(filter(None, parts))


def with_folders_listed(sounds: Iterable[Any]) -> list[Any]:
    """Replace each path of a folder among `sounds` by the sound files below it, in order.

    Raises:
        ValueError: a folder holds no sound files.
    """
    listed = []
    for sound in sounds:
        if not isinstance(sound, str | os.PathLike) or not os.path.isdir(sound):
            listed.append(sound)
            continue
        path = os.fspath(sound)
        files = SoundFiles(path)
        below = sorted(files)
        warning = files.warning()
        if not below:
            raise ValueError(f"no sounds in {path}: {warning or f'no file ends in {SUFFIXES_IN_WORDS}'}")
        if warning:
            logger.warning(warning)
        listed += below
    return listed


def such_as(names: Iterable[str]) -> str:
    """Return the first few names, for a message."""
    names = list(names)
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _advice(entry: os.DirEntry) -> str:
    """Return advice for a file that looks like sound but has no suffix of sound; "" for all others."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix:
        return _NO_SAMPLES.get(suffix, "")
    try:
        if not entry.is_file():  # opening a pipe would wait for its writer
            return ""
        with open(entry.path, "rb") as file:
            return _NO_SUFFIX if _begins_like_sound(file.read(16)) else ""
    except OSError:
        return ""


def _begins_like_sound(head: bytes) -> bool:
    kind = head[8:12]
    return (
        head.startswith(
            (b"fLaC", b"OggS", b"caff", b".snd", b"ID3", b"#!AMR", b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75")
        )
        or (head[:4] in (b"RIFF", b"RIFX", b"RF64") and kind == b"WAVE")
        or (head[:4] == b"FORM" and kind in (b"AIFF", b"AIFC"))
        or head[4:8] == b"ftyp"
    )
