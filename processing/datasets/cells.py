"""Checks of the cells of captions and labels, before training and evaluation."""

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from numbers import Number
from typing import Any

import datasets
import numpy as np

_ROWS_SEARCHED = 1000  # for a wrong cell, to name it
_TEXTS_READ = 100  # of a column, to see whether they are lists that a program has printed
_PRINTED_LIST = re.compile(r"""\s*\[\s*(['"]).*\1\s*\]\s*""", re.DOTALL)  # such as ['rain', 'heavy rain']


def kind_of(value: Any) -> str:
    """Describe the content of a cell for a message; "" for None, which is compatible with every kind."""
    if value is None:
        return ""
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool | np.bool_):
        return "a truth value"
    if isinstance(value, Number):
        return "a number"
    if isinstance(value, bytes | bytearray):
        return "bytes"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple | np.ndarray):
        kinds = sorted({kind_of(item) for item in value} - {""})
        return f"a list of {' and '.join(kinds)}" if kinds else "an empty list"
    return f"a {type(value).__name__}"


def is_list_of_texts(value: Any) -> bool:
    """Whether a cell holds a list of texts, which may be empty or hold None."""
    return kind_of(value) in ("a list of text", "an empty list")


def refuse_mixed(rows: Sequence[dict], source: str) -> None:
    """Refuse a column whose cells are of several kinds, such as a text in one row and a number in another.

    Args:
        rows: cells by column.
        source: name of the data in the error.

    Raises:
        ValueError: there is such a column.
    """
    first: dict[str, tuple[str, int]] = {}
    for number, row in enumerate(rows, start=1):
        for name, value in row.items():
            kind = kind_of(value)
            if not kind or (kind == "an empty list" and first.get(name, ("a list",))[0].startswith("a list")):
                continue
            expected, row_number = first.setdefault(name, (kind, number))
            if kind != expected and not (expected == "an empty list" and kind.startswith("a list")):
                raise ValueError(
                    f"{source} has a column whose values are of several kinds: {name!r} holds {expected} in row "
                    f"{row_number} and {kind} in row {number}"
                )


def texts_in(value: Any, column: str, where: str) -> list[str]:
    """Return the texts of a cell that holds one text, a list of texts, or nothing.

    Args:
        value: the cell.
        column: its name.
        where: name of the row in the error.

    Raises:
        ValueError: it holds anything else.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not is_list_of_texts(value):
        raise ValueError(
            f"column {column!r} holds {kind_of(value)} in {where}: {str(value)[:60]!r}; a caption is a text or a "
            "list of texts (caption_columns names the columns that hold them)"
        )
    return [text for text in value if text is not None]


def refuse_other_captions(dataset: datasets.Dataset | datasets.IterableDataset, columns: Iterable[str]) -> None:
    """Refuse a data set (or stream) in which one of `columns` holds neither texts nor lists of texts.

    Lists that a program has printed into a text, as pandas does in CSV, are refused too.

    Raises:
        ValueError: names the column and its first cell.
    """
    for column in columns:
        feature = (dataset.features or {}).get(column)
        if _is_text(feature):
            _refuse_printed_lists(dataset, column)
        if feature is None or _is_text(feature) or _is_text(getattr(feature, "feature", None)) or _is_texts(feature):
            continue
        where, value = _first_cell(dataset, column)
        raise ValueError(
            f"column {column!r} holds {_in_words(feature, value)}{where}; a caption is a text or a list of texts: "
            "write it so, or name other columns with caption_columns"
        )


def _refuse_printed_lists(dataset, column: str) -> None:
    """Refuse a column of texts of which the first ones are all printed lists; a stream is not read."""
    if not isinstance(dataset, datasets.Dataset):
        return
    first = dataset.with_format(None).select_columns([column])[:_TEXTS_READ][column]
    texts = [text for text in first if text and text.strip()]
    if texts and all(map(_PRINTED_LIST.fullmatch, texts)):
        raise ValueError(
            f"column {column!r} holds lists that were printed as texts, such as {texts[0][:60]!r}: write them as "
            "lists in metadata.jsonl or .parquet, or each caption into a column of its own (caption, caption_2)"
        )


def refuse_other_labels(dataset: datasets.Dataset) -> None:
    """Refuse a `label` column that holds neither texts nor class numbers with names.

    Raises:
        ValueError: names its first cell.
    """
    feature = dataset.features["label"]
    if isinstance(feature, datasets.ClassLabel) and feature.names or _is_text(feature):
        return
    where, value = _first_cell(dataset, "label")
    raise ValueError(
        f"column 'label' holds {_in_words(feature, value)}{where}; a label is a text, one for each clip: write the "
        "class's name, or cast class numbers to datasets.ClassLabel(names=[...])"
    )


def _is_text(feature) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "null")


def _is_texts(feature) -> bool:
    return isinstance(feature, list) and len(feature) == 1 and _is_text(feature[0])


def _in_words(feature, value) -> str:
    if isinstance(feature, datasets.ClassLabel):
        return "class numbers"
    return kind_of(value) or f"values of type {getattr(feature, 'dtype', feature)}"


def _first_cell(dataset, column: str) -> tuple[str, object]:
    """Return the location of the first cell that is not empty, in words, and its content; a stream is not read."""
    if not isinstance(dataset, datasets.Dataset):
        return "", None
    names = [name for name in ("audio", column) if name in dataset.column_names]
    rows = dataset.with_format(None).select_columns(names)  # a transform may need other columns
    for number, row in enumerate(islice(rows, _ROWS_SEARCHED), start=1):
        value, audio = row[column], row.get("audio")
        if value is not None:
            path = audio.get("path") if isinstance(audio, dict) else audio
            file = f" ({path})" if isinstance(path, str) else ""
            return f" in row {number}{file}: {str(value)[:60]!r}", value
    return "", None
