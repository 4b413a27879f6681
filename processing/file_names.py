"""File names from other systems: paths that leave a folder, and letters in another Unicode normal form."""

import os
import re
import unicodedata
from collections.abc import Collection

_LEAVES = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # C:\x, C:/x, \\server\x
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE)


def stays_below(name: str, windows: bool = os.name == "nt") -> bool:
    """Whether a path in a data set stays below the folder it is relative to, on this system and on Windows.

    Absolute paths, drives, network folders and `..` do not, with either kind of slash. On Windows a colon (a drive, or
    a stream of a file) and the names of devices do not either.

    Args:
        name: the path.
        windows: whether to apply the rules of Windows.
    """
    parts = re.split(r"[\\/]", name)
    if os.path.isabs(name) or name.startswith("/") or _LEAVES.match(name) or ".." in parts or "\0" in name:
        return False
    return not windows or (":" not in name and not name.startswith("\\") and not any(map(_DEVICE.fullmatch, parts)))


def existing(path: str) -> str:
    """Return a path, or the only existing one with the same letters in Unicode NFC or NFD.

    macOS has written decomposed names, other systems compose them. An exact name takes precedence.
    """
    if path.isascii() or os.path.lexists(path):
        return path
    folder, name = os.path.split(path)
    if not name or folder == path:
        return path
    folder = existing(folder)
    forms = {name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))}
    candidates = [os.path.join(folder, form) for form in sorted(forms)]
    present = [candidate for candidate in candidates if os.path.lexists(candidate)]
    exact = os.path.join(folder, name)
    return present[0] if len(present) == 1 else exact if exact in present else path


def same_letters(name: str, names: Collection[str]) -> str | None:
    """Return the one of `names` that equals `name`, else the only one with the same letters, else None."""
    if name in names:
        return name
    composed = unicodedata.normalize("NFC", name)
    matches = [other for other in names if unicodedata.normalize("NFC", other) == composed]
    return matches[0] if len(matches) == 1 else None
