"""The arms of claims.py: what each changes of the base recipe, its learning rates, and the clips that all train on."""

import argparse
import csv
from dataclasses import dataclass, field
from pathlib import Path

import audio_towers
import soundfile
from transformers import set_seed

from wavlink.atomic_files import new_folder
from wavlink.training.recipes import Recipe

SPLITS = ("train", "validation", "test")
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
MOST_RATES = 5  # of an arm's search


@dataclass(frozen=True)
class Arm:
    """A choice of the design.

    Args:
        words: what it is.
        against: the arm that it is compared with; "" for one that others are compared with alone.
        instead_of: what that one has instead.
        paper: where the paper sees it.
        changes: fields of the base recipe, in a pair of its own also another budget. `text_model` is a folder of
            `--towers`, `audio_model` one of audio_towers.py, small and with random weights of the run's seed.
            `head_rate` times the learning rate is that of the heads.
        rate: one of `RATES`, the middle of the first three.
        stages: further changes of each stage, which share the steps equally; the next goes on from the weights.
    """

    words: str
    against: str = ""
    instead_of: str = ""
    paper: str = ""
    changes: dict = field(default_factory=dict)
    rate: float = 3e-4
    stages: tuple[dict, ...] = ({},)


FULL_WIDTH = "--projection_dim alone"
_BY_TEMPLATE = {"label_prompt": "This is a sound of {}."}  # captions made from labels alone
_RANDOM = {"max_steps": 100, "batch_size": 32, "frame_pooling": 1, "cache_features": False}  # as HTS-AT can have it
ARMS = {
    "base": Arm("full fine-tuning of both towers, CLIP text, InfoNCE, nested dims, global token from the mean frame"),
    "lora": Arm("LoRA", "base", "full fine-tuning", "behind", {"regime": "lora"}, 3e-3),
    "projector": Arm("projections alone", "base", "full fine-tuning", "behind", {"regime": "projector"}, 3e-3),
    "siglip": Arm("SigLIP's loss", "base", "InfoNCE", "behind", {"loss_type": "sigmoid"}),
    "modernbert": Arm("ModernBERT", "base", "CLIP text", "behind", {"text_model": "modernbert"}),
    "audio": Arm("the audio tower alone", "base", "both towers", "behind", {"scope": "audio"}),
    "mean": Arm("the mean of the frames", "base", "the global token", "", {"pooling": "mean"}),
    "noise": Arm("the token from noise", "base", "the token from the mean frame", "", {"token_start": "noise"}),
    "plain": Arm("no nested dims", "base", "nested dims", "", {"matryoshka_dims": FULL_WIDTH}),
    "mixed": Arm("labels and captions in one stage", changes={**_BY_TEMPLATE, "label_share": 0.5}),
    "stages": Arm("labels, then captions", "mixed", "both at once", stages=({**_BY_TEMPLATE, "label_share": 1.0}, {})),
    "whisper": Arm("Whisper's architecture from random weights", changes={"audio_model": "whisper", **_RANDOM}),
    "passt": Arm("PaSST", "whisper", "Whisper, both random", "", {"audio_model": "passt", **_RANDOM}),
    "htsat": Arm("HTS-AT", "whisper", "Whisper, both random", "behind", {"audio_model": "htsat", **_RANDOM}),
}
_WORDINGS = ("{}", "a {}", "This is a sound of {}.", "the sound of {}", "{} sound", "we hear {}")
TRAINING = {  # options that the paper does not speak of
    "bank": Arm("every training caption as a candidate", "base", "those of the batch", changes={"caption_bank": True}),
    "labels": Arm(
        *("labels in six wordings as 30 % of the texts", "base", "captions alone"),
        changes={"label_share": 0.3, "label_prompts": _WORDINGS},
    ),
    "captions": Arm("all captions of a clip as positives", "base", "one drawn", changes={"all_captions": True}),
    "average": Arm("the average of the weights, decay 0.95", "base", "the last ones", changes={"ema_decay": 0.95}),
    "heads": Arm("ten times the learning rate for heads, token and scale", "base", "one", changes={"head_rate": 10.0}),
    "mask": Arm("SpecAugment", "base", "no augmentation", changes={"spec_augment": True}),
    "degraded": Arm(
        *("gain, noise, rooms and equalization", "base", "no augmentation"),
        changes={"degraded_share": 0.3, "equalization": 1.6},
    ),
    "negatives": Arm(
        *("clips that share a caption as negatives", "base", "left out of them"),
        changes={"mask_false_negatives": False},
    ),
}
ALL = ARMS | TRAINING


def recipe(arm: str, rate: float, seed: int, options: argparse.Namespace, stage: dict) -> Recipe:
    """One stage of an arm."""
    changes = {"text_model": "clip"} | ALL[arm].changes | stage
    changes["text_model"] = str(options.towers / changes["text_model"])
    if changes.get("matryoshka_dims") == FULL_WIDTH:
        changes["matryoshka_dims"] = (options.projection_dim,)
    if factor := changes.pop("head_rate", 0.0):
        changes["head_learning_rate"] = factor * rate
    audio = changes.pop("audio_model", "")
    return Recipe(
        name=arm,
        data=str(options.clips),
        audio_model=str(random_tower(audio, seed, options) if audio else options.audio_model),
        projection_dim=options.projection_dim,
        learning_rate=rate,
        seed=seed,
        max_seconds=options.max_seconds,
        num_workers=0,
        output_dir=str(options.work / "runs"),
        **{
            "max_steps": options.steps // len(ALL[arm].stages),
            "batch_size": options.batch_size,
            "token_start": "mean_frame",
            "frame_pooling": 2,
            "cache_features": True,
            "attn_implementation": "sdpa" if audio in ("htsat", "passt") else "eager",  # faster on a CPU in bf16
            **changes,
        },
    )


def random_tower(name: str, seed: int, options: argparse.Namespace) -> Path:
    folder = options.work / f"towers-{seed}"
    if not folder.exists():
        set_seed(seed)
        with new_folder(folder) as unfinished:
            audio_towers.save_towers(unfinished, small=True)
    return folder / name


def short_clips(sounds: Path, out: Path, max_seconds: float, most: dict[str, int]) -> None:
    """Make an audiofolder of links to the clips of at most `max_seconds`, so many of a split as `most` says."""
    if out.exists():
        return
    with new_folder(out) as unfinished:
        for split in SPLITS:
            (unfinished / split).mkdir()
            with open(sounds / split / "metadata.csv", newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            rows = [row for row in rows if soundfile.info(sounds / split / row["file_name"]).duration <= max_seconds]
            count = min(len(rows), most.get(split, len(rows)))
            rows = [rows[number * len(rows) // count] for number in range(count)]  # evenly spread
            for row in rows:
                (unfinished / split / row["file_name"]).symlink_to((sounds / split / row["file_name"]).absolute())
            with open(unfinished / split / "metadata.csv", "w", newline="", encoding="utf-8") as file:
                lines = csv.DictWriter(file, rows[0])
                lines.writeheader()
                lines.writerows(rows)


def next_rate(tried: dict[float, float], middle: float) -> float | None:
    """The learning rate to try next: three around the middle, then the one beyond the best while that is at an end."""
    place = RATES.index(middle)
    for rate in (middle, RATES[place - 1], RATES[place + 1]):
        if rate not in tried:
            return rate
    best = RATES.index(max(tried, key=tried.get))
    beyond = [RATES[i] for i in (best - 1, best + 1) if 0 <= i < len(RATES) and RATES[i] not in tried]
    return beyond[0] if beyond and len(tried) < MOST_RATES else None
