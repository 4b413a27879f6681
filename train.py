"""Train a recipe, or resume it: the launcher that `accelerate launch` takes.

    python train.py RECIPE [--option value ...]
    accelerate launch train.py RECIPE [--option value ...]

Writes into the output folder: `best/` and `last/`, which AutoModel loads, `checkpoints/`, from which the same command
goes on, `metrics.jsonl`, `recipe.json`, `environment.jsonl` and plots. The loop is `wavlink/training/loop.py`.
"""

import sys

from wavlink.console import StopSignal, run_command
from wavlink.training.command import main, parse_recipe, recipe_parser
from wavlink.training.log import Log
from wavlink.training.loop import Run, train

__all__ = ["Log", "Run", "StopSignal", "main", "parse_recipe", "recipe_parser", "train"]

if __name__ == "__main__":
    sys.exit(run_command("train.py", main))
