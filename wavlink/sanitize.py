"""Words from elsewhere (labels, names, paths) made fit for a terminal, and for a public card: inert in Markdown, and
without paths."""

import re
import unicodedata

_SPECIAL = set("&<>|`*[]\\$~#!")  # what begins something in Markdown, HTML or LaTeX
_JINJA = re.compile(r"\{(?=[{%#])|(?<=[}%#])\}")  # a single brace, as in the prompt "a sound of {}", begins nothing
_SEPARATOR = r"[\\/]"
_START = r"(?:~|[A-Za-z]:|\.\.?|file:/{0,2})?[\\/]"
_AUDIOSET = r"(?!/[a-z]/\w+(?![\w/]))"  # /m/0dgw9r is the id of a label
_QUOTED = re.compile(rf"""(['"`])({_START}[^'"`\n]*)\1""")
_BARE = re.compile(rf"""(?<![\w.:/\\~<]){_AUDIOSET}{_START}[^\s'"`,;:()<>|/\\]+(?:{_SEPARATOR}[^\s'"`,;:()<>|]*)""")


def printable(text: str) -> str:
    """One line that no terminal obeys: control characters and broken ones are written as escapes."""
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in text)


def clean(text: object, most: int = 120) -> str:
    """One line of at most `most` characters without control characters."""
    characters = (" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in str(text))
    words = "".join(c for c in characters if unicodedata.category(c) not in ("Cf", "Cs", "Cn")).split()
    line = " ".join(words)
    return line if len(line) <= most else line[: most - 1] + "…"


def escape(text: object, most: int = 120) -> str:
    """`clean`, with every character that Markdown, HTML or Jinja would act on as its HTML entity."""
    line = clean(text, most)
    inside_word = {i for i in range(1, len(line) - 1) if line[i - 1].isalnum() and line[i + 1].isalnum()}
    jinja = {found.start() for found in _JINJA.finditer(line)}
    special = (c in _SPECIAL or i in jinja or (c == "_" and i not in inside_word) for i, c in enumerate(line))
    return "".join(f"&#{ord(c)};" if hit else c for c, hit in zip(line, special, strict=True))


def last_part(path: str) -> str:
    """Of a path, of any system, the last name."""
    parts = [part for part in re.split(_SEPARATOR, str(path)) if part not in ("", ".", "..", "~")]
    return parts[-1] if parts else "local data"


def without_paths(value):
    """The same JSON value, in which a path has become its last name, alone in a string or in a sentence."""
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
    text = _QUOTED.sub(lambda found: found[1] + last_part(found[2]) + found[1], text)
    return _BARE.sub(lambda found: last_part(found[0]), text)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table of cells that are escaped already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
