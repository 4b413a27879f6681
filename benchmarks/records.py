"""Records of measured runs: one JSON file each in `benchmarks/results`, from which `tables.py` renders every table.

    options = ...; records.add_option(parser, "storage")      # --record [FILE]
    records.write(options.record, title=..., seed=..., values={"recall": table(columns, rows)})

A record holds:

    name      that of its file
    title     what was measured, in a few words
    command   that gives it again, without paths of this machine
    source    where a figure comes from that was not measured here, such as a paper; then there is no command
    commit    of the code, with "-dirty" where files had changed
    time, seed
    seconds   that the script took until it wrote the record, by the clock
    machine   platform, processor, cpus, threads, devices, and load: processes that wanted a core in the last minute
    versions  of Python and of the packages that matter
    note      what a reader must know to judge the values
    values    tables by name: `{"columns": [...], "rows": [[cell, ...], ...]}`
    raw       all that the script measured, for later questions

A cell is a text, a number, null, or an object such as

    {"value": 47.4, "interval": [44.5, 50.5], "digits": 1, "unit": "ms", "signed": true}

of which all but the value are optional. Instead of an interval (95 %, by bootstrap) it may have a `"range"`: the least
and the most of several runs.
"""

import argparse
import json
import math
import os
import platform
import re
import shlex
import time
from collections.abc import Sequence
from importlib.metadata import version
from numbers import Number
from pathlib import Path

RESULTS = Path(__file__).with_name("results")
_TEXTS = ("name", "title", "note")
_MEASURED = ("command", "commit", "time", "machine", "versions")
_KNOWN = {*_TEXTS, *_MEASURED, "source", "seed", "seconds", "values", "raw"}
_MACHINE = ("platform", "processor", "cpus", "threads", "devices")
_BEGUN = time.monotonic()
# Options that say only where a record goes, what it is, and when a benchmark that goes on later pauses.
_OF_RECORD = {"--record", "--title", "--note", "--stop_after"}
_FOLDERS = re.compile(r"(?<![\w./])/(?!/)\S*/")  # of an absolute path, also behind `random:`
_CELL = {"value", "interval", "range", "digits", "unit", "signed"}


def add_option(parser: argparse.ArgumentParser, name: str) -> None:
    """Add `--record`, which is a file, by default `results/NAME.json`, or None where it is not given."""
    default = RESULTS / f"{name}.json"
    text = f"write a record for `make tables` (FILE: benchmarks/results/{name}.json)"
    parser.add_argument("--record", nargs="?", const=default, type=Path, metavar="FILE", help=text)


def folder(word: str) -> Path:
    """Return the folder that a word of the command line names; for `add_argument(type=...)`."""
    if not Path(word).is_dir():
        raise argparse.ArgumentTypeError(f"{word!r} is no folder")
    return Path(word)


def table(columns: Sequence[str], rows: Sequence[Sequence]) -> dict:
    """A table of a record's `values`."""
    return {"columns": list(columns), "rows": [list(row) for row in rows]}


def percent(figure: dict, signed: bool = False) -> dict:
    """A cell of `{"value", "interval"}`, two shares of 1, in percent with one digit."""
    low, high = figure["interval"]
    cell = {"value": 100 * figure["value"], "interval": [100 * low, 100 * high], "digits": 1}
    return cell | ({"signed": True} if signed else {})


def number(value: float, digits: int, unit: str = "") -> dict:
    """A cell of one number, rounded."""
    return {"value": float(value), "digits": digits} | ({"unit": unit} if unit else {})


