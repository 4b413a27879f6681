"""Measure again what has a record, and compare: `make reproduce SOUNDS=FOLDER`.

    python benchmarks/reproduce.py --sounds FOLDER [--hours 3] [--out runs/reproduce] [--only NAME ...]

Runs the command of each record in `benchmarks/results`, the shortest first, as long as their expected times fit into
`--hours` on two cores, and lists the others with their commands. Records stay as they are: new ones go to OUT. The
same command goes on with an interrupted one; what this commit has measured there is not measured again.

- A value with a 95 % interval, or a range, is `inside` it or `different`; a number or text without one is `same`, to
  the digits shown, or `different`. Differences stand with both figures in the report.
- Times, sizes and rates belong to a machine: they are `reported`, as ratios of the new to the kept one.

Writes OUT/report.json and OUT/report.md; with `--only`, what they hold of other records, of this commit, stays. Exits
with 1 where a command failed or a value is different.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import records
import tables

from wavlink.training.run_folder import environment

ROOT = Path(__file__).parents[1]
EXACT = ("failures", "errors", "wrong")  # columns that no machine changes
PATIENCE = 4, 20  # times the expected minutes, and minutes, after which a command hangs


@dataclass(frozen=True)
class Again:
    """How a record is made again.

    Args:
        minutes: that it takes on two quiet cores.
        before: commands that make what its own command reads; what is there already is not made again.
        command: default: the record's. `sounds` stands for the folder of sounds, `OUT` for that of the report.
        needs: what it takes besides sounds, without which it is listed alone.
        of_machine: whether all numbers without an interval belong to the machine.
    """

    minutes: float
    before: tuple[str, ...] = ()
    command: str = ""
    needs: str = ""
    of_machine: bool = False


_SEEDS = range(5)
_TRAIN = "python train.py quickstart --output_dir OUT/quickstart-{0} --seed {0}"
_EVAL = "python -m wavlink eval --model {}OUT/quickstart-{}/best --benchmark synthetic --output OUT/quickstart-{}.json"
_TINY = "python -m wavlink eval --model wavlink-tiny --benchmark sounds --output OUT/wavlink-tiny.json"
_ROBUST = "python -m wavlink eval --model wavlink-tiny --benchmark sounds --robustness --output OUT/robust.json"
_HUB = "models from the Hub"
_TOWERS = "python benchmarks/text_towers.py sounds --out OUT/towers --steps 200 600 --batch_size 64"
_CLAIMS = (
    "python benchmarks/claims.py sounds --towers OUT/towers --audio_model openai/whisper-tiny.en --work OUT/claims"
)
RUNS = {
    "audio_llm": Again(30, needs=_HUB),
    "browser": Again(15, needs="npm packages and a Chromium", of_machine=True),
    "captions_at_scale": Again(10, of_machine=True),
    "claims": Again(240, before=(_TOWERS,), command=_CLAIMS, needs=_HUB),
    "fuzz": Again(60, command="python benchmarks/fuzz.py --sounds sounds --kept OUT/fuzz", of_machine=True),
    "gpu_check": Again(10, needs="a GPU", of_machine=True),
    "index_scale": Again(45, of_machine=True),
    "int8": Again(15),
    "killed_index": Again(8, of_machine=True),
    "killed_migrate": Again(20, of_machine=True),
    "killed_push": Again(20, of_machine=True),
    "killed_serve": Again(6, of_machine=True),
    "killed_train": Again(15, of_machine=True),
    "load": Again(6, of_machine=True),
    "maeb_local": Again(2, command="python benchmarks/maeb.py wavlink-tiny --sounds sounds --output OUT/maeb"),
    "multilingual": Again(30, needs="packages with translations"),
    "plan": Again(2, of_machine=True),
    "quickstart": Again(
        25,
        before=(
            *(line for seed in _SEEDS for line in (_TRAIN.format(seed), _EVAL.format("", seed, seed))),
            _EVAL.format("random:", 0, "random"),
        ),
        command="python benchmarks/scores.py"
        + "".join(f" quickstart=OUT/quickstart-{seed}.json" for seed in _SEEDS)
        + " random=OUT/quickstart-random.json",
    ),
    "robustness": Again(
        60, before=(_ROBUST,), command="python benchmarks/scores.py --seed 0 wavlink-tiny=OUT/robust.json"
    ),
    "search_by": Again(5, command="python benchmarks/search_by.py wavlink-tiny sounds --index OUT/search.index"),
    "speed": Again(10, of_machine=True),
    "speed_zen4": Again(10, needs="a processor of AMD's Zen 4", of_machine=True),
    "start": Again(4, of_machine=True),
    "train_step": Again(2, of_machine=True),
    "training_options": Again(120, before=(_TOWERS,), command=f"{_CLAIMS}-options --training", needs=_HUB),
    "wavlink_tiny": Again(
        2, before=(_TINY,), command="python benchmarks/scores.py --seed 0 wavlink-tiny=OUT/wavlink-tiny.json"
    ),  # as shipped: its training takes `benchmarks/wavlink_tiny.sh` hours
}


def again_of(record: dict) -> Again | None:
    """How a record is made again; None where its time is not known."""
    known = RUNS.get(record["name"])
    return known or (Again(record["seconds"] / 60) if record.get("seconds") else None)


def plan(kept: list[dict], hours: float) -> tuple[list[dict], list[dict]]:
    """Those to run, the shortest first, and the others, each with why."""
    run, others, left = [], [], 60 * hours
    for record in sorted(kept, key=lambda record: again.minutes if (again := again_of(record)) else 1e9):
        again = again_of(record)
        if again is None or again.needs or again.minutes > left:
            why = (
                f"needs {again.needs}"
                if again and again.needs
                else "needs longer"
                if again
                else "its time is not known"
            )
            others.append(_entry(record, "not run", why))
        else:
            left -= again.minutes
            run.append(record)
    return run, others


def _entry(record: dict, verdict: str, why: str = "", **more) -> dict:
    again = again_of(record)
    facts = {"name": record["name"], "verdict": verdict, "why": why, "minutes": again and round(again.minutes, 1)}
    return facts | {"command": (again and again.command) or record["command"], **more}


def words_of(command: str, sounds: Path, out: Path) -> list[str]:
    """A command line to run."""
    words = [word.replace("OUT", str(out)) if "OUT" in word else word for word in shlex.split(command)]
    return [sys.executable if word == "python" else str(sounds) if word == "sounds" else word for word in words]


def run(record: dict, sounds: Path, out: Path) -> str:
    """Measure once more, into OUT/records; "" or why that failed."""
    again, path = again_of(record), out / "records" / f"{record['name']}.json"
    deadline = time.monotonic() + 60 * (PATIENCE[0] * again.minutes + PATIENCE[1])
    lines = [words_of(line, sounds, out) for line in (*again.before, again.command or record["command"])]
    lines[-1] += ["--record", str(path)]
    options = {"cwd": ROOT, "stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "start_new_session": True}
    with open(out / f"{record['name']}.log", "w", encoding="utf-8") as log:
        for words in lines:
            process = subprocess.Popen(words, stdout=log, env=os.environ | {"PYTHONPATH": str(ROOT)}, **options)
            try:
                code = process.wait(max(1, deadline - time.monotonic()))
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                return f"{shlex.join(words[:3])} took over {PATIENCE[0]} times as long as expected"
            if code and not path.exists():
                return f"{shlex.join(words[:3])} ended with {code}: see {log.name}"
    return ""


def cells_of(record: dict) -> Iterator[tuple[tuple[str, str, str], object]]:
    """Every cell by its table, row and column."""
    for name, table in record["values"].items():
        columns = numbered(table["columns"])
        for label, row in zip(numbered(str(row[0]) for row in table["rows"]), table["rows"], strict=True):
            yield from (((name, label, column), cell) for column, cell in zip(columns, row, strict=True))


def numbered(names: Iterable[str]) -> list[str]:
    """The names, of which the second and further ones that are alike get a number."""
    counts: Counter[str] = Counter()
    found = []
    for name in names:
        counts[name] += 1
        found.append(name if counts[name] == 1 else f"{name} {counts[name]}")
    return found


def verdict(column: str, kept, again, of_machine: bool) -> str:
    """Of one cell, see above."""
    if not isinstance(kept, dict | int | float) or not isinstance(again, dict | int | float):
        return "same" if kept == again else "reported" if of_machine else "different"
    kept, value = kept if isinstance(kept, dict) else {"value": kept}, _value(again)
    shown = 0.5 * 10.0 ** -kept.get("digits", 9)
    if bounds := kept.get("interval") or ([] if of_machine or kept.get("unit") else kept.get("range")):
        return "inside" if bounds[0] - shown <= value <= bounds[1] + shown else "different"
    if (of_machine or kept.get("unit")) and column not in EXACT:
        return "reported"
    return "same" if abs(value - kept["value"]) <= shown else "different"


def _value(cell) -> float:
    return cell["value"] if isinstance(cell, dict) else cell


def compare(kept: dict, again: dict) -> list[dict]:
    """A row for each cell of the kept record."""
    found, known, rows = dict(cells_of(again)), again_of(kept), []
    for (name, row, column), cell in cells_of(kept):
        fields = {"table": name, "row": row, "column": column, "kept": cell}
        if (name, row, column) not in found:
            rows.append(fields | {"verdict": "not measured"})
            continue
        new = found[name, row, column]
        fields |= {"again": new, "verdict": verdict(column, cell, new, bool(known and known.of_machine))}
        if fields["verdict"] == "reported" and isinstance(cell, dict) and isinstance(new, dict) and cell["value"]:
            fields["ratio"] = round(new["value"] / cell["value"], 3)
        rows.append(fields)
    return rows


def result(record: dict, out: Path, failed: str) -> dict:
    if failed:
        return _entry(record, "failed", failed)
    cells = compare(record, records.read(out / "records" / f"{record['name']}.json"))
    counts = Counter(cell["verdict"] for cell in cells)
    whole = next((name for name in ("different", "inside", "same", "reported") if counts[name]), "not measured")
    whole = "inside" if whole == "same" else whole
    return _entry(record, whole, ", ".join(f"{count} {name}" for name, count in counts.most_common()), cells=cells)


def markdown(report: dict) -> str:
    """The report to read."""
    columns = ["record", "result", "cells, or why", "minutes expected", "command"]
    rows = [[e["name"], e["verdict"], e["why"], e["minutes"], f"`{e['command']}`"] for e in report["records"]]
    text = [f"# What was measured again\n\nCommit {report['commit']}, {report['time']}.\n"]
    text.append(tables.markdown(records.table(columns, rows)))
    for entry in report["records"]:
        cells = [cell for cell in entry.get("cells", ()) if cell["verdict"] == "different"]
        if cells:
            rows = [[*(cell[key] for key in ("table", "row", "column", "kept", "again"))] for cell in cells]
            table = records.table(["table", "row", "column", "kept", "again"], rows)
            text.append(f"\n## {entry['name']}: different\n\n{tables.markdown(table)}")
        ratios = [cell["ratio"] for cell in entry.get("cells", ()) if "ratio" in cell]
        if ratios:
            text.append(
                f"\n{entry['name']}: new by kept figures of the machine {min(ratios):.2f} to {max(ratios):.2f}."
            )
    return "\n".join(text) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "an audiofolder with train, validation and test"
    parser.add_argument("--sounds", type=records.folder, required=True, help=text)
    parser.add_argument("--hours", type=float, default=3, help="that all commands may take (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/reproduce", help="folder of the report")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of these records")
    parser.add_argument("--results", type=Path, default=records.RESULTS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    out, sounds = options.out.resolve(), options.sounds.resolve()
    if out.is_relative_to(options.results.resolve()):
        parser.error("--out must not be where the records are kept")
    (out / "records").mkdir(parents=True, exist_ok=True)
    kept = [records.read(path) for path in sorted(options.results.glob("*.json"))]
    if unknown := {*(options.only or ())} - {record["name"] for record in kept}:
        names = ", ".join(record["name"] for record in kept)
        parser.error(f"--only {' '.join(sorted(unknown))}: there is no such record, only {names}")
    kept = [
        record for record in kept if "source" not in record and record["name"] in (options.only or [record["name"]])
    ]
    chosen, others = plan(kept, options.hours)
    about = {name: environment()[name] for name in ("commit", "time")}
    others += _of_others(out, about["commit"], [record["name"] for record in kept])
    report = about | {"hours": options.hours, "records": []}
    for record in chosen:
        path = out / "records" / f"{record['name']}.json"
        done = path.exists() and records.read(path)["commit"] == about["commit"]
        print(
            f"{record['name']}: {'measured already' if done else f'about {again_of(record).minutes:.0f} min'}",
            flush=True,
        )
        if not done:
            path.unlink(missing_ok=True)
        report["records"].append(result(record, out, "" if done else run(record, sounds, out)))
        _write(report | {"records": report["records"] + others}, out)
    _write(report | {"records": report["records"] + others}, out)
    print(f"{out / 'report.md'}")
    return int(any(entry["verdict"] in ("failed", "different") for entry in report["records"]))


def _of_others(out: Path, commit: str, names: list[str]) -> list[dict]:
    """What an earlier report of a commit holds of records that are not among these."""
    try:
        earlier = json.loads((out / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [entry for entry in earlier["records"] if earlier["commit"] == commit and entry["name"] not in names]


def _write(report: dict, out: Path) -> None:
    (out / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "report.md").write_text(markdown(report), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
