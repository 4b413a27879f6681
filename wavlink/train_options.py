"""The options of `train`: the fields of a recipe with their help, defaults and choices, and those of the sweep."""

import argparse
import dataclasses
import json
from collections.abc import Sequence

from wavlink.planning.facts import DEVICES, UTILIZATION
from wavlink.training.recipes import CHOICES, RECIPES, SWEEP_TEXTS, Recipe

from .options import shared
from .options.values import numbers
from .parsing import Parser

SWEEP = {"only": "*", "seeds": "0", **SWEEP_TEXTS}
_SWEEP_HELP = {
    "only": "names or patterns of configurations: clip-*,*-full-both",
    "seeds": "such as 0,1,2: every configuration under each",
    **{name: f"the {name} text tower, a Hub id or folder" for name in SWEEP_TEXTS},
}
_PLAN = {  # options of --plan: their default, metavar and help
    "plan_device": ((), "A,B", f"with --plan: of {', '.join(DEVICES)}; the last two are measured here"),
    "plan_clips": (0, "N", "with --plan: clips of an epoch; 0: those of the data"),
    "plan_seconds": (0.0, "X", "with --plan: seconds of a clip on average; 0: those of the data"),
    "plan_utilization": (UTILIZATION, "X", "with --plan: share of a card's peak that is assumed to be reached"),
}


def train(parser: Parser) -> None:
    """Add RECIPE, its options and, for the recipe `sweep`, the sweep's."""
    recipe_argument(parser)
    json_option(parser)
    plan_options(parser)
    recipe_options(parser)
    sweep_options(parser.add_argument_group("of `train sweep` alone"))


def recipe_argument(parser: Parser) -> None:
    """Add RECIPE."""
    parser.add_argument("recipe", metavar="RECIPE", help=f"{', '.join(RECIPES)}, or sweep, the paper's 24 in a row")


def json_option(parser: Parser) -> None:
    """Add --json."""
    shared.json_option(parser, default=argparse.SUPPRESS)


def plan_options(parser: Parser) -> None:
    """Add --plan and the options that belong to it."""
    text = "print parameters, steps, FLOPs, memory and hours instead of training; nothing is downloaded or written"
    parser.add_argument("--plan", action="store_true", default=argparse.SUPPRESS, help=text)
    for name, (default, metavar, help_text) in _PLAN.items():
        kind = _words if default == () else type(default)
        added = parser.add_argument(f"--{name}", default=argparse.SUPPRESS, type=kind, metavar=metavar, help=help_text)
        added.shown_default = "every card" if default == () else str(default)


def take_plan(options: dict) -> dict | None:
    """Remove the options of --plan from `options` and return them by `wavlink.planning.plan`'s names; None without it.

    Raises:
        ValueError: some are given without --plan.
    """
    given = {name: options.pop(name) for name in _PLAN if name in options}
    if options.pop("plan", False):
        names = {"plan_device": "devices"}
        return {names.get(name, name.removeprefix("plan_")): value for name, value in given.items()}
    if given:
        raise ValueError(f"--{next(iter(given))} is for --plan: add that, or leave it out")
    return None


def recipe_options(parser: Parser) -> None:
    """Add an option for each field of a recipe; the help shows the default of recipes that do not set the field."""
    for field in dataclasses.fields(Recipe):
        if field.name != "name":
            kind = _argument(field)
            added = parser.add_argument(
                f"--{field.name}", default=argparse.SUPPRESS, help=field.metadata["help"].replace("%", "%%"), **kind
            )
            added.shown_default = _shown(field.default)


def sweep_options(group: "argparse._ActionsContainer") -> None:
    """Add the options of the sweep."""
    for name, default in SWEEP.items():
        group.add_argument(f"--{name}", default=argparse.SUPPRESS, help=_SWEEP_HELP[name]).shown_default = default


def sweep_of(options: dict) -> dict:
    """Return the sweep's options with their defaults."""
    return SWEEP | options


def refuse_sweep_options(options: dict, recipe: str) -> None:
    """Raise a ValueError if options of the sweep were given for another recipe."""
    given = [name for name in SWEEP if name in options]
    if given:
        raise ValueError(f"--{given[0]} is of `train sweep`, not of {recipe}: leave it out")


def _shown(default) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    return "none" if default == "" or default is dataclasses.MISSING else str(default)


def _argument(field: dataclasses.Field) -> dict:
    if field.name in CHOICES:  # the recipe checks them, also without a command line
        return {"type": str, "metavar": "{" + ",".join(filter(None, CHOICES[field.name])) + "}"}
    if field.type is bool:
        return {"type": _boolean, "metavar": "{true,false}"}
    if field.type is dict:
        return {"type": json.loads, "metavar": "JSON"}
    if field.type == tuple[str, ...]:
        return {"type": _words, "metavar": "A,B"}
    if field.type == tuple[int, ...]:
        return {"type": numbers, "metavar": "N,N"}
    return {"type": field.type, "metavar": {str: "TEXT", int: "N", float: "X"}[field.type]}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false, not {text!r}")
    return text.lower() == "true"


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict:
    """Return the options that were given, by name."""
    return vars(parser.parse_args(argv))
