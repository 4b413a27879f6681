"""Columns of an index that describe its sounds: from metadata files (CSV, JSON lines, parquet), and from tags.

A column holds text, integers (int64) or numbers (double), inferred over all its values. They are kept over later runs.
"""

import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow

from processing.datasets.folder_form import METADATA_SUFFIXES
from processing.file_names import existing
from processing.sound_tags import TAGS, read_tags
from wavlink.sanitize import clean

from .changes import Described
from .column_updates import describe
from .listing import Listing, Sound, file_of
from .manifest import RESERVED
from .table import Table

logger = logging.getLogger(__name__)

NAME = "file_name"
_INTEGER = re.compile(r"[+-]?(0|[1-9]\d*)")  # "007" is a text
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
_LARGEST = 2**63
_NO_NAME = re.compile(r"[\x00-\x1f\x7f.`\"]|^_|^$|.{201}")
_TEXT, _DOUBLE, _INT = pyarrow.string(), pyarrow.float64(), pyarrow.int64()
Row = dict[str, Any]


class Metadata:
    """What metadata files say of sounds.

    Args:
        files: each with a column `file_name`, which is relative to the file's folder or to the index's root. Of two
            values for one sound and column, that of the later file counts.
        tags: describe sounds by their tags too.

    Attributes:
        columns: the names of the columns, without `file_name`.

    Raises:
        ValueError: a file that cannot be read, with several rows for a sound, or a column that an index cannot have.
    """

    def __init__(self, files: Sequence[str | os.PathLike] = (), tags: bool = False):
        self.tags = tags
        self._files = {Path(file): _rows(Path(file)) for file in files}
        self.columns = list(dict.fromkeys(name for rows in self._files.values() for row in rows for name in row))
        self.columns = [name for name in self.columns if name != NAME]
        self.check_case(TAGS if tags else ())

    def check_case(self, known: Iterable[str]) -> None:
        """Refuse a column that differs from another one, or one of `known`, in large and small letters alone.

        Raises:
            ValueError: there is one.
        """
        spelled = {name.lower(): name for name in known}
        for file, rows in self._files.items():
            for name in rows[0]:
                if (other := spelled.setdefault(name.lower(), name)) != name:
                    raise ValueError(f"{file} has a column {name!r} beside {other!r}: rename it to that")

    def by_path(self, root: str, paths: Sequence[str]) -> tuple[dict[str, Row], list[Described]]:
        """Return the rows of those paths of an index that have one, and what each file describes of them.

        Raises:
            ValueError: a file names none of the sounds.
        """
        found: dict[str, Row] = {}
        reports = []
        for file, rows in self._files.items():
            of_file, unmatched = match_rows(file, rows, root, paths)
            columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name != NAME]
            reports.append(Described(os.fspath(file), columns, len(of_file), len(rows), unmatched))
            for path, row in of_file.items():
                values = {name: value for name, value in row.items() if name != NAME and value is not None}
                found[path] = {**found.get(path, {}), **values}
        if len(found) < len(paths):
            logger.warning(f"{len(paths) - len(found)} of the {len(paths)} sounds are in no metadata file")
        return found, reports


def match_rows(
    metadata: Path, rows: Sequence[Row], root: str, paths: Sequence[str]
) -> tuple[dict[str, Row], list[str]]:
    """Return by path the (last) row of a metadata file, and the names of the rows that are of none of the paths.

    Names are relative to the file's folder or to the index's root.

    Raises:
        ValueError: it names none of the sounds.
    """
    folder = os.path.abspath(metadata.parent)
    by_name = {row[NAME]: row for row in rows}
    files = {name: os.path.normpath(existing(os.path.join(folder, name))) for name in by_name}
    by_file = {file: by_name[name] for name, file in files.items()}
    sounds = {path: os.path.normpath(file_of(root, path) or path) for path in paths}
    found = {path: by_file.get(file, by_name.get(path)) for path, file in sounds.items()}
    found = {path: row for path, row in found.items() if row is not None}
    if paths and not found:
        raise ValueError(
            f"{metadata} names none of the sounds, such as {paths[0]}: put it into the folder that its file_name "
            f"is relative to, or name sounds as the index does, relative to {root or 'its root'}"
        )
    known = {*sounds, *sounds.values()}
    return found, [name for name, file in files.items() if not {name, file} & known]


