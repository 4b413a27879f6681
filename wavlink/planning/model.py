"""A recipe's model without weights: parameters, FLOPs and memory, counted by torch on tensors without data."""

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig

from modeling_wavlink import WavLinkConfig, WavLinkModel
from modeling_wavlink.configuration_wavlink import text_max_length
from modeling_wavlink.passt_configuration_wavlink import patches
from wavlink.compat import fake_tensors
from wavlink.temporary_paths import temporary_folder
from wavlink.training.factory import FirstStageMissing, config_of, new_extractor, prepared, start_of
from wavlink.training.recipe_fields import Recipe

from .loss import Loss, loss_of
from .towers import TOWERS


@dataclass(frozen=True)
class Shapes:
    """Shapes of one clip's features, and tokens of its text."""

    features: tuple[int, ...]
    mask: tuple[int, ...] | None  # None: clips are padded to 30 s, without a mask
    tokens: int

    def batch(self, clips: int, device: str, masks: bool = True) -> dict[str, torch.Tensor]:
        """Return a batch of `clips` clips and texts, whose values mean nothing."""
        batch = {
            "input_features": torch.zeros(clips, *self.features, device=device),
            "input_ids": torch.ones(clips, self.tokens, dtype=torch.long, device=device),
        }
        if masks and self.mask:
            batch["input_features_mask"] = torch.ones(clips, *self.mask, dtype=torch.long, device=device)
        if masks:
            batch["attention_mask"] = torch.ones(clips, self.tokens, dtype=torch.long, device=device)
        return batch


def planned_config(recipe: Recipe) -> WavLinkConfig:
    """Return the config of a recipe's model from built-in facts, local folders and the Hub's cache alone.

    Raises:
        ValueError: the config of a tower, or of `init`, is not here.
    """
    if folder := local_init(recipe):
        return config_of(dataclasses.replace(recipe, init=folder))
    if not recipe.audio_model:
        if recipe.init:
            raise ValueError(_missing(recipe.init, "--init"))
        return config_of(recipe)
    with temporary_folder() as root:
        towers = {}
        for field in ("audio_model", "text_model"):
            name = getattr(recipe, field)
            towers[field] = _local(name) or _written(name, root / field, f"--{field}")
        return config_of(dataclasses.replace(recipe, init="", **towers))  # a second stage has those of its first


def local_init(recipe: Recipe) -> str:
    """Return the folder of the model that a recipe starts from, "" if it is not on this machine.

    Raises:
        ValueError: a bare name that is neither a bundled model nor a local path.
    """
    try:
        return _local(start_of(recipe)) if recipe.init else ""
    except FirstStageMissing:
        return ""


def _local(name: str) -> str:
    """The folder of a model that is on this machine, "" for others."""
    if Path(name).is_dir():
        return name
    if name in TOWERS or name.count("/") > 1:
        return ""
    try:
        cached = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no Hub id
        return ""
    return str(Path(cached).parent) if isinstance(cached, str) else ""


def _written(name: str, folder: Path, option: str) -> str:
    """A folder with the built-in config of a tower, so that it is read like every other."""
    if name not in TOWERS:
        raise ValueError(_missing(name, option))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TOWERS[name]), encoding="utf-8")
    return str(folder)


def _missing(name: str, option: str) -> str:
    return (
        f"a plan downloads nothing, and the config of {name} is not here: give {option} with a folder that holds its "
        f"config.json, or one of {', '.join(TOWERS)}"
    )


def shapes_of(config: WavLinkConfig, recipe: Recipe, seconds: float, tokens: int) -> Shapes:
    """Return the shapes that the feature extractor gives a clip of `seconds`."""
    extractor = new_extractor(config.audio_config, recipe.padding)
    silence = np.zeros(max(round(seconds * extractor.sampling_rate), 1), np.float32)
    inputs = extractor(silence, sampling_rate=extractor.sampling_rate, return_tensors="np")
    limit = text_max_length(config.text_config) or tokens
    features, mask = inputs["input_features"], inputs.get("input_features_mask")
    return Shapes(features.shape[1:], None if mask is None else mask.shape[1:], min(tokens, limit))


