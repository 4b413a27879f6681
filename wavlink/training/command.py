"""The command `wavlink train`: a recipe, or the sweep of recipes."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import PartialState

from wavlink.console import stdout_for
from wavlink.parsing import Parser
from wavlink.planning.plan import plan, table
from wavlink.train_options import (
    json_option,
    parse,
    plan_options,
    recipe_argument,
    recipe_options,
    refuse_sweep_options,
    sweep_of,
    take_plan,
)
from wavlink.training.loop import train
from wavlink.training.recipe_fields import Recipe
from wavlink.training.recipes import load_recipe
from wavlink.training.sweep import sweep, sweep_parser


def recipe_parser(description: str = __doc__) -> argparse.ArgumentParser:
    """Return a parser with an option for each field of a recipe, `--json` and `--plan`."""
    parser = Parser(prog="train.py", description=description, allow_abbrev=False)
    json_option(parser)
    plan_options(parser)
    recipe_options(parser)
    return parser


def parse_recipe(argv: Sequence[str]) -> Recipe:
    """Parse RECIPE and its options into one recipe."""
    return _parsed(argv)[0]


def _parsed(argv: Sequence[str]) -> tuple[Recipe, dict | None]:
    """The recipe of a command line, and the options of its plan if it asks for one."""
    parser = recipe_parser()
    recipe_argument(parser)
    try:
        options = parse(parser, argv)
        planned = take_plan(options)
        return _recipe(options), planned
    except ValueError as error:
        parser.error(str(error))


def main(argv: Sequence[str] | None = None) -> None:
    """Run `train.py` with its arguments, by default those of the process."""
    argv = list(sys.argv[1:] if argv is None else argv)
    given = [option for option in argv if option != "--json"]
    with stdout_for(given != argv) as print_json:
        try:
            if given[:1] == ["sweep"]:
                options = parse(sweep_parser(recipe_parser(sweep.__doc__)), given[1:])
                _refuse_plan(options)
                done = _sweep(options)
            else:
                recipe, planned = _parsed(given)
                if planned is not None:
                    return _plan(recipe, planned, print_json)
                done = _train(recipe)
        except (ValueError, OSError) as error:
            sys.exit(f"train.py: {error}")
        _report(done, print_json)


def run(options: argparse.Namespace) -> None:
    """Train a recipe or the sweep, with the parsed options of `wavlink train`."""
    options = dict(vars(options))
    with stdout_for(options.pop("as_json", False)) as print_json:
        if options["recipe"] == "sweep":
            del options["recipe"]
            _refuse_plan(options)
            done = _sweep(sweep_of(options))
        else:
            refuse_sweep_options(options, options["recipe"])
            planned = take_plan(options)
            recipe = _recipe(options)
            if planned is not None:
                return _plan(recipe, planned, print_json)
            done = _train(recipe)
        _report(done, print_json)


def _recipe(options: dict) -> Recipe:
    return load_recipe(options.pop("recipe"), **options)


def _refuse_plan(options: dict) -> None:
    """Raise a ValueError if a plan of the sweep is asked for, and take its options away."""
    if take_plan(options) is not None:
        raise ValueError("--plan is for one training: name a configuration of the sweep, clip-info_nce-full-both, ...")


def _plan(recipe: Recipe, options: dict, print_json: Callable) -> None:
    """Print the plan of a recipe."""
    planned = plan(recipe, **options)
    print(table(planned))
    print_json(planned)


def _report(done: dict[str, Path], print_json: Callable) -> None:
    if PartialState().is_main_process:
        print(f"done: {' and '.join(str(done[name]) for name in [*done][-2:])}")
        print_json({name: str(path) for name, path in done.items()})


def _train(recipe: Recipe) -> dict[str, Path]:
    folder = train(recipe)
    return {"metrics": folder / "metrics.jsonl", "best": folder / "best", "last": folder / "last"}


def _sweep(options: dict) -> dict[str, Path]:
    folder = Path(sweep(options, train))
    return {"picture": folder / "figure1.png", "table": folder / "sweep.md"}
