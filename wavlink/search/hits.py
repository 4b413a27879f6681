"""What a query finds, and how it is printed."""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from wavlink.console import print_json
from wavlink.sanitize import clean, path_text

from .listing import file_of
from .table import Table


@dataclass(frozen=True)
class Hit:
    """A window of a sound: `score` is the cosine with the query, `start` and `end` are in seconds."""

    path: str  # relative to the index's root
    score: float
    start: float
    end: float
    file: str | None = None  # the full path; None if the index's root is not known on this machine
    missing: bool = False  # the file has gone
    changed: bool = False  # the file is not the one that was embedded: index it again
    probability: float | None = None  # of a match with a query of one text (see `Index.query`)
    calibration: str | None = None  # where that is from: "model", or "index", its own cosines
    metadata: dict[str, Any] = field(default_factory=dict)  # columns of the index that describe the sound
    duration: float | None = None  # of the file in seconds; None where that is not known


def hit_of(table: Table, row: dict[str, Any], score: float, root: str = "") -> Hit:
    """Return a row of a table, and its score, as a hit.

    Args:
        root: the folder that holds the sounds (default: the one in the index).
    """
    facts = {"metadata": {name: row[name] for name in table.metadata_columns if row[name] is not None}}
    facts |= {name: row[name] for name in ("path", "start", "end", "duration")}
    file = file_of(root or table.manifest.root, row["path"])
    if file is None:
        return Hit(score=score, **facts)
    try:
        status = os.stat(file)
    except OSError:
        return Hit(score=score, file=file, missing=True, **facts)
    changed = [row["size"], row["version"]] != [status.st_size, status.st_mtime_ns]
    return Hit(score=score, file=file, changed=changed, **facts)


def as_dict(hit: Hit) -> dict:
    """Return a hit for JSON, with the marks only where they are true, and a probability only where it has one."""
    left_out = {"probability", "calibration"} if hit.probability is None else set()
    left_out |= set() if hit.metadata else {"metadata"}
    return {name: value for name, value in asdict(hit).items() if value is not False and name not in left_out}


def print_hits(hits: Sequence[Hit], as_json: bool, note: str = "") -> None:
    """Print hits as JSON or as a table; `note` says why there are none."""
    if as_json:
        print_json([as_dict(hit) for hit in hits], **({"note": note} if note else {}))
        return
    if note:
        print(note)
    if any(hit.calibration == "index" for hit in hits):
        print("the model has no calibration: % is how surely a result stands out from this index", file=sys.stderr)
    for hit in hits:
        mark = "  (missing)" * hit.missing + "  (changed)" * hit.changed
        match = "" if hit.probability is None else f"{100 * hit.probability:5.1f} %  "
        times = f"{hit.start:8.2f} - {hit.end:8.2f} s"
        print(f"{hit.score:6.3f}  {match}{times}  {path_text(hit.path)}{mark}{_described(hit)}")


def _described(hit: Hit) -> str:
    """Return a hit's metadata as text."""
    return "".join(f"  {clean(name, 80)}={clean(value, 200)}" for name, value in hit.metadata.items())
