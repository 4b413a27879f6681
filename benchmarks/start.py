"""From the start of a process to its first vector, and its peak memory, beside transformers' CLAP.

    python benchmarks/start.py [--threads 2] [--record]

Each row is a process of its own, which embeds one wav file of 5 s, and then 32 of them (`speed_cold.py`); the rows
take turns. The models are those of speed.py at their full size, with random weights, which change neither time nor
memory. Prints the tables of the record. About 3 minutes on two cores.

- start: every model. A folder is opened in torch, by its export, or by the conversion that an earlier process made of
  it; a Hub id is one of the Hub's cache.
- goals: what this project wants to reach, beside what this run measured.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import records
import tables
from speed import write_sounds
from speed_report import BASE, LIBRARIES, PEER, compiled_name, spread
from speed_systems import new_clap, new_wavlink, write_exports

from wavlink.backends.choice import HAS, installed

HUB_ID = "user/base"
TURNS = 6  # of each process, the first of which fills caches
FILES = 32
LAYERS = 12  # of the text towers, which are loaded too
FIRST = 1.5  # s to the first vector, without torch
COLUMNS = ["model", "import", "load", "first vector", "altogether, by the clock", "torch imported", "peak memory"]


def write_models(folder: Path) -> dict[str, tuple[str, str, str]]:
    """Write the models, and return of each row the arguments of speed_cold.py: what runs, the model and its dtype."""
    for name, (model, processor) in (("clap", new_clap(LAYERS)), ("base", new_wavlink(text_layers=LAYERS))):
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    shutil.copytree(folder / "base", folder / "exported")
    cached, commit = folder / "cache/hub" / f"models--{HUB_ID.replace('/', '--')}", "0" * 40
    shutil.copytree(folder / "base", cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit, encoding="utf-8")
    rows = {PEER: ("clap", folder / "clap")}
    rows |= {BASE: ("torch:fp32", folder / "base"), f"{BASE}, a Hub id": ("torch:fp32", HUB_ID)}
    for backend in filter(installed, LIBRARIES):
        write_exports(folder / "exported", backend)
        name = compiled_name(BASE, backend, "fp32")
        rows[f"{name}, converted before"] = (f"{backend}:fp32", folder / "base")
        for precision in HAS[backend]:
            if precision != "bf16":
                rows[compiled_name(BASE, backend, precision)] = (f"{backend}:{precision}", folder / "exported")
    return {name: (run, str(model), "float32") for name, (run, model) in rows.items()}


def measure(folder: Path, threads: int) -> dict[str, list[dict]]:
    """What speed_cold.py prints of each row, in turn; the first time, which fills caches, is thrown away."""
    rows, sounds = write_models(folder), write_sounds(folder)[5]
    paths = [*itertools.islice(itertools.cycle(sounds), FILES)]
    caches = {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **caches, "OMP_NUM_THREADS": str(threads)}
    script, found = Path(__file__).with_name("speed_cold.py"), {name: [] for name in rows}
    for turn, (name, row) in itertools.product(range(TURNS), rows.items()):
        command = [sys.executable, script, *row, *paths]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
        if turn:
            found[name].append(json.loads(output.splitlines()[-1]))
    return found


def as_values(processes: dict[str, list[dict]]) -> dict:
    """The tables of the record."""
    runs, rows = {}, []
    for name, found in processes.items():
        run = runs[name] = {key: np.array([one[key] for one in found]) for key in found[0]}
        load, first = run["loaded"] - run["imported"], run["first"] - run["loaded"]
        parts = [spread(run["imported"], 1, "s"), spread(load, 1, "s"), spread(first, 2, "s")]
        imported = "yes" if run["torch"].any() else "no"
        rows.append([name, *parts, spread(run["wall"], 2, "s"), imported, spread(run["memory"], 0, "MiB")])
    most, reached = spread(runs[PEER]["memory"], 0, "MiB"), []
    for name, run in runs.items():
        if name != PEER:
            if not run["torch"].any():
                wanted = f"{name}: first vector, at most"
                reached.append([wanted, records.number(FIRST, 1, "s"), spread(run["wall"], 2, "s")])
            reached.append([f"{name}: peak memory, at most CLAP's", most, spread(run["memory"], 0, "MiB")])
    goals = records.table(["goal", "goal's value", "measured"], reached)
    return {"goals": goals, "start": records.table(COLUMNS, rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of each process (%(default)s)")
    records.add_option(parser, "start")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        processes = measure(Path(folder), options.threads)
    values = as_values(processes)
    for name, table in values.items():
        print(f"{name}\n\n{tables.markdown(table)}\n")
    records.write(
        options.record,
        title="Processes to their first vector, and their memory, beside CLAP",
        seed=0,
        note=f"{options.threads} threads, float32. Medians of {TURNS - 1} processes, with their range.",
        values=values,
        raw=processes,
    )


if __name__ == "__main__":
    main()
