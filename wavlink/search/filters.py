"""Conditions that results meet: SQL over the columns of an index's table, such as `label = 'dog' and duration < 5`."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from wavlink.sanitize import clean

from .manifest import VECTORS
from .table import Table
from .table_errors import without_source

_LONGEST = 10_000  # characters
_SHOWN = 30  # columns that an error names
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
_TOKEN = re.compile(
    r"""(?P<text>'(?:[^']|'')*')|(?P<double>"(?:[^"]|"")*")|(?P<quoted>`[^`]*`)|(?P<name>[^\W\d]\w*)"""
    r"""|(?P<refused>--|/\*|;|\$|'|"|`)|(?P<other>.)""",
    re.DOTALL,
)
_REASON = re.compile(r"^(?:Invalid user input|Error during planning|Schema error|Not supported|Execution error): ")
_LIST = re.compile(r"\s*Valid fields are .*", re.DOTALL)


def checked(table: Table, where: str) -> str:
    """Return a filter in parentheses, to be combined with others.

    Raises:
        ValueError: it is no SQL, names an unknown column or one of vectors, or is neither true nor false.
    """
    _refuse_tokens(table, where)
    condition = f"({where})"  # Lance ignores what follows an expression, but not what follows one in parentheses
    try:
        table.dataset.scanner(columns=["path"], filter=condition).explain_plan()
    except (ValueError, OSError, RuntimeError, NotImplementedError) as error:
        raise _refused(table, where, _reason(str(error))) from error
    return condition


@contextmanager
def computed(table: Table, where: str) -> Iterator[None]:
    """Name the filter in errors of rows for which it cannot be computed, such as a text that is cast to a number."""
    try:
        yield
    except ValueError as error:
        text = str(error.__cause__ or error)
        if "applying filter" not in text:
            raise
        raise _refused(table, where, _reason(text.partition("to batch: ")[2] or text)) from error


def column_names(names: Iterable[str]) -> list[str]:
    """Return the names of columns as a filter spells them."""
    return [name if _PLAIN.fullmatch(name) else f"`{name}`" for name in names]


def _refuse_tokens(table: Table, where: str) -> None:
    """Refuse what Lance would take for something else than the user has meant."""
    if not isinstance(where, str) or not where.strip():
        raise _refused(table, str(where), "it is empty")
    if len(where) > _LONGEST or "\0" in where:
        raise _refused(table, where, f"it has more than {_LONGEST} characters or a NUL")
    columns, depth = set(table.schema.names), 0
    for token in _TOKEN.finditer(where):
        kind, text = token.lastgroup, token[0]
        if kind == "refused":
            what = f"{text} has no end" if text in "'\"`" else f"it holds {text}"
            raise _refused(table, where, f"{what}, outside a text")
        if kind == "double" and text[1:-1] in columns:
            raise _refused(table, where, f"{text} is a text: write the column as {column_names([text[1:-1]])[0]}")
        if kind in ("name", "quoted") and text.strip("`").lower() in VECTORS:
            raise _refused(table, where, f"vectors ({text}) are compared by queries, not by filters")
        depth += {"(": 1, ")": -1}.get(text, 0) if kind == "other" else 0
        if depth < 0:
            break
    if depth:
        raise _refused(table, where, "its parentheses are not closed" if depth > 0 else "a ) has no (")


def _reason(text: str) -> str:
    text = _LIST.sub("", without_source(text)).strip()
    if (at := text.find("sql parser error: ")) >= 0:
        return text[at + len("sql parser error: ") :].removesuffix(")")
    while (shorter := _REASON.sub("", text)) != text:
        text = shorter
    return text


def _refused(table: Table, where: str, reason: str) -> ValueError:
    names = column_names(name for name in table.schema.names if name not in VECTORS)
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return ValueError(
        f"the filter {clean(where, 200)!r} cannot be used ({clean(reason, 300).rstrip('.')}): write one such as "
        f"\"path like 'dog%' and duration < 5\", with texts in single quotes; the columns are {clean(shown, 1000)}"
    )
