"""The design sweep: train its configurations under several seeds, one after another, and report their scores."""

import argparse
import dataclasses
import fnmatch
import gc
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from accelerate import PartialState

from wavlink.atomic_files import remove, remove_leftovers, write_text
from wavlink.evaluation.report import Table
from wavlink.evaluation.retrieval import DIRECTIONS
from wavlink.plots import draw_sweep
from wavlink.train_options import SWEEP, sweep_options

from .factory import refuse_bad_start
from .recipe_fields import Recipe, refuse_another_run
from .recipes import SWEEP_TEXTS, design_sweep

AXES = ("text_model", "loss_type", "regime", "scope", "init")  # which the sweep varies, so they are no options


def sweep_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the sweep's options, with their defaults, to a parser of recipe options."""
    sweep_options(parser)
    parser.set_defaults(**SWEEP)
    return parser


def sweep(options: dict, train: Callable[[Recipe], Path]) -> Path:
    """python train.py sweep [--only PATTERNS] [--seeds 0,1,2] [--clip ID] [--modernbert ID] [--OPTION VALUE ...]

    Train the 24 configurations, or those selected, into OUTPUT_DIR/NAME-seedN. The same command goes on where it
    stopped; finished runs are kept, without their checkpoints. figure1.png (R@1 of every configuration on the
    validation data, the last step's model), sweep.md and sweep.json hold the results.
    """
    recipes = configurations(dict(options))
    folder = Path(recipes[0].output_dir).parent
    for recipe in {recipe.name: recipe for recipe in recipes if not finished(recipe)}.values():
        refuse_bad_start(recipe)  # all of them first, rather than the last one after days
    rows = []
    for recipe in recipes:
        begun = not finished(recipe)
        if begun:
            train(recipe)
            gc.collect()  # a run and its Accelerator hold each other, and the next one needs their memory
        _remove_checkpoints(Path(recipe.output_dir, "checkpoints"))
        rows.append(result(recipe))
        if begun and PartialState().is_main_process:
            write_text(folder / "sweep.json", json.dumps(rows, indent=2) + "\n")
    if PartialState().is_main_process:
        report(rows, folder)
    return folder


def _remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a finished run, and their folder if it holds nothing else."""
    for checkpoint in folder.glob("step-*"):
        remove(checkpoint)
    remove_leftovers(folder)
    with suppress(OSError):
        folder.rmdir()


def finished(recipe: Recipe) -> bool:
    """Return whether the run in a recipe's folder is finished; refuse the run of another recipe there."""
    folder = Path(recipe.output_dir)
    if not (folder / "last").is_dir():  # the last thing a run writes
        return False
    refuse_another_run(recipe)
    return True


def report(rows: Sequence[dict], folder: Path) -> None:
    """Write sweep.json, sweep.md and figure1.png."""
    write_text(folder / "sweep.json", json.dumps(rows, indent=2) + "\n")
    write_text(folder / "sweep.md", table(rows))
    recalls = {
        name: {way: [recall(row, way, 1) for row in group] for way in DIRECTIONS}
        for name, group in by_name(rows).items()
    }
    draw_sweep(recalls, folder / "figure1.png")


def configurations(options: dict) -> list[Recipe]:
    """Return the recipes that a sweep's options select, seed after seed."""
    patterns = options.pop("only").split(",")
    seeds = options.pop("seeds").split(",")
    texts = {source: options.pop(name) for name, source in SWEEP_TEXTS.items()}
    fixed = [name for name in (*AXES, "seed") if name in options]
    if fixed:
        raise ValueError(
            f"the sweep varies {', '.join(fixed)} itself: choose with --only, --clip, --modernbert, --seeds"
        )
    folder = options.pop("output_dir", "runs/sweep")
    names = [recipe.name for recipe in design_sweep()]
    idle = [pattern for pattern in patterns if not fnmatch.filter(names, pattern)]
    if idle:
        raise ValueError(f"--only {','.join(idle)} asks for nothing; there are {', '.join(names)}")
    if not all(seed.isdecimal() for seed in seeds):
        raise ValueError(f"--seeds must be whole numbers such as 0,1,2, got {','.join(seeds)}")
    return [
        dataclasses.replace(
            recipe,
            **options,
            text_model=texts[recipe.text_model],
            seed=seed,
            output_dir=f"{folder}/{recipe.name}-seed{seed}",
        )
        for seed in dict.fromkeys(map(int, seeds))
        for recipe in design_sweep()
        if any(fnmatch.fnmatch(recipe.name, pattern) for pattern in patterns)
    ]


def result(recipe: Recipe) -> dict:
    """Read the scores of a finished run's last validation."""
    lines = (Path(recipe.output_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = [record for record in map(json.loads, lines) if "validation" in record][-1]
    return {"name": recipe.name, "seed": recipe.seed, "step": last["step"], "validation": last["validation"]}


def recall(row: dict, direction: str, k: int, last_dim: bool = False) -> float:
    """Return R@k in percent at the full width, or at the smallest nested dim."""
    dims = sorted(row["validation"][direction], key=int)
    return 100 * row["validation"][direction][dims[0] if last_dim else dims[-1]][f"R@{k}"]["value"]


def by_name(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """Group rows by configuration, the best mean R@1 (of both directions and all seeds) first."""
    names = dict.fromkeys(row["name"] for row in rows)
    grouped = {name: [row for row in rows if row["name"] == name] for name in names}
    quality = {
        name: np.mean([recall(x, way, 1) for x in group for way in DIRECTIONS]) for name, group in grouped.items()
    }
    return {name: grouped[name] for name in sorted(grouped, key=quality.get, reverse=True)}


def table(rows: Sequence[dict]) -> str:
    """Render the results as a Markdown table, the best first; several seeds as mean and range."""
    titles = [f"{words} R@{k}" for words in DIRECTIONS.values() for k in (1, 10)]
    lines = []
    for name, group in by_name(rows).items():
        cells = [_spread([recall(row, way, k) for row in group]) for way in DIRECTIONS for k in (1, 10)]
        small = [np.mean([recall(row, way, 10, last_dim=True) for way in DIRECTIONS]) for row in group]
        lines.append([name, str(len(group)), *cells, _spread(small)])
    return Table(["configuration", "seeds", *titles, "R@10 at 1/8 dims"], lines).markdown() + "\n"


def _spread(values: Sequence[float]) -> str:
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"
