"""Names of files as other systems write them: paths that leave a folder, and letters composed in another way."""

import os
import re
import unicodedata
from collections.abc import Collection

_LEAVES = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # C:\x, C:/x, \\server\x
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE)


def stays_below(name: str, windows: bool = os.name == "nt") -> bool:
    """Whether a path that data names stays below the folder it is relative to, on this system and on Windows.

    Absolute paths, drives, network folders and `..` do not, with either kind of slash. On Windows a colon (a drive, or
    a stream of a file) and the names of devices do not either.
    """
    parts = re.split(r"[\\/]", name)
    if os.path.isabs(name) or name.startswith("/") or _LEAVES.match(name) or ".." in parts or "\0" in name:
        return False
    return not windows or (":" not in name and not name.startswith("\\") and not any(map(_DEVICE.fullmatch, parts)))


def existing(path: str) -> str:
    """The path itself, or the one that is there with the same letters, composed (NFC) or not (NFD).

    macOS has written names decomposed, other systems compose them. What is there by its exact name is that.
    """
    if path.isascii() or os.path.lexists(path):
        return path
    folder, name = os.path.split(path)
    if not name or folder == path:
        return path
    folder = existing(folder)
    forms = {name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))}
    there = [found for form in sorted(forms) if os.path.lexists(found := os.path.join(folder, form))]
    exact = os.path.join(folder, name)
    return there[0] if len(there) == 1 else exact if exact in there else path


def same_letters(name: str, names: Collection[str]) -> str | None:
    """Of some names the one that is `name`, or else the only one with the same letters."""
    if name in names:
        return name
    wanted = unicodedata.normalize("NFC", name)
    others = [other for other in names if unicodedata.normalize("NFC", other) == wanted]
    return others[0] if len(others) == 1 else None
