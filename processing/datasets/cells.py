"""What the cells of captions and labels may hold, checked before a model learns or is scored."""

from collections.abc import Iterable, Sequence
from itertools import islice
from numbers import Number

import datasets
import numpy as np

_LOOKED_AT = 1000  # rows in which a bad cell is looked for, to name it


def kind_of(value) -> str:
    """What a cell holds, in words; "" for nothing, which agrees with every kind."""
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


def is_list_of_texts(value) -> bool:
    return kind_of(value) in ("a list of text", "an empty list")


def refuse_mixed(rows: Sequence[dict], source: str) -> None:
    """Refuses a column whose cells are of several kinds, such as a text in one row and a number in another."""
    first: dict[str, tuple[str, int]] = {}
    for number, row in enumerate(rows, start=1):
        for name, value in row.items():
            kind = kind_of(value)
            if not kind or (kind == "an empty list" and first.get(name, ("a list",))[0].startswith("a list")):
                continue
            before, place = first.setdefault(name, (kind, number))
            if kind != before and not (before == "an empty list" and kind.startswith("a list")):
                raise ValueError(
                    f"{source} has a column whose values are of several kinds: {name!r} holds {before} in row {place} "
                    f"and {kind} in row {number}"
                )


def texts_in(value, column: str, where: str) -> list[str]:
    """The texts of a cell that holds one text, a list of texts, or nothing; a ValueError names any other kind.

    Args:
        where: what the message calls the row.
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


def refuse_other_captions(dataset, columns: Iterable[str]) -> None:
    """Refuses a data set (or stream) in which one of `columns` is of another type than text or a list of texts."""
    for column in columns:
        feature = (dataset.features or {}).get(column)
        if feature is None or _is_text(feature) or _is_text(getattr(feature, "feature", None)) or _is_texts(feature):
            continue
        where, value = _first_cell(dataset, column)
        raise ValueError(
            f"column {column!r} holds {_in_words(feature, value)}{where}; a caption is a text or a list of texts: "
            "write it so, or name other columns with caption_columns"
        )


def refuse_other_labels(dataset) -> None:
    """Refuses a `label` column that is neither text nor class numbers with names."""
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
    """Where the first cell is that holds something, in words, and what it holds; a stream is not read for it."""
    if not isinstance(dataset, datasets.Dataset):
        return "", None
    names = [name for name in ("audio", column) if name in dataset.column_names]
    for number, row in enumerate(islice(dataset.select_columns(names), _LOOKED_AT), start=1):
        value, audio = row[column], row.get("audio")
        if value is not None:
            path = audio.get("path") if isinstance(audio, dict) else audio
            named = f" ({path})" if isinstance(path, str) else ""
            return f" in row {number}{named}: {str(value)[:60]!r}", value
    return "", None