def tags_of(listing: Listing, sounds: Iterable[Sound]) -> dict[str, Row]:
    """Return by path the tags of sounds that can be read."""
    return {sound.path: read_tags(listing.content(sound)) for sound in sounds if not sound.error}


def described(table: Table) -> dict[str, Row]:
    """Return the columns of metadata of every file, by path."""
    columns, found = table.metadata_columns, {}
    for batch in table.scan(["path", *columns], "window <= 0"):
        for row in batch.to_pylist():
            found[row.pop("path")] = row
    return found


def bring_up_to_date(
    table: Table, listing: Listing, sounds: Sequence[Sound], metadata: Metadata
) -> tuple[dict[str, Row], list[Described]]:
    """Set the columns of the sounds that an index holds.

    Sounds of the listing without a row in the metadata files get nulls; sounds outside the listing stay as they are.

    Args:
        listing: of the sounds that exist.
        sounds: those that will be embedded; where the index keeps tags, these are read.
        metadata: if it has `tags`, the index keeps them from now on, and those of every sound of the listing are read.

    Returns:
        By path the columns of sounds that will be embedded; what was set, and from where.
    """
    read: dict[str, Row] = {}
    reports = []
    if metadata.tags or table.manifest.tags:
        read = tags_of(listing, sounds if table.manifest.tags else listing.sounds)
        update(table, read, TAGS, TAGS)
        table.change(tags=True)
        if read or metadata.tags:
            reports.append(Described("tags", [*TAGS], sum(map(bool, read.values())), len(read)))
    named: dict[str, Row] = {}
    if metadata.columns:
        paths = [sound.path for sound in listing.sounds]
        found, of_files = metadata.by_path(table.manifest.root, paths)
        named, reports = dict.fromkeys(paths, {}) | found, reports + of_files
        update(table, named, metadata.columns, TAGS if table.manifest.tags else ())
    if not (sounds and table.metadata_columns):
        return {}, reports
    known = described(table)
    new = {sound.path: read.get(sound.path, {}) | named.get(sound.path, {}) for sound in sounds}
    return {path: known.get(path, row) for path, row in new.items()}, reports


def update(table: Table, values: Mapping[str, Row], columns: Iterable[str], texts: Iterable[str] = ()) -> None:
    """Set columns of the sounds that are in `values`, in one commit; other sounds and other columns stay.

    Args:
        values: by path; a column that a row lacks becomes null.
        columns: that are set, and made if the table lacks them.
        texts: columns that hold texts, whatever their values look like.
    """
    columns = list(dict.fromkeys(columns))

    def updated() -> None:
        if (rows := _rows_to_set(table, values, columns, texts)) is not None:
            describe(table, rows)

    table.repeated(updated)


def _rows_to_set(
    table: Table, values: Mapping[str, Row], columns: Sequence[str], texts: Iterable[str]
) -> pyarrow.Table | None:
    """Return a row of columns for each file that is described anew; None where the table has all values already."""
    before = described(table)
    rest = {path: row for path, row in before.items() if path not in values}
    kinds = {}
    for name in columns:
        cells = (row.get(name) for rows in (values, rest) for row in rows.values())
        kinds[name] = _TEXT if name in texts else _kind(cells)
    after = {
        path: {name: _as(values[path].get(name), kinds[name]) for name in columns} for path in before if path in values
    }
    fields = {field.name: field.type for field in table.schema}
    other_types = any(fields.get(name) != kind for name, kind in kinds.items())
    if not (other_types or any(before[path][name] != row[name] for path, row in after.items() for name in columns)):
        return None
    rows = {**after, **rest} if other_types else after
    arrays = [pyarrow.array([*rows], _TEXT)]
    arrays += [
        pyarrow.array([_as(row.get(name), kind) for row in rows.values()], kind) for name, kind in kinds.items()
    ]
    return pyarrow.Table.from_arrays(arrays, ["path", *columns])