def parameters(config: WavLinkConfig, recipe: Recipe) -> dict[str, int]:
    """Return the parameters of the model in all, and those that the recipe trains."""
    counts = [(p.numel(), p.requires_grad) for p in _model(config, recipe, "meta").parameters()]
    return {"total": sum(n for n, _ in counts), "trained": sum(n for n, trained in counts if trained)}


def _model(config: WavLinkConfig, recipe: Recipe, device: str) -> WavLinkModel:
    with torch.device(device):
        return prepared(WavLinkModel(config), recipe).train()


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, a multiplication and an addition being two."""

    forward: float  # of a clip and its text
    backward: float  # likewise, with what checkpointing computes again
    text: float  # of a text, forward alone
    loss: Loss

    def step(self, clips: int, chunk: int) -> float:
        """Return those of an optimizer step.

        Cached gradients embed every chunk twice (arXiv 2101.06983).
        """
        forwards = 2 if 0 < chunk < clips else 1
        return clips * (forwards * self.forward + self.backward) + self.loss.flops(clips)

    @property
    def before(self) -> float:
        """Those before the first step: the captions of the bank, each embedded once."""
        return self.loss.captions * self.text


def count_flops(config: WavLinkConfig, recipe: Recipe, shapes: Shapes, captions: int = 0) -> Flops:
    """Count the operations of the matrix products, convolutions and attention of a step.

    `torch.utils.flop_counter` counts them while the real model runs forward and backward on the meta device, where
    tensors have shapes alone. For a Transformer layer of width d and feed-forward width f on L positions the forward
    pass is `L (8 d^2 + 4 d f) + 4 L^2 d` (arXiv 2001.08361, section 2.1, with both products of attention), and the
    backward pass twice that, as far as everything learns. Element-wise operations are not counted.

    Args:
        config: of the model.
        recipe: what of it learns.
        shapes: of a clip and its text.
        captions: of the recipe's caption bank, if it has one.
    """
    loss = loss_of(config, recipe, captions)
    recipe = dataclasses.replace(recipe, attn_implementation="eager", mixed_precision="no")
    from_bank = recipe.caption_bank and not (recipe.all_captions or recipe.text_learns)
    try:
        counts = _passes(_model(config, recipe, "meta"), shapes.batch(1, "meta", masks=False), from_bank)
    except RuntimeError:  # such as HTS-AT and PaSST, which choose windows by their mask's values
        batch = shapes.batch(1, "cpu")
        counts = _by_depth(config, lambda config: _passes(_model(config, recipe, "cpu"), batch, from_bank))
    return Flops(*counts, loss)


def _by_depth(config: WavLinkConfig, count: Callable[[WavLinkConfig], Sequence[float]]) -> Sequence[float]:
    """Count what real tensors must show; PaSST's layers are alike, so one and two of them show what all of them do."""
    if config.audio_config.model_type != "passt":
        return count(config)
    counts = []
    for layers in (1, 2):
        shallow = copy.deepcopy(config)
        shallow.audio_config.num_hidden_layers = layers
        counts.append(count(shallow))
    more = config.audio_config.num_hidden_layers - 1
    return [one + more * (two - one) for one, two in zip(*counts, strict=True)]


def _passes(model: WavLinkModel, batch: dict[str, torch.Tensor], from_bank: bool) -> Sequence[float]:
    """Count forward, backward, and the forward of a text; with `from_bank` a caption bank has the batch's texts."""
    texts = {name: value for name, value in batch.items() if not name.startswith("input_features")}
    inputs = batch
    if from_bank:
        pooled = torch.zeros(len(batch["input_ids"]), model.text_projection.in_features, device=model.device)
        inputs = {name: value for name, value in batch.items() if name not in texts} | {"text_pooled": pooled}
    with FlopCounterMode(display=False) as forward:
        output = model(**inputs, return_loss=False)
    with FlopCounterMode(display=False) as backward:
        (output.audio_embeds.sum() + output.text_embeds.sum()).backward()
    with FlopCounterMode(display=False) as text, torch.no_grad():
        model.get_text_features(**texts)
    return [counter.get_total_flops() for counter in (forward, backward, text)]


