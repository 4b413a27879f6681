"""The recipes of `wavlink train`: small ones, the paper's stages and its design sweep; and how one is loaded.

The command line reads this module for its help, so it imports neither torch nor transformers.
"""

import dataclasses
import difflib
import itertools
import os
from typing import Any

from .recipe_fields import CHOICES as CHOICES
from .recipe_fields import MAY_CHANGE as MAY_CHANGE
from .recipe_fields import REGIMES, SCOPES, Recipe
from .recipe_fields import computes_in_bf16 as computes_in_bf16
from .recipe_fields import differences as differences
from .recipe_fields import refuse_another_run as refuse_another_run


def _quickstart() -> Recipe:
    """make demo: about 3 minutes on 2 cores.  python train.py quickstart"""
    return Recipe(
        name="quickstart",
        audio_config={
            "d_model": 128,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 512,
            "num_mel_bins": 80,
            "init_std": 0.08,  # about 1 / sqrt(128): the default 0.02 is for wide towers, and starts these asleep
        },
        text_config={
            "model_type": "bert",
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "max_position_embeddings": 64,
            "initializer_range": 0.08,
        },
        projection_dim=128,
        label_prompt="This is a sound of {}.",
        learning_rate=1e-3,
        epochs=10,
    )


def _sounds() -> Recipe:
    """Whisper-tiny.en + MiniLM on any captioned audiofolder.

    python train.py sounds --data FOLDER --audio_model openai/whisper-tiny.en \\
        --text_model sentence-transformers/all-MiniLM-L6-v2

    Half an hour on 2 cores for 10,000 clips of 3 s with `--attn_implementation eager`, which in bf16 on a CPU is twice
    as fast as sdpa; its result is in docs/evaluate.md.
    """
    return Recipe(
        name="sounds",
        data="",
        audio_model="openai/whisper-tiny.en",
        text_model="sentence-transformers/all-MiniLM-L6-v2",
        token_start="mean_frame",
        frame_pooling=2,
        max_seconds=8.0,
        epochs=6,
    )


def _paper(size: str, **changes) -> Recipe:
    """The paper's training (arXiv 2601.15118): AdamW 1e-4, cosine, 5 % warm-up, bf16, K = 4, 30 s with the silence.

    768 pairs are all processes' together (12 a GPU; the sweep's 80 are 10 a GPU). If the paper meant 768 a GPU, it is
    `--batch_size 49152`, on any number of GPUs with `--micro_batch_size`. What the paper does not state (weight decay,
    clipping, masks of equal captions) is this project's default.
    """
    whisper, clip = _PAPER_TOWERS[size]
    return Recipe(
        audio_model=whisper,
        text_model=clip,
        padding="max_length",
        batch_size=768,
        epochs=3,
        learning_rate=1e-4,
        warmup_ratio=0.05,
        mixed_precision="bf16",
        num_workers=8,
        save_steps=500,
        **changes,
    )


_PAPER_TOWERS = {
    "base": ("openai/whisper-base.en", "openai/clip-vit-base-patch32"),
    "small": ("openai/whisper-small.en", "openai/clip-vit-base-patch32"),
    "large": ("openai/whisper-large-v3", "openai/clip-vit-large-patch14"),
}
_STAGE1 = {
    "data": "",
    "mixture": {"auto_acd": 1.0, "audiosetcaps": 1.0},
    "validation_data": "audiocaps",
}
_STAGE2 = {
    "data": "",
    "mixture": {"audiocaps": 1.0, "clotho": 5.0},  # a clip of Clotho has five captions, of AudioCaps one: 0.11M pairs
    "validation_data": "audiocaps",
}


def _base_stage1() -> Recipe:
    """accelerate launch --config_file accelerate_configs/ddp_64gpu.yaml train.py base_stage1 --audio_folder SOUNDS

    About 8M captions, 3 epochs. The paper reports scores only after stage 2.
    """
    return _paper("base", name="base_stage1", **_STAGE1)


