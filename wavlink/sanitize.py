"""Make foreign text (labels, names, paths) safe for a terminal and for a public card."""

import re
import unicodedata
from typing import Any

_SPECIAL = set("&<>|`*[]\\$~#!")  # with a meaning in Markdown, HTML or LaTeX
_JINJA = re.compile(r"\{(?=[{%#])|(?<=[}%#])\}")  # a single brace, as in "a sound of {}", has no meaning
_SEPARATOR = r"[\\/]"
_START = r"(?:~|[A-Za-z]:|\.\.?|file:/{0,2})?[\\/]"
_AUDIOSET = r"(?!/[a-z]/\w+(?![\w/]))"  # /m/0dgw9r is the id of a label
_QUOTED = re.compile(rf"""(['"`])({_START}[^'"`\n]*)\1""")
_BARE = re.compile(rf"""(?<![\w.:/\\~<]){_AUDIOSET}{_START}[^\s'"`,;:()<>|/\\]+(?:{_SEPARATOR}[^\s'"`,;:()<>|]*)""")


def printable(text: str) -> str:
    """Write control characters and invalid ones as escapes, in one line."""
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in text)


def clean(text: object, most: int = 120) -> str:
    """Return one line of at most `most` characters, without control characters."""
    characters = (" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in str(text))
    words = "".join(c for c in characters if unicodedata.category(c) not in ("Cf", "Cs", "Cn")).split()
    line = " ".join(words)
    return line if len(line) <= most else line[: most - 1] + "…"


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, as `1 sound` or `2 sounds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def path_text(path: object, most: int = 1000) -> str:
    """Return a path in one line of at most `most` characters, as it can be given again: all spaces stay.

    Control characters, invalid and invisible ones become escapes.
    """
    hidden = ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp")
    shown = (x.encode("unicode_escape").decode() if unicodedata.category(x) in hidden else x for x in str(path))
    line = "".join(shown)
    return line if len(line) <= most else line[: most - 1] + "…"


def escape(text: object, most: int = 120) -> str:
    """Apply `clean`, and write each character with a meaning in Markdown, HTML or Jinja as an HTML entity."""
    line = clean(text, most)
    inside_word = {i for i in range(1, len(line) - 1) if line[i - 1].isalnum() and line[i + 1].isalnum()}
    jinja = {match.start() for match in _JINJA.finditer(line)}
    special = (c in _SPECIAL or i in jinja or (c == "_" and i not in inside_word) for i, c in enumerate(line))
    return "".join(f"&#{ord(c)};" if hit else c for c, hit in zip(line, special, strict=True))


def last_part(path: str) -> str:
    """Return the last name of a path of any system."""
    parts = [part for part in re.split(_SEPARATOR, str(path)) if part not in ("", ".", "..", "~")]
    return parts[-1] if parts else "local data"


def without_paths(value: Any) -> Any:
    """Return a JSON value in which each path, alone in a string or in a sentence, is replaced by its last name."""
    if isinstance(value, dict):
        renamed = {}
        for key, inner in value.items():
            name = shown = _without_paths(key) if isinstance(key, str) else key
            number = 2
            while shown in renamed:
                shown, number = f"{name} ({number})", number + 1
            renamed[shown] = without_paths(inner)
        return renamed
    if isinstance(value, list | tuple):
        return [without_paths(inner) for inner in value]
    return _without_paths(value) if isinstance(value, str) else value


def _without_paths(text: str) -> str:
    alone = re.fullmatch(rf"{_AUDIOSET}{_START}[^\n'\"`:]*{_SEPARATOR}[^\n'\"`:]*", text)
    if alone:
        return last_part(text)
    text = _QUOTED.sub(lambda match: match[1] + last_part(match[2]) + match[1], text)
    return _BARE.sub(lambda match: last_part(match[0]), text)