@dataclass(frozen=True)
class Kept:
    """Bytes that the forward pass keeps for the backward pass."""

    fixed: float  # such as bf16 copies of the weights
    clip: float

    def of(self, clips: int) -> float:
        """Return the bytes for so many clips at once."""
        return self.fixed + clips * self.clip


def count_kept(config: WavLinkConfig, recipe: Recipe, shapes: Shapes) -> Kept:
    """Count the bytes of the tensors that autograd saves, those of parameters left out.

    The model runs forward on tensors without data, with the recipe's precision and attention. FlashAttention keeps
    what torch's own kernels do.
    """
    checkpointed = recipe.gradient_checkpointing
    if recipe.attn_implementation != "eager":
        recipe = dataclasses.replace(recipe, attn_implementation="sdpa")
    recipe = dataclasses.replace(recipe, gradient_checkpointing=False)
    try:
        with fake_tensors() as device:
            one, two = _both(_model(config, recipe, device), recipe, shapes, device, masks=device != "meta")
    except RuntimeError:
        one, two = _by_depth(
            config, lambda config: _both(_model(config, recipe, "cpu"), recipe, shapes, "cpu", masks=True)
        )
    kept = Kept(max(2 * one - two, 0.0), two - one)
    if checkpointed:
        kept = dataclasses.replace(kept, clip=_checkpointed(_model(config, recipe, "meta"), shapes, kept.clip))
    return kept


def _both(model: WavLinkModel, recipe: Recipe, shapes: Shapes, device: str, masks: bool) -> Sequence[float]:
    """The bytes for one clip and for two."""
    return [_saved(model, recipe, shapes.batch(clips, device, masks)) for clips in (1, 2)]


def _saved(model: WavLinkModel, recipe: Recipe, batch: dict[str, torch.Tensor]) -> float:
    own = {id(parameter.untyped_storage()) for parameter in model.parameters()}
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in own:
            storages[id(storage)] = storage  # alive, so that its id stays its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _autocast(recipe, batch):
        output = model(**batch, return_loss=False)
    del output
    return float(sum(storage.nbytes() for storage in storages.values()))


@contextmanager
def _autocast(recipe: Recipe, batch: dict[str, torch.Tensor]) -> Iterator[None]:
    """The recipe's precision as on a GPU; fp16 and bf16 have the same size. The meta device has none."""
    device = batch["input_features"].device.type
    if device == "meta":
        yield
    else:
        with torch.autocast(device, torch.bfloat16, enabled=recipe.mixed_precision != "no"):
            yield


def _checkpointed(model: WavLinkModel, shapes: Shapes, whole: float) -> float:
    """A clip's bytes where each layer keeps its input, in fp32, and the layer in work is computed again.

    A tower without a gradient keeps nothing.
    """
    audio, text = model.config.audio_config, model.config.text_config
    layers, states = [], 0.0
    for tower, config, positions in (
        (model.audio_model, audio, _positions(audio, shapes.features[-1])),
        (model.text_model, text, shapes.tokens),
    ):
        if any(parameter.requires_grad for parameter in tower.parameters()):
            layers.append(config.num_hidden_layers)
            states += 4.0 * config.num_hidden_layers * positions * config.hidden_size
    return min(states + whole / min(layers, default=1), whole)


def _positions(audio: PretrainedConfig, frames: int) -> int:
    """The positions of a clip in the layers of a Whisper, or of a PaSST, whose windows have two tokens each."""
    if audio.model_type != "passt":
        return -(-frames // 2)
    rows = patches(audio.num_mel_bins, audio.patch_size, audio.frequency_stride)
    columns = patches(min(frames, audio.window_frames), audio.patch_size, audio.time_stride)
    return -(-frames // audio.window_frames) * (2 + rows * columns)
