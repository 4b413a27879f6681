"""The speed of this machine: steps of a recipe's towers with random weights, on a few clips."""

import copy
import dataclasses
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from modeling_wavlink import WavLinkConfig, WavLinkModel
from wavlink.training.factory import prepared
from wavlink.training.finetuning import parameter_groups
from wavlink.training.recipe_fields import Recipe

from .model import Shapes, count_flops

_LAYERS = 4  # of a tower that are measured; the others are like them
_REPEATS = 3
_OPERATIONS = {"cpu": 1e11}  # of a measured forward and backward pass, at most, beside those of two clips
_OPERATIONS_ELSEWHERE = 2e13


@dataclass(frozen=True)
class Speed:
    """Measured times, the shortest of some steps."""

    device: str
    name: str
    flops_per_second: float  # forward and backward
    update: float  # seconds of clipping and AdamW, by trained parameter
    clips: int  # that were measured at once


def measure(
    config: WavLinkConfig,
    recipe: Recipe,
    shapes: Shapes,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Measure the towers' first layers on `device`, at the plan's length and precision.

    Args:
        config: of the model.
        recipe: what of it learns, and its precision.
        shapes: of a clip and its text.
        device: such as "cpu" or "cuda".
        clock: returns seconds.
    """
    config = _shallow(config)
    flops = count_flops(config, recipe, shapes)
    budget = _OPERATIONS.get(torch.device(device).type, _OPERATIONS_ELSEWHERE)
    chunk = min(recipe.micro_batch_size or recipe.batch_size, recipe.batch_size)
    clips = max(2, min(chunk, int(budget / (flops.forward + flops.backward))))
    with torch.device(device):
        model = prepared(WavLinkModel(config), _runnable(recipe)).train()
    groups = parameter_groups(model, recipe.weight_decay, recipe.head_learning_rate)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    batch = shapes.batch(clips, device)
    learn, update = [], []
    for _ in range(1 + _REPEATS):  # the first warms up
        learn.append(_seconds(lambda: _learn(model, recipe, batch), device, clock))
        update.append(_seconds(lambda: _update(model, recipe, optimizer), device, clock))
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    rate = clips * (flops.forward + flops.backward) / min(learn[1:])
    return Speed(device, _name(device), rate, min(update[1:]) / trained, clips)


def _shallow(config: WavLinkConfig) -> WavLinkConfig:
    """The config with at most `_LAYERS` layers in each tower; HTS-AT's stages differ, so it keeps all."""
    config = copy.deepcopy(config)
    audio, text = config.audio_config, config.text_config
    if audio.model_type != "clap_audio_model":
        audio.num_hidden_layers = min(audio.num_hidden_layers, _LAYERS)
    if audio.model_type == "whisper":
        audio.encoder_layers = audio.num_hidden_layers
    text.num_hidden_layers = min(text.num_hidden_layers, _LAYERS)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    return config


def _runnable(recipe: Recipe) -> Recipe:
    """The recipe with attention that every machine has."""
    flash = recipe.attn_implementation == "flash_attention_2"
    return dataclasses.replace(recipe, attn_implementation="sdpa") if flash else recipe


def _learn(model: WavLinkModel, recipe: Recipe, batch: dict[str, torch.Tensor]) -> None:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.mixed_precision)
    with torch.autocast(batch["input_ids"].device.type, dtype, enabled=dtype is not None):
        loss = model(**batch, return_loss=True).loss
    loss.backward()


def _update(model: WavLinkModel, recipe: Recipe, optimizer: torch.optim.Optimizer) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def _seconds(work: Callable[[], None], device: str, clock: Callable[[], float]) -> float:
    began = clock()
    work()
    if device != "cpu":
        torch.accelerator.synchronize()
    return clock() - began


def _name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name()
    return f"this machine's {device.upper()} ({platform.machine()}, {torch.get_num_threads()} threads)"
