"""The fields of a recipe, a complete, frozen training configuration. A field is also an option of `wavlink train`.

The command line reads this module for its help: it imports torch and transformers in functions alone.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

REGIMES = ("projector", "lora", "full")
SCOPES = ("audio", "both")
# Fields that do not affect a run's weights and scores; of a stream, `save_steps` are the epochs and do.
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
    "lora_alpha": 1,
    "seed": 0,
}
_LARGEST_SEED = 2**32 - 1  # of NumPy


def _field(default, text: str):
    """A field with its default and its option's help text."""
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata={"help": text})
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on. Strings are Hub ids or folders; times are in seconds.

    A field's help text is also that of its option.
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
    label_prompts: tuple[str, ...] = _field(
        (), 'such as "a {},the sound of {}": one of these and --label_prompt is drawn each time for a label'
    )
    label_share: float = _field(
        0.0, "share of the drawn texts that are worded labels; 0: a worded label is one of a clip's captions"
    )
    init: str = _field("", "a WavLink folder or Hub id to start from, with its dims, instead of two towers")
    audio_model: str = _field(
        "",
        "a Whisper, a CLAP (HTS-AT) or a PaSST; without it, towers of --audio_config and --text_config from scratch",
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
    caption_bank: bool = _field(
        False,
        "every training caption is a candidate for each clip, not only the batch's; a text tower that learns embeds "
        "them anew after each epoch; memory: batch_size x captions logits for each nested dim",
    )
    padding: str = _field("longest", "longest: native length; max_length: the paper's 30 s")
    max_seconds: float = _field(30.0, "longer training clips are cropped at random; validation encodes whole clips")
    mask_false_negatives: bool = _field(True, "clips that share a caption are no negatives of each other")
    batch_size: int = _field(64, "clips of a step, over all processes")
    spec_augment: bool = _field(False, "SpecAugment: a stretch of time and a band of frequencies are masked")
    equalization: float = _field(
        0.0, "standard deviation, in dB, of a random gain at six frequencies of each clip, such as 1.6"
    )
    degraded_share: float = _field(
        0.0, "share of the clips that sound recorded otherwise: level, noise, bandwidth, room, speed and cuts"
    )
    micro_batch_size: int = _field(
        0, "clips a process embeds at once, with the same gradients; 0: its share of the batch"
    )
    epochs: int = _field(3, "passes over the data")
    max_steps: int = _field(0, "optimizer steps; 0: --epochs decides")
    learning_rate: float = _field(1e-4, "peak of the cosine schedule of AdamW")
    head_learning_rate: float = _field(
        0.0, "that of the projections, the global token and the scale; 0: as --learning_rate"
    )
    text_learning_rate: float = _field(0.0, "that of the text tower; 0: as --learning_rate")
    warmup_ratio: float = _field(0.05, "share of the steps with a rising learning rate")
    weight_decay: float = _field(0.01, "of AdamW")
    max_grad_norm: float = _field(1.0, "gradients are clipped to this norm")
    ema_decay: float = _field(
        0.0, "of an exponential moving average of the weights that is validated and saved, such as 0.999; 0: none"
    )
    mixed_precision: str = _field("auto", "auto: bf16 where the device computes in it, else no")
    attn_implementation: str = _field("sdpa", "attention kernels of transformers")
    gradient_checkpointing: bool = _field(False, "recompute activations in the backward pass: less memory, more time")
    compile: bool = _field(False, "torch.compile of both towers: minutes at the start, then faster steps")
    cache_features: bool = _field(
        False,
        "compute log-mels of whole training clips once, into HF_HOME/wavlink/features (32 KB a second of sound), and "
        "crop these; clips over 30 s are decoded each time",
    )
    num_workers: int = _field(1, "processes that decode sounds")
    save_steps: int = _field(0, "steps between checkpoints; 0: one at the end of each epoch")
    checkpoints_kept: int = _field(2, "newest checkpoints that are kept")
    trackers: tuple[str, ...] = _field((), "of Accelerate, by name: tensorboard, trackio, wandb ...")
    seed: int = _field(0, "of weights, order and crops")
    output_dir: str = _field("", "folder of the run (default: runs/NAME)")

    def __post_init__(self):
        """Refuse values that cannot work, before anything is read or downloaded."""
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
        self._refuse_bad_labels()
        if self.caption_bank:
            self._refuse_bad_bank()
        if self.cache_features and (self.streaming or self.padding != "longest"):
            raise ValueError("cache_features needs a data set held whole (no --streaming) and --padding longest")
        if self.augmented and self.padding != "longest":
            raise ValueError(
                "spec_augment, equalization and degraded_share change a clip, not the silence behind it: give "
                "--padding longest"
            )
        if not 0 <= self.degraded_share <= 1:
            raise ValueError(f"degraded_share must be between 0 and 1, got {self.degraded_share}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        for name in ("learning_rate", "head_learning_rate", "text_learning_rate", "weight_decay", "equalization"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio must be between 0 and 1, got {self.warmup_ratio}")
        if not 0 < self.max_seconds < math.inf:
            raise ValueError(f"max_seconds must be above 0, got {self.max_seconds}")
        if not self.max_grad_norm > 0:
            raise ValueError(
                f"max_grad_norm must be above 0, got {self.max_grad_norm}: 0 would leave nothing of the gradients, "
                "inf does not clip them"
            )
        if self.seed > _LARGEST_SEED:
            raise ValueError(f"seed must be at most {_LARGEST_SEED}, got {self.seed}")
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

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts that word a clip's label as a training caption: `label_prompt` and `label_prompts`."""
        return (*filter(None, (self.label_prompt,)), *self.label_prompts)

    @property
    def augmented(self) -> bool:
        """Whether the log-mels of training clips are changed."""
        return bool(self.spec_augment or self.equalization or self.degraded_share)

    @property
    def text_learns(self) -> bool:
        """Whether weights of the text tower are trained."""
        return self.scope != "audio" and self.regime != "projector"

    def _refuse_bad_labels(self) -> None:
        if self.prompts:
            from processing.prompts import checked_prompt

            for prompt in self.prompts:
                checked_prompt(prompt)
        if len({*self.prompts}) < len(self.prompts):
            raise ValueError(f"label_prompts must differ from each other and from label_prompt, got {self.prompts}")
        if not 0 <= self.label_share <= 1:
            raise ValueError(f"label_share must be between 0 and 1, got {self.label_share}")
        if self.label_share and not self.prompts:
            raise ValueError("label_share is of labels in words: give --label_prompts, such as 'a {},the sound of {}'")
        if self.label_share and self.all_captions:
            raise ValueError("label_share is of the one text drawn for a clip, not of all_captions: leave one out")

    def _refuse_bad_bank(self) -> None:
        if self.loss_type != "info_nce":
            raise ValueError("caption_bank is for info_nce: a sigmoid loss has no softmax over candidates")
        if self.streaming:
            raise ValueError("caption_bank needs all captions before the first step: leave --streaming out")


def computes_in_bf16() -> bool:
    """Return whether this machine's device has bf16 kernels.

    Without them torch multiplies bf16 in plain loops, tens of times slower than fp32.
    """
    import torch

    from wavlink.compat import has_bf16_kernels

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.accelerator.is_available():
        return True
    return has_bf16_kernels()


def differences(begun: dict, recipe: Recipe) -> str:
    """Describe how a run that was started with the fields `begun` differs from `recipe`; "" if it can be resumed.

    A field that `begun` lacks, because its version did not have it, had its default.
    """
    begun = _as_json(Recipe("", init="any")) | begun
    current = _as_json(recipe)
    free = {*MAY_CHANGE} - ({"save_steps"} if recipe.streaming else set())
    changed = [name for name in current if current[name] != begun[name] and name not in free]
    return ", ".join(f"{name} was {begun[name]!r} and is now {current[name]!r}" for name in changed)


def refuse_another_run(recipe: Recipe) -> None:
    """Refuse to resume, or to count as finished, the run of another recipe in this one's folder."""
    folder = Path(recipe.output_dir)
    if changes := differences(json.loads((folder / "recipe.json").read_text(encoding="utf-8")), recipe):
        raise ValueError(f"{folder} holds another run: {changes}; give another --output_dir, or delete it")


def _as_json(recipe: Recipe) -> dict:
    return json.loads(json.dumps(dataclasses.asdict(recipe)))
