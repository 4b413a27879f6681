"""Render the tables of README.md and docs/ from the records in `benchmarks/results`.

    python benchmarks/tables.py            # or: make tables
    python benchmarks/tables.py --check    # exit 1 where a page differs from its records

A page says where a table goes, by its record and, where a record has several, the table's name:

    <!-- table: paper/retrieval -->
    <!-- /table -->

It may show some rows alone, and wait for a record or a table that is still to come; nothing is rendered until then:

    <!-- table: speed/stream where clip=5 s, once recorded -->
    <!-- /table -->
"""

import argparse
import re
import sys
from pathlib import Path

try:
    from benchmarks import records
except ModuleNotFoundError:  # run as a script
    import records

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(
    r"^(?P<mark><!-- table: (?P<name>[^\s,]+)(?: where (?P<column>[^=\n]+)=(?P<value>[^\n]+?))?"
    r"(?P<later>, once recorded)? -->)\n(?P<old>.*?)^<!-- /table -->$",
    re.DOTALL | re.MULTILINE,
)
_NAMED = ("torch", "transformers", "faiss-cpu")  # versions that stand below a table
_MARK = re.compile(r"^[ \t]*<!-- /?table\b.*$", re.MULTILINE)


def pages() -> list[Path]:
    """README.md and every page of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def rendered(page: str, results: Path = records.RESULTS) -> str:
    """A page with all its tables as the records have them.

    Raises:
        ValueError: a marker without its other half, or one that names no record or no table of it.
    """
    if len(_MARK.findall(page)) != 2 * len(_BLOCK.findall(page)):
        raise ValueError("a table begins with `<!-- table: RECORD -->` and ends with `<!-- /table -->`")
    return _BLOCK.sub(lambda found: _block(found, results), page)


def _block(found: re.Match, results: Path) -> str:
    name = found["name"]
    stem, _, wanted = name.partition("/")
    path = results / f"{stem}.json"
    if not path.is_file():
        if found["later"]:
            return f"{found['mark']}\n<!-- /table -->"
        known = ", ".join(sorted(file.stem for file in results.glob("*.json")))
        raise ValueError(f"table: {name} names no record; there are {known or 'none'}")
    record = records.read(path)
    tables = record["values"]
    wanted = wanted or (next(iter(tables)) if len(tables) == 1 else "")
    if wanted not in tables and found["later"]:
        return f"{found['mark']}\n<!-- /table -->"
    if wanted not in tables:
        raise ValueError(f"table: {name} names no table of {path.name}; there are {', '.join(tables)}")
    table = tables[wanted]
    if found["column"]:
        table = _rows(table, found["column"], found["value"], name)
    return "\n".join([found["mark"], "", markdown(table), "", measured(record), "", "<!-- /table -->"])


def _rows(table: dict, column: str, value: str, name: str) -> dict:
    """The rows of a table that have `value` in `column`."""
    if column not in table["columns"]:
        raise ValueError(f"table: {name} has no column {column!r}; there are {', '.join(table['columns'])}")
    place = table["columns"].index(column)
    rows = [row for row in table["rows"] if _cell(row[place]) == _escaped(value)]
    if not rows:
        raise ValueError(f"table: {name} has no row with {column}={value}")
    return {**table, "rows": rows}


def markdown(table: dict) -> str:
    """A table in Markdown; all columns but the first are aligned to the right where they hold numbers alone."""
    rows = [[_cell(cell) for cell in row] for row in table["rows"]]
    numbers = [all(not isinstance(cell, str) for cell in column) for column in zip(*table["rows"], strict=True)]
    rule = ["---:" if number else "---" for number in numbers]
    lines = [list(map(_escaped, table["columns"])), rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measured(record: dict) -> str:
    """One sentence on where the values of a record come from."""
    note = f" {record['note']}" if record.get("note") else ""
    if source := record.get("source"):
        return f"*{_escaped(source)}*{_escaped(note)}"
    machine, versions = record["machine"], record["versions"]
    cores = f"{machine['cpus']} cores" if machine.get("cpus") else ""
    cores += f" under a load of {machine['load']:g}" if machine.get("load") else ""
    devices = ", ".join(machine.get("devices") or ())
    packages = [f"{name} {versions[name]}" for name in _NAMED if versions.get(name)]
    facts = [f"seed {record['seed']}" if record["seed"] is not None else "", f"commit {record['commit']}", cores]
    facts += [machine.get("processor"), devices, *packages, record["time"][:10]]
    return f"`{record['command']}` ({', '.join(filter(None, facts))}).{_escaped(note)}"


def _cell(cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        return _escaped(cell)
    if not isinstance(cell, dict):
        return f"{cell:,}"
    form = f"{'+' if cell.get('signed') else ''},.{cell['digits']}f" if "digits" in cell else ","
    text = f"{cell['value']:{form}}"
    if "interval" in cell:
        text += " [" + ", ".join(f"{bound:{form}}" for bound in cell["interval"]) + "]"
    if "range" in cell:
        text += " (" + " to ".join(f"{bound:{form}}" for bound in cell["range"]) + ")"
    return f"{text} {cell['unit']}" if cell.get("unit") else text


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page differs")
    options = parser.parse_args(arguments)
    stale = []
    for path in pages():
        page = path.read_text(encoding="utf-8")
        try:
            fresh = rendered(page)
        except ValueError as error:
            print(f"{path.relative_to(ROOT)}: {error}", file=sys.stderr)
            return 2
        if fresh != page:
            stale.append(str(path.relative_to(ROOT)))
            if not options.check:
                path.write_text(fresh, encoding="utf-8")
    if stale:
        print(f"{'differ from their records' if options.check else 'rendered'}: {', '.join(stale)}")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