def _base_stage2() -> Recipe:
    """accelerate launch --config_file accelerate_configs/ddp_64gpu.yaml train.py base_stage2 --audio_folder SOUNDS

    The paper reports R@1/5/10: AudioCaps T2A 39.7/74.5/85.3, A2T 50.5/79.4/90.3; Clotho T2A 17.6/41.3/56.0, A2T
    21.1/45.8/58.8.
    """
    return _paper("base", name="base_stage2", init="runs/base_stage1/best", **_STAGE2)


def _small_stage1() -> Recipe:
    """accelerate launch --config_file accelerate_configs/ddp_64gpu.yaml train.py small_stage1 --audio_folder SOUNDS

    About 8M captions, 3 epochs. The paper reports scores only after stage 2.
    """
    return _paper("small", name="small_stage1", **_STAGE1)


def _small_stage2() -> Recipe:
    """accelerate launch --config_file accelerate_configs/ddp_64gpu.yaml train.py small_stage2 --audio_folder SOUNDS

    The paper reports R@1/5/10: AudioCaps T2A 44.5/79.0/88.0, A2T 54.3/84.1/92.3; Clotho T2A 21.2/46.8/60.1, A2T
    25.3/49.4/64.0.
    """
    return _paper("small", name="small_stage2", init="runs/small_stage1/best", **_STAGE2)


def _large_stage1() -> Recipe:
    """accelerate launch --config_file accelerate_configs/ddp_64gpu.yaml train.py large_stage1 --audio_folder SOUNDS

    About 8M captions, 3 epochs. The paper reports scores only after stage 2.
    """
    return _paper("large", name="large_stage1", gradient_checkpointing=True, **_STAGE1)


def _large_stage2() -> Recipe:
    """accelerate launch --config_file accelerate_configs/ddp_64gpu.yaml train.py large_stage2 --audio_folder SOUNDS

    The paper reports R@1/5/10: AudioCaps T2A 46.7/80.2/89.5, A2T 60.0/85.3/92.6; Clotho T2A 22.4/48.7/62.6, A2T
    27.4/52.3/66.0.
    """
    return _paper("large", name="large_stage2", gradient_checkpointing=True, init="runs/large_stage1/best", **_STAGE2)


def _one_gpu(name: str, audio_model: str, text_model: str, **changes) -> Recipe:
    """From two pretrained towers on AudioCaps and Clotho, which come from the Hub with their sounds, on one GPU.

    A clip of Clotho has five captions and one of AudioCaps one, so that Clotho's clips count five times. Clips keep
    their length, and cached gradients give a batch of 768 the memory of `micro_batch_size` clips: at most 24 GB.
    """
    return Recipe(
        name=name,
        audio_model=audio_model,
        text_model=text_model,
        token_start="mean_frame",
        frame_pooling=2,
        batch_size=768,
        epochs=10,
        mixed_precision="bf16",
        num_workers=8,
        **_STAGE2,
        **changes,
    )


def _base_one_gpu() -> Recipe:
    """accelerate launch --config_file accelerate_configs/one_gpu.yaml train.py base_one_gpu

    The paper's Base on one GPU. `wavlink train base_one_gpu --plan` says how long it takes on which card. It has not
    been trained yet, so there is no result to expect.
    """
    return _one_gpu("base_one_gpu", *_PAPER_TOWERS["base"], micro_batch_size=64)


def _tiny_one_gpu() -> Recipe:
    """accelerate launch --config_file accelerate_configs/one_gpu.yaml train.py tiny_one_gpu

    The towers of the recipe `sounds`. It has not been trained yet, so there is no result to expect.
    """
    towers = "openai/whisper-tiny.en", "sentence-transformers/all-MiniLM-L6-v2"
    return _one_gpu("tiny_one_gpu", *towers, micro_batch_size=128)


def design_sweep() -> list[Recipe]:
    """The paper's 24 configurations (Figure 1): Large, Auto-ACD, batch 80, 10 epochs; each states only its difference.

    accelerate launch --config_file accelerate_configs/ddp_8gpu.yaml train.py sweep --audio_folder SOUNDS

    The paper reports as the winner clip-info_nce-full-both. ModernBERT's new projection is as wide as CLIP's own, so
    that all have the paper's nested dims, 768, 384, 192 and 96. With `regime="projector"` both scopes train the same
    parameters, so their two runs must agree.
    """
    base = _paper("large", name="sweep", data="auto_acd", validation_data="audiocaps", gradient_checkpointing=True)
    base = dataclasses.replace(base, batch_size=80, epochs=10)
    return [
        dataclasses.replace(base, name="-".join(axes), **_difference(*axes))
        for axes in itertools.product(("clip", "modernbert"), ("info_nce", "sigmoid"), REGIMES, SCOPES)
    ]