def write(
    path: Path | None,
    *,
    title: str,
    values: dict[str, dict],
    seed: int | None,
    note: str = "",
    raw: dict | None = None,
    packages: Sequence[str] = (),
) -> None:
    """Write a record of this process's run, checked and atomically; do nothing where `path` is None.

    Args:
        packages: distributions whose versions matter, beside those of every run.

    Raises:
        ValueError: the record does not have the form that this module describes.
    """
    if path is None:
        return
    from wavlink.atomic_files import write_text
    from wavlink.training.run_folder import environment

    facts = environment()
    versions = {"python": facts["python"], **facts["packages"], **{name: version(name) for name in packages}}
    load = {"load": round(os.getloadavg()[0], 1)} if hasattr(os, "getloadavg") else {}
    record = {
        "name": path.stem,
        "title": title,
        "command": command(facts["command"]),
        "commit": facts["commit"],
        "time": facts["time"],
        "seed": seed,
        "seconds": round(time.monotonic() - _BEGUN, 1),
        "machine": {name: facts[name] for name in _MACHINE} | {"processor": processor()} | load,
        "versions": versions,
        "note": note,
        "values": values,
        "raw": _portable(raw or {}),
    }
    record = json.loads(json.dumps(record, default=str))  # as it will be read
    check(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def processor() -> str:
    """The name of this machine's processor, as far as the platform tells it."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text(encoding="utf-8").splitlines() if names.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(models), platform.processor() or platform.machine())


def command(arguments: Sequence[str]) -> str:
    """A command line as a reader can give it: this script's path from the checkout, other absolute paths by name.

    Options that change nothing that is measured are left out.
    """
    root, kept, before = str(RESULTS.parents[1]), [], ""
    for word in map(str, arguments):
        if word not in _OF_RECORD and (before not in _OF_RECORD or word.startswith("--")):
            kept.append(word.removeprefix(root + "/") if word.startswith(root) else word)
        before = word
    return shlex.join(["python", *map(_portable, kept)])


def _portable(value):
    """A value for JSON whose absolute paths are the names of their files."""
    if isinstance(value, dict):
        return {key: _portable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(part) for part in value]
    return re.sub(_FOLDERS, "", str(value)) if isinstance(value, str | Path) else value


def read(path: Path) -> dict:
    """One record, checked.

    Raises:
        ValueError: it does not have the form that this module describes; the message names the file and the field.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        check(record)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if record["name"] != path.stem:
        raise ValueError(f"{path.name}: its name is {record['name']!r}")
    return record


def check(record: dict) -> None:
    """Raise a ValueError that names the field where a record does not have the form that this module describes."""
    if unknown := sorted(set(record) - _KNOWN):
        raise ValueError(f"unknown fields {', '.join(unknown)}")
    required = ["name", "title", "values", *(() if record.get("source") else (*_MEASURED, "seed"))]
    if missing := [name for name in required if name not in record]:
        raise ValueError(f"no {', '.join(missing)}")
    for name in ("source", *_TEXTS):
        if not isinstance(record.get(name, ""), str):
            raise ValueError(f"{name} must be a text")
    if not record.get("source") and not ("python" in record["versions"] and "platform" in record["machine"]):
        raise ValueError("versions must name python, and machine its platform")
    if not record["values"]:
        raise ValueError("values has no table")
    for name, found in record["values"].items():
        _check_table(name, found)


def _check_table(name: str, found: dict) -> None:
    columns, rows = found.get("columns"), found.get("rows")
    if not columns or not rows or not all(isinstance(column, str) for column in columns):
        raise ValueError(f"values.{name} needs columns, which are texts, and rows")
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"values.{name}: a row of {len(row)} cells under {len(columns)} columns")
        for cell in row:
            if not _is_cell(cell):
                raise ValueError(f"values.{name}: {cell!r} is no cell")


def _is_cell(cell) -> bool:
    if not isinstance(cell, dict):
        return cell is None or isinstance(cell, str) or _is_number(cell)
    pairs = [cell[name] for name in ("interval", "range") if name in cell]
    return (
        set(cell) <= _CELL
        and _is_number(cell.get("value"))
        and len(pairs) < 2
        and all(len(pair) == 2 and all(map(_is_number, pair)) and pair[0] <= pair[1] for pair in pairs)
    )


def _is_number(value) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool) and math.isfinite(value)
