"""Recipes: complete, frozen training configurations. A field is also an option of `wavlink train`.

The command line reads this module for its help: it imports torch and transformers in functions alone.
"""

import dataclasses
import difflib
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REGIMES = ("projector", "lora", "full")
SCOPES = ("audio", "both")
# Fields without any effect on a run's weights and scores.
MAY_CHANGE = ("output_dir", "num_workers", "save_steps", "checkpoints_kept", "trackers")
CHOICES = {
    "regime": REGIMES,
    "scope": SCOPES,
    "loss_type": ("info_nce", "sigmoid"),
    "pooling": ("", "token", "mean", "token_mean"),
    "token_start": ("noise", "mean_frame"),
    "padding": ("longest", "max_length"),
    "mixed_precision": ("auto", "bf16", "fp16", "no"),
    "attn_implementation": ("sdpa", "eager", "flash_attention_2"),
}
_AT_LEAST = {
    "batch_size": 2,
    "micro_batch_size": 0,
    "epochs": 1,
    "max_steps": 0,
    "frame_pooling": 0,
    "lora_rank": 1,
    "num_workers": 0,
    "save_steps": 0,
    "checkpoints_kept": 1,
    "projection_dim": 0,
    "label_smoothing": 0,
}


def _field(default, text: str):
    """A field with its default and what its option's help says."""
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata={"help": text})
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on. Strings are Hub ids or folders; times are in seconds.

    What a field's metadata says is also the help of its option.
    """

    name: str
    data: str = _field("synthetic", "`synthetic`, an audiofolder, a Hub id, or one of the paper's sets")
    mixture: dict = _field({}, "several data sets instead of --data: {source: weight}")
    audio_folder: str = _field(
        "", "sounds of the paper's sets: files or, streamed, tars named by YouTube id; Clotho's in clotho/"
    )
    streaming: bool = _field(False, "read shards (tar, parquet, Hub) as they come; needs --max_steps")
    train_split: str = _field("train", "split to train on")
    validation_data: str = _field("", "data set to validate on (default: that of --data)")
    validation_split: str = _field("validation", "split to validate on")
    caption_columns: tuple[str, ...] = _field((), "columns with captions (default: every column named like one)")
    label_prompt: str = _field(
        "", 'such as "This is a sound of {}.": the label so worded is one more training caption'
    )
    init: str = _field("", "a WavLink folder or Hub id to start from, with its dims, instead of two towers")
    audio_model: str = _field(
        "", "a Whisper or a CLAP (HTS-AT); without it, towers of --audio_config and --text_config from scratch"
    )
    text_model: str = _field("", "a CLIP, ModernBERT or BERT-like encoder")
    audio_config: dict = _field({}, "config of an audio tower with new weights")
    text_config: dict = _field({}, "config of a text tower with new weights")
    projection_dim: int = _field(0, "dims of the embeddings; 0: the text tower's own")
    matryoshka_dims: tuple[int, ...] = _field((), "nested dims (default: projection_dim and its three halves)")
    pooling: str = _field("", "of the clip's frames (default: that of --init, else token)")
    frame_pooling: int = _field(0, "neighbouring frames merged into one in a Whisper; 0: as --init, else 1 (none)")
    frame_pooling_layer: tuple[int, ...] = _field((1,), "merge frames after so many layers, each time by that factor")
    token_start: str = _field("noise", "start of a new global token; mean_frame: the mean of 64 training clips")
    regime: str = _field("full", "what of the towers is trained; projector: nothing")
    scope: str = _field("both", "which towers are trained; token, projections and scale always are")
    lora_rank: int = _field(8, "rank of LoRA's matrices")
    lora_alpha: int = _field(16, "scale of LoRA's updates, divided by the rank")
    lora_targets: tuple[str, ...] = _field((), "such as q_proj,v_proj (default: every linear map in the layers)")
    loss_type: str = _field("info_nce", "contrastive loss")
    label_smoothing: float = _field(0.0, "of InfoNCE's targets")
    all_captions: bool = _field(False, "every caption of a clip is a positive of it, instead of a random one")
    padding: str = _field("longest", "longest: native length; max_length: the paper's 30 s")
    max_seconds: float = _field(30.0, "longer training clips are cropped at random; validation encodes whole clips")
    mask_false_negatives: bool = _field(True, "clips that share a caption are no negatives of each other")
    batch_size: int = _field(64, "clips of a step, over all processes")
    micro_batch_size: int = _field(
        0, "clips a process embeds at once, with the same gradients; 0: its share of the batch"
    )
    epochs: int = _field(3, "passes over the data")
    max_steps: int = _field(0, "optimizer steps; 0: --epochs decides")
    learning_rate: float = _field(1e-4, "peak of the cosine schedule of AdamW")
    warmup_ratio: float = _field(0.05, "share of the steps with a rising learning rate")
    weight_decay: float = _field(0.01, "of AdamW")
    max_grad_norm: float = _field(1.0, "gradients are clipped to this norm")
    mixed_precision: str = _field("auto", "auto: bf16 where the device computes in it, else no")
    attn_implementation: str = _field("sdpa", "attention kernels of transformers")
    gradient_checkpointing: bool = _field(False, "recompute activations in the backward pass: less memory, more time")
    compile: bool = _field(False, "torch.compile of both towers: minutes at the start, then faster steps")
    num_workers: int = _field(1, "processes that decode sounds")
    save_steps: int = _field(0, "steps between checkpoints; 0: one at the end of each epoch")
    checkpoints_kept: int = _field(2, "newest checkpoints that are kept")
    trackers: tuple[str, ...] = _field((), "of Accelerate, by name: tensorboard, trackio, wandb ...")
    seed: int = _field(0, "of weights, order and crops")
    output_dir: str = _field("", "folder of the run (default: runs/NAME)")

    def __post_init__(self):
        """Refuses what cannot work, before anything is read or downloaded."""
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name, least in _AT_LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.mixed_precision == "auto":
            object.__setattr__(self, "mixed_precision", "bf16" if computes_in_bf16() else "no")
        dims, width = self.matryoshka_dims, self.projection_dim
        if any(dim < 1 or (width and dim > width) for dim in dims):
            raise ValueError(f"matryoshka_dims must be between 1 and projection_dim={width}, got {dims}")
        if self.label_prompt:
            from processing.prompts import checked_prompt

            checked_prompt(self.label_prompt)
        if self.label_smoothing and self.loss_type != "info_nce":
            raise ValueError("label_smoothing is for info_nce: a sigmoid loss has no softmax to smooth")
        if (
            not self.init
            and not (self.audio_model and self.text_model)
            and not (self.audio_config and self.text_config)
        ):
            raise ValueError(
                "nothing to start from: give --init with a WavLink folder or Hub id (a second stage starts from its "
                "first), or --audio_model and --text_model"
            )
        if self.mixture and any(not isinstance(x, int | float) or x <= 0 for x in self.mixture.values()):
            raise ValueError(f"mixture must give every source a weight above 0, got {self.mixture}")


def computes_in_bf16() -> bool:
    """Whether this machine's device has kernels for it. Elsewhere torch multiplies bf16 in plain loops, tens of times
    as slow as fp32."""
    import torch

    from wavlink.compat import has_bf16_kernels

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.accelerator.is_available():
        return True
    return has_bf16_kernels()


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
    `--batch_size 49152`, on any number of GPUs with `--micro_batch_size`. What the paper does not tell (weight decay,
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
_MADE_BY = (
    _quickstart,
    _sounds,
    _base_stage1,
    _base_stage2,
    _small_stage1,
    _small_stage2,
    _large_stage1,
    _large_stage2,
)
RECIPES = {recipe.__name__.lstrip("_"): recipe for recipe in _MADE_BY}


def differences(begun: dict, recipe: Recipe) -> str:
    """How a run that was begun with the fields `begun` differs from `recipe`, in words; empty if it can go on as it.

    A field that `begun` lacks, since its version did not know it, had its default.
    """
    begun = _as_json(Recipe("", init="any")) | begun
    asked = _as_json(recipe)
    changed = [name for name in asked if asked[name] != begun[name] and name not in MAY_CHANGE]
    return ", ".join(f"{name} was {begun[name]!r} and is now {asked[name]!r}" for name in changed)


def refuse_another_run(recipe: Recipe) -> None:
    """A run's folder goes on, or counts as done, only as the run it is."""
    folder = Path(recipe.output_dir)
    if changes := differences(json.loads((folder / "recipe.json").read_text(encoding="utf-8")), recipe):
        raise ValueError(f"{folder} holds another run: {changes}; give another --output_dir, or delete it")


def _as_json(recipe: Recipe) -> dict:
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def get_recipe(name: str) -> Recipe:
    """A recipe, or one of the sweep's configurations, by its name."""
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
            given as `init` keeps its own `pooling` and `frame_pooling` unless these are given.

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
    if "init" in changes:
        changes = {"pooling": "", "frame_pooling": 0} | changes  # the recipe's own are for new models
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