def with_values(rows: pyarrow.Table, values: Mapping[str, Row], schema: pyarrow.Schema) -> pyarrow.Table:
    """Return rows of an index with the columns of metadata of its schema, from values by path."""
    for name in schema.names if values else ():
        if name not in rows.column_names:
            kind = schema.field(name).type
            column = [_as(values.get(path, {}).get(name), kind) for path in rows["path"].to_pylist()]
            rows = rows.append_column(name, pyarrow.array(column, kind))
    return rows


def _rows(file: Path) -> list[Row]:
    """Read a metadata file, with values as texts, integers, floats or None."""
    from processing.datasets.audiofolder import read_metadata  # loads datasets

    if file.suffix not in METADATA_SUFFIXES:
        raise ValueError(f"{file} is no metadata: name a .csv, .jsonl or .parquet with a column file_name")
    try:
        rows = read_metadata(file)
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from error
    if not rows:
        raise ValueError(f"{file} has no rows: give one to each sound, with its file_name")
    _check_names(file, [name for name in rows[0] if name != NAME])
    first: dict[str, Row] = {}
    for row in rows:
        if first.setdefault(row[NAME], row) != row:
            raise ValueError(f"{file} has several rows for {clean(row[NAME], 300)}: leave one of them")
    if file.suffix == ".csv":
        kinds = {name: _text_kind([row[name] for row in rows]) for name in rows[0] if name != NAME}
        return [{name: _parsed(value, kinds.get(name)) for name, value in row.items()} for row in rows]
    return [{name: _value(file, row[NAME], name, value) for name, value in row.items()} for row in rows]


def _check_names(file: Path, names: Sequence[str]) -> None:
    reserved = [name for name in names if name.lower() in RESERVED]
    if reserved:
        raise ValueError(
            f"{file} has a column {reserved[0]!r}, which an index has of its own: rename it, such as "
            f"to {'my_' + reserved[0]!r}"
        )
    wrong = [name for name in names if _NO_NAME.search(name) or name != name.strip()]
    if wrong:
        raise ValueError(
            f"{file} has a column named {clean(wrong[0], 200)!r}: rename it, to a name of up to 200 characters that "
            'begins with a letter and has no ".", quotes or line breaks'
        )
    lower = [name.lower() for name in names]
    if len({*lower}) < len(lower):
        twice = next(name for name in names if lower.count(name.lower()) > 1)
        raise ValueError(f"{file} has several columns named {twice!r} in large or small letters: rename one")


def _text_kind(texts: Iterable[str | None]) -> pyarrow.DataType:
    """Return the type of a CSV's column: that of all its texts which are not empty."""
    texts = [text for text in texts if text]
    if texts and all(_INTEGER.fullmatch(text) and abs(int(text)) < _LARGEST for text in texts):
        return _INT
    return _DOUBLE if texts and all(map(_is_number, texts)) else _TEXT


def _is_number(text: str) -> bool:
    """True for a number, but not for one such as "007"."""
    digits = text.lstrip("+-")
    padded = len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
    return bool(_NUMBER.fullmatch(text)) and not padded and math.isfinite(float(text))


def _parsed(text: str | None, kind: pyarrow.DataType | None) -> Any:
    if text in (None, ""):
        return None
    return int(text) if kind == _INT else float(text) if kind == _DOUBLE else text


def _value(file: Path, sound: str, name: str, value: Any) -> Any:
    """Return a value of JSON."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return str(value)
    if isinstance(value, float) and math.isnan(value):
        return None
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError(
            f"{file} has a {type(value).__name__} as {name!r} of {clean(sound, 300)}: a column holds texts or numbers"
        )
    return None if value == "" else value


def _kind(values: Iterable[Any]) -> pyarrow.DataType:
    """Return the one type that holds all values."""
    kinds = {type(value) for value in values if value is not None}
    if str in kinds or not kinds:
        return _TEXT
    return _DOUBLE if float in kinds else _INT


def _as(value: Any, kind: pyarrow.DataType) -> Any:
    if value is None:
        return None
    return str(value) if kind == _TEXT else float(value) if kind == _DOUBLE else value
