"""Texts and their translations, from tables with a column for each language."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets

from processing.datasets.audiofolder import rows_of_csv
from processing.hub_names import needs_cache

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_NAMES = {",": "comma", "\t": "tab"}
_HELD_OUT = 0.1  # of the texts at most that have translations


class Translation(NamedTuple):
    """A text of the teacher's language, and what it is in another language."""

    source: str
    language: str
    text: str


def load_translations(sources: Sequence[str], language: str, split: str = "train") -> list[Translation]:
    """Load translations, each once, in the order of the tables.

    Args:
        sources: CSV or TSV files whose first line names a language for each column, or Hub ids of data sets with such
            columns, or with one column `translation` of texts by language. A cell may be empty.
        language: the column of the texts that the teacher knows, such as `"en"`.
        split: of a data set on the Hub.

    Raises:
        ValueError: a file or data set that cannot be read, has no such column or no other one, or holds no pair.
    """
    found: dict[Translation, None] = {}
    for source in sources:
        rows = _table(Path(source)) if Path(source).suffix.lower() in _DELIMITERS else _from_hub(source, split)
        before = len(found)
        for row in rows:
            if language not in row:
                raise ValueError(f"{source} has no column {language!r}, only {', '.join(row)}: name it by --language")
            if known := _text(row[language]):
                others = ((name, _text(cell)) for name, cell in row.items() if name != language)
                found |= {Translation(known, name, text): None for name, text in others if text}
        if len(found) == before:
            raise ValueError(f"{source} holds no translation of a text in the column {language!r}")
    return list(found)


def _table(path: Path) -> Iterable[Mapping[str, object]]:
    delimiter = _DELIMITERS[path.suffix.lower()]
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = rows_of_csv(file, delimiter)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no table in UTF-8: {error}") from error
    except (ValueError, csv.Error) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    for row in rows:
        if None in row:
            raise ValueError(
                f"{path} has more cells than columns in the row of {next(iter(row.values()))!r:.80}: put a text that "
                f"holds a {_NAMES[delimiter]} in quotes"
            )
        yield {name: cell for name, cell in row.items() if name}


def _from_hub(source: str, split: str) -> Iterable[Mapping[str, object]]:
    needs_cache(source, "README.md", kind="dataset")
    dataset = datasets.load_dataset(source, split=split)
    return (row["translation"] if isinstance(row.get("translation"), dict) else row for row in dataset)


def _text(cell: object) -> str:
    return cell.strip() if isinstance(cell, str) else ""


def hold_out(
    translations: Sequence[Translation], known: Iterable[str], most: int
) -> tuple[list[Translation], dict[str, list[Translation]]]:
    """Split translations into those to train on and, by language, those that measure the student.

    A text is held out in all languages at once. The texts are taken at equal distances from their sorted list.

    Args:
        known: training texts, which are not held out.
        most: texts to hold out, at most a tenth of those with translations.

    Returns:
        The training translations, without one whose translation is held out under another source, and the held-out
        ones by language, each language in the same order of texts.
    """
    taken = {text.casefold() for text in known}
    sources = sorted({pair.source for pair in translations if pair.source.casefold() not in taken})
    count = min(most, round(_HELD_OUT * len(sources)))
    chosen = {sources[number * len(sources) // count] for number in range(count)} if count else set()
    measured: defaultdict[str, list[Translation]] = defaultdict(list)
    for pair in sorted(pair for pair in translations if pair.source in chosen):
        if not measured[pair.language] or measured[pair.language][-1].source != pair.source:  # one of each text
            measured[pair.language].append(pair)
    texts = {(pair.language, pair.text.casefold()) for pair in translations if pair.source in chosen}
    training = [
        pair
        for pair in translations
        if pair.source not in chosen and (pair.language, pair.text.casefold()) not in texts
    ]
    return training, dict(sorted(measured.items()))
