"""`sources.csv` beside a model: the packages and licences of the clips that it was trained on."""

import csv
import re
from collections import Counter
from pathlib import Path
from typing import TypeAlias

SOURCES = "sources.csv"
_COLUMNS = ("source_package", "licence", "clips")
_COPYLEFT = re.compile(r"(?<![a-z])(A?L?GPL|GFDL|MPL|CDDL|EPL|EUPL|OSL)|BY-(NC-)?SA|ShareAlike", re.IGNORECASE)

Counts: TypeAlias = Counter[tuple[str, str]]  # clips of each package and licence


def write_counts(counts: Counts, folder: Path) -> None:
    """Write the clips of each package and licence; without any, nothing."""
    if counts:
        with open(folder / SOURCES, "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(_COLUMNS)
            rows.writerows((*key, count) for key, count in sorted(counts.items()))


def read_counts(path: str | Path) -> Counts:
    """Read what `write_counts` has written.

    Raises:
        ValueError: another file.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [[row[column] for column in _COLUMNS] for row in csv.DictReader(file)]
        return Counter({(package, licence): int(clips) for package, licence, clips in rows})
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} must be a table with the columns {', '.join(_COLUMNS)} ({error!r})") from error


def licence_rows(counts: Counts) -> list[tuple[str, str]]:
    """Return the row of a card's licences that points to the file; none without clips."""
    if not counts:
        return []
    packages = len({package for package, _ in counts})
    return [(f"{counts.total():d} clips of {packages} packages", f"each package its own: {SOURCES}")]


def licence_limit(counts: Counts, of: str = "its training clips") -> list[str]:
    """Return the sentence of a card's limits about these licences; none without clips."""
    if not counts:
        return []
    copyleft = any(_COPYLEFT.search(licence) for _, licence in counts)
    return [f"The licence of each package of {of} is in {SOURCES}{'; some are copyleft licences' * copyleft}."]