def _difference(text: str, loss_type: str, regime: str, scope: str) -> dict:
    width = {"projection_dim": 768} if text == "modernbert" else {}
    return {"text_model": SWEEP_TEXTS[text], "loss_type": loss_type, "regime": regime, "scope": scope, **width}


SWEEP_TEXTS = {"clip": "openai/clip-vit-large-patch14", "modernbert": "answerdotai/ModernBERT-large"}
_TOWERS = ("audio_model", "text_model", "audio_config", "text_config")  # fields
_MADE_BY = (
    _quickstart,
    _sounds,
    _tiny_one_gpu,
    _base_one_gpu,
    _base_stage1,
    _base_stage2,
    _small_stage1,
    _small_stage2,
    _large_stage1,
    _large_stage2,
)
RECIPES = {recipe.__name__.lstrip("_"): recipe for recipe in _MADE_BY}


def get_recipe(name: str) -> Recipe:
    """Return a recipe, or one of the sweep's configurations, by its name."""
    if name in RECIPES:
        return RECIPES[name]()
    for recipe in design_sweep():
        if recipe.name == name:
            return recipe
    raise ValueError(
        f"no recipe {name!r}; the recipes are {', '.join(RECIPES)}, and sweep's {design_sweep()[0].name}, ..."
    )


def load_recipe(name: str, **changes: Any) -> Recipe:
    """Load a training recipe by its name, with some of its fields changed.

    Args:
        name: one of `RECIPES`, such as `"sounds"`, or a configuration of the sweep.
        changes: fields of `Recipe`, such as `data`, `batch_size` or `learning_rate`; times are in seconds. A model
            given as `init` keeps its towers, its dims and its pooling.

    Returns:
        The recipe, with `output_dir` `runs/NAME` unless it is given. `wavlink.train` runs it.

    Raises:
        ValueError: no such recipe or field, or a value that it cannot have.

    Example:

    ```python
    >>> from wavlink import load_recipe
    >>> recipe = load_recipe("quickstart", batch_size=16, matryoshka_dims=[128, 64])
    >>> recipe.batch_size, recipe.matryoshka_dims, recipe.output_dir
    (16, (128, 64), 'runs/quickstart')

    ```
    """
    fields = {field.name: field for field in dataclasses.fields(Recipe) if field.name != "name"}
    for change in changes:
        if change not in fields:
            near = difflib.get_close_matches(change, fields, n=1)
            advice = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(fields)}"
            raise ValueError(f"a recipe has no field {change!r}; {advice}")
    changes = {change: _field_value(fields[change], value) for change, value in changes.items()}
    if changes.get("init"):
        if towers := [name for name in _TOWERS if changes.get(name)]:
            raise ValueError(f"init={changes['init']} brings its towers: leave {' and '.join(towers)} out, or init")
        changes = {"pooling": "", "frame_pooling": 0, "projection_dim": 0} | changes  # the recipe's are for new models
    recipe = dataclasses.replace(get_recipe(name), **changes)
    return recipe if recipe.output_dir else dataclasses.replace(recipe, output_dir=f"runs/{recipe.name}")


def _field_value(field: dataclasses.Field, value: Any) -> Any:
    """A value as the field's type: a path as text, a list as a tuple, a whole number as a float."""
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    kind = field.type
    if kind in (tuple[str, ...], tuple[int, ...]):
        item, name = kind.__args__[0], f"a list of {kind.__args__[0].__name__}"
        if isinstance(value, list | tuple) and all(type(each) is item for each in value):
            return tuple(value)
    else:
        name = kind.__name__
        if type(value) is kind or (kind is float and type(value) is int):
            return kind(value)
    raise ValueError(f"{field.name} must be {name}, got {value!r}")
