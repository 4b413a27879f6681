"""Training by a recipe."""

from pathlib import Path

from modeling_wavlink.recipes import RECIPES, Recipe

from .packages import launcher


def train(recipe: Recipe) -> Path:
    """Train a model by a recipe, going on from the last checkpoint in its output folder.

    On SIGTERM the step is finished and a checkpoint written, then the process exits with 143.

    Args:
        recipe: from `load_recipe`; its times are in seconds.

    Returns:
        The output folder, with `best/` and `last/`, which `AutoModel.from_pretrained` loads, `checkpoints/`,
        `metrics.jsonl`, `recipe.json` and plots.

    Raises:
        ValueError: no recipe, one without `output_dir`, data that cannot be trained on, an output folder with another
            run or in use by another process, or a loss that is not finite.

    Example:

    ```python
    >>> import wavlink
    >>> recipe = wavlink.load_recipe(
    ...     "quickstart", init=model_folder, data=sounds_folder, max_steps=1, batch_size=2, num_workers=0,
    ...     mixed_precision="no", label_prompt="", output_dir=output_folder,
    ... )
    >>> folder = wavlink.train(recipe)
    96,962 parameters, of which ...
    >>> sorted(path.name for path in folder.iterdir() if path.is_dir())
    ['best', 'checkpoints', 'last']

    ```
    """
    if not isinstance(recipe, Recipe):
        raise ValueError(f"give a recipe, as from load_recipe({next(iter(RECIPES))!r}), got {recipe!r}")
    if not recipe.output_dir:
        raise ValueError(f"the recipe {recipe.name} has no output_dir: load_recipe gives it one, or name a folder")
    folder: Path = launcher().train(recipe)
    return folder
