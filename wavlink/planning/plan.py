"""What a recipe's training costs: parameters, steps, FLOPs, memory and hours, without a download or a file."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modeling_wavlink import WavLinkConfig
from wavlink.training.recipe_fields import Recipe

from .data import TrainingData, training_data
from .facts import CARDS, DEVICES, UTILIZATION
from .loss import Loss
from .model import Flops, Kept, Shapes, count_flops, count_kept, local_init, parameters, planned_config, shapes_of
from .speed import Speed, measure

_RESERVED = 1e9  # bytes of CUDA's context and cuBLAS's workspaces, roughly
_TOKENS_AT_MOST = 77  # CLIP's positions; longer captions are rare
_BYTES = 4  # of a weight, a gradient and each of Adam's two moments, which stay in fp32


def plan(
    recipe: Recipe,
    devices: Sequence[str] = (),
    clips: int = 0,
    seconds: float = 0.0,
    utilization: float = UTILIZATION,
) -> dict[str, Any]:
    """Plan a training.

    Args:
        recipe: from `load_recipe`.
        devices: of `DEVICES`; default: every card. "this" and "cpu" are measured with a few steps.
        clips: of an epoch, instead of those of the recipe's data.
        seconds: of a clip on average, likewise.
        utilization: share of a card's TFLOPS that the training reaches. A measured device needs no assumption.

    Returns:
        `recipe`, `model`, `parameters`, `data`, `steps`, `clips`, `flops`, `memory` and `devices`, as JSON has them.
        Memory is in GB (1e9 bytes), for the longest clips at once.

    Raises:
        ValueError: an unknown device, data of unknown size, or a tower whose config is not here.
    """
    _check(devices, clips, seconds, utilization)
    training = _counted(recipe, clips, seconds)
    rows = [_device(name, training, utilization) for name in devices or CARDS]
    return training.described() | {"devices": rows}


@dataclass(frozen=True)
class _Training:
    """A recipe's training, with what was counted of it.

    Attributes:
        recipe: what is to be trained.
        config: of its model.
        data: its clips.
        batch, chunk: clips of a step, and those that are embedded at once.
        shapes: of a clip of average length and its text.
        parameters: see `model.parameters`.
        flops: of a step.
        kept: for the backward pass, by the longest clips.
        memory: bytes at the peak by what they hold, in GB.
    """

    recipe: Recipe
    config: WavLinkConfig
    data: TrainingData
    batch: int
    chunk: int
    shapes: Shapes
    parameters: dict[str, int]
    flops: Flops
    kept: Kept
    memory: dict[str, float]

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.recipe.max_steps or self.recipe.epochs * (self.data.clips // self.batch)

    @property
    def before(self) -> float:
        """Operations outside of steps: the caption bank's, again after each epoch where the text tower learns."""
        epochs = self.data.clips // self.batch if self.recipe.text_learns else 0
        return self.flops.before * (1 + (self.steps - 1) // epochs if epochs else 1)

    def described(self) -> dict[str, Any]:
        """Return what does not depend on a device, as JSON has it."""
        recipe, data, flops = self.recipe, self.data, self.flops
        step = flops.step(self.batch, self.chunk)
        return {
            "recipe": recipe.name,
            "model": {"towers": _towers(recipe), "dims": self.config.projection_dim},
            "parameters": self.parameters,
            "data": {
                **{"origin": data.origin, "clips": data.clips, "seconds": data.seconds, "longest": data.longest},
                **{"padding": recipe.padding, "tokens": self.shapes.tokens, "caption_bank": data.bank},
            },
            "batch_size": self.batch,
            "micro_batch_size": self.chunk,
            "precision": recipe.mixed_precision,
            "steps": self.steps,
            "clips": self.steps * self.batch,
            "flops": {
                **{"forward_of_a_clip": flops.forward, "backward_of_a_clip": flops.backward},
                **{"caption_bank": self.before, "step": step, "total": self.before + self.steps * step},
            },
            "memory": self.memory,
        }


def _counted(recipe: Recipe, clips: int, seconds: float) -> _Training:
    """Count a training's clips, parameters, FLOPs and memory."""
    data = training_data(recipe, clips, seconds)
    config = _with_vocabulary(planned_config(recipe), recipe, data)
    batch = min(recipe.batch_size, data.clips)
    if batch < 2:
        raise ValueError(f"a contrastive loss needs at least two clips in a batch, got a data set of {data.clips}")
    chunk = min(recipe.micro_batch_size or batch, batch)
    counts = parameters(config, recipe)
    shapes = shapes_of(config, recipe, data.seconds, data.tokens)
    flops = count_flops(config, recipe, shapes, data.bank)
    longest = shapes_of(config, recipe, data.longest, max(data.tokens, _TOKENS_AT_MOST))
    kept = count_kept(config, recipe, longest)
    memory = _memory(recipe, counts, kept, flops.loss, longest, batch)
    return _Training(recipe, config, data, batch, chunk, shapes, counts, flops, kept, memory)


def _device(name: str, training: _Training, utilization: float) -> dict[str, Any]:
    """The speed of a device, whether the training fits in its memory, and its seconds and hours there."""
    recipe, batch = training.recipe, training.batch
    if name in CARDS:
        row, update = _card(name, recipe, utilization), 0.0
    else:
        speed = measure(training.config, recipe, training.shapes, "cpu" if name == "cpu" else _accelerator())
        row, update = _measured(name, speed), speed.update
    row |= _fits(row["memory"], training)
    # Where only smaller pieces fit, these are what a step computes.
    pieces = row["largest_micro_batch_size"] if row["fits"] is False else training.chunk
    flops, rate = training.flops, 1e12 * row["tflops"]
    took = flops.step(batch, pieces) / rate + update * training.parameters["trained"]
    hours = (training.before / rate + training.steps * took) / 3600
    return row | {"step_seconds": took, "hours": hours, "clips_per_second": batch / took}


def _check(devices: Sequence[str], clips: int, seconds: float, utilization: float) -> None:
    for name in devices:
        if name not in DEVICES:
            raise ValueError(f"no device {name!r} is known; the devices are {', '.join(DEVICES)}")
    if clips < 0 or not 0 <= seconds < math.inf:
        raise ValueError(f"the clips of a plan and their seconds must be above 0, got {clips} and {seconds:g}")
    if not 0 < utilization <= 1:
        raise ValueError(f"the utilization of a card must be above 0 and at most 1, got {utilization:g}")


def _towers(recipe: Recipe) -> list[str]:
    """The models to start from, none where both towers are new; of a model that is not here, its towers."""
    towers = recipe.audio_model and not local_init(recipe)
    names = [recipe.audio_model, recipe.text_model] if towers else [recipe.init]
    return [name for name in names if name]


def _with_vocabulary(config: WavLinkConfig, recipe: Recipe, data: TrainingData) -> WavLinkConfig:
    """The config; a new text tower has as many tokens as its captions' tokenizer, where they are here."""
    if not (recipe.init or recipe.audio_model) and data.captions and "vocab_size" not in recipe.text_config:
        from wavlink.training.factory import subword_tokenizer

        config.text_config.vocab_size = len(subword_tokenizer(data.captions, 64))
    return config


def _memory(
    recipe: Recipe, counts: dict[str, int], kept: Kept, loss: Loss, longest: Shapes, batch: int
) -> dict[str, float]:
    """Bytes at the peak, in GB: what stays, and the activations of one chunk with the logits of the loss.

    With cached gradients the loss is done before a chunk's activations arise, so that the larger of both counts.
    """
    chunk = min(recipe.micro_batch_size or batch, batch)
    activations, logits = kept.of(chunk), loss.memory(batch)
    parts = {
        "weights": _BYTES * counts["total"],
        "gradients": _BYTES * counts["trained"],
        "optimizer": 2 * _BYTES * counts["trained"],
        "moving_average": _BYTES * counts["trained"] if recipe.ema_decay else 0.0,
        "caption_bank": loss.bank,
        "inputs": 4.0 * batch * math.prod(longest.features),
        "activations": activations,
        "logits": logits if chunk == batch else max(logits - activations, 0.0),
        "reserved": _RESERVED,
    }
    return {name: value / 1e9 for name, value in (parts | {"total": sum(parts.values())}).items()}


def _card(name: str, recipe: Recipe, utilization: float) -> dict[str, Any]:
    """A card's TFLOPS in the recipe's precision: the vendor's, and what is assumed to be reached."""
    card = CARDS[name]
    peak = card.fp32 if recipe.mixed_precision == "no" else card.bf16
    row = {"device": name, "name": f"NVIDIA {name.upper()}", "measured": False, "memory": card.memory}
    return row | {"peak_tflops": peak, "utilization": utilization, "tflops": utilization * peak}


def _measured(name: str, speed: Speed) -> dict[str, Any]:
    """A device of this machine."""
    row = {"device": name, "name": speed.name, "measured": True, "memory": _memory_of(speed.device)}
    return row | {"tflops": speed.flops_per_second / 1e12, "measured_clips": speed.clips}


def _fits(available: float | None, training: _Training) -> dict[str, Any]:
    """Whether the plan fits, and the most clips at once that would; 0 where not even one does."""
    if available is None:
        return {"fits": None, "largest_micro_batch_size": None}
    memory, kept, batch = training.memory, training.kept, training.batch
    rest = 1e9 * (available - memory["total"] + memory["activations"] + memory["logits"])
    logits = training.flops.loss.memory(batch)
    if kept.of(batch) + logits <= rest:
        largest = batch
    elif logits > rest or not kept.clip:
        largest = 0
    else:
        largest = max(min(batch - 1, int((rest - kept.fixed) / kept.clip)), 0)
    return {"fits": memory["total"] <= available, "largest_micro_batch_size": largest}


def _accelerator() -> str:
    """This machine's accelerator, or else its CPU."""
    device = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if device is None else device.type


def _memory_of(device: str) -> float | None:
    """GB of a device of this machine, None where they are not known."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory / 1e9
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def table(planned: dict[str, Any]) -> str:
    """Return a plan as lines for a terminal."""
    model, data, memory, flops = (planned[name] for name in ("model", "data", "memory", "flops"))
    counts = planned["parameters"]
    parts = {name.replace("_", " "): gb for name, gb in memory.items() if gb and name != "total"}
    at_once = f"{planned['micro_batch_size']} clips of {data['longest']:.3g} s"
    at_once += ", padded to 30 s," if data["padding"] == "max_length" else ""
    bank = f"{data['caption_bank']:,} captions, embedded with {flops['caption_bank']:.3g} FLOPs outside of steps"
    lines = {
        "model": f"{' + '.join(model['towers']) or 'new towers'}, {model['dims']} dims",
        "parameters": f"{counts['total']:,}, of which {counts['trained']:,} learn",
        "data": data["origin"],
        "epoch": f"{data['clips']:,} clips, {data['seconds']:.1f} s on average, texts of {data['tokens']} tokens",
        **({"bank": bank} if data["caption_bank"] else {}),
        "training": f"{planned['steps']:,} steps of {planned['batch_size']:,} clips, {planned['clips']:,} in all",
        "FLOPs": f"{flops['step']:.3g} a step, {flops['total']:.3g} in all",
        "memory": f"{memory['total']:.1f} GB with {at_once} at once",
        "": f"({' + '.join(f'{name} {gb:.2f}' for name, gb in parts.items())})",
    }
    rows = [f"plan of {planned['recipe']}: nothing is downloaded, trained or written", ""]
    rows += [f"{name:11}{text}" for name, text in lines.items()]
    rows += ["", f"{'device':10}{'TFLOPS':>9}{'GB':>7}  {'fits':24}{'s a step':>10}{'hours':>10}{'clips/s':>12}"]
    rows += [_device_line(row) for row in planned["devices"]]
    return "\n".join([*rows, "", *_assumptions(planned)])


def _device_line(row: dict[str, Any]) -> str:
    largest = row["largest_micro_batch_size"]
    fits = {True: "yes", None: "not known"}.get(row["fits"])
    fits = fits or (f"with --micro_batch_size {largest}" if largest else "no")
    memory = "" if row["memory"] is None else f"{row['memory']:.0f}"
    clips = f"{row['clips_per_second']:,.0f}" if row["clips_per_second"] >= 10 else f"{row['clips_per_second']:.2f}"
    return (
        f"{row['device']:10}{row['tflops']:9.4g}{memory:>7}  {fits:24}{row['step_seconds']:10.3g}{row['hours']:10.3g}"
        f"{clips:>12}"
    )


def _assumptions(planned: dict[str, Any]) -> list[str]:
    """What the figures are, in words."""
    lines = [
        f"{row['device']}: {row['name']}, measured on {row['measured_clips']} clips at once"
        for row in planned["devices"]
        if row["measured"]
    ]
    cards = [row for row in planned["devices"] if not row["measured"]]
    if cards:
        share = f"{100 * cards[0]['utilization']:g} %"
        lines.append(f"cards: {share} of the vendor's peak in {planned['precision']}, which is assumed, not measured")
    return [*lines, "hours: of the towers alone, where decoding keeps up with the clips per second"]
