"""The towers as graphs: what is exported, with which axes, and on which batches the result must agree with torch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedModel, ProcessorMixin

from modeling_wavlink.config_checks_wavlink import frame_pooling
from modeling_wavlink.configuration_wavlink import text_max_length

from .sessions import INPUTS
from .sessions import Tower as Session

TOLERANCE = 1e-4  # of a number in a unit vector, between a backend and torch
# Batches on which the backend and torch must agree: samples of clips (1, 3, 34, 77 and 3000 frames), words of texts.
# The graph is traced with the first of each.
_CLIPS = ([12320, 5300, 400, 12320], [1], [400, 5300], [480000, 160])
_WORDS = ([3, 12], [1], [7, 1, 7], [500])
_FRAMES, _TOKENS = 77, 16  # of the example that a graph is traced with, where there is no processor


class Tower(nn.Module):
    """`get_audio_features` or `get_text_features` as a graph: inputs and mask in, L2-normalised `[B, D]` out."""

    def __init__(self, model: PreTrainedModel, name: str):
        super().__init__()
        self.model = model
        self.name = name

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed a batch, `[B, D]`."""
        return getattr(self.model, f"get_{self.name}_features")(inputs, mask).pooler_output


def exportable(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model in the form that is exported: in fp32 on the CPU, in place.

    Raises:
        ValueError: a model that cannot be exported.
    """
    if model.config.model_type != "wavlink":
        raise ValueError(f"only a WavLink is exported, and this is a {model.config.model_type!r} model")
    if model.config.audio_config.model_type != "whisper":
        raise ValueError(
            "the audio tower must be a Whisper: HTS-AT and PaSST pick a clip's windows by their mask, and "
            "torch.export cannot follow that"
        )
    model = model.cpu().float().eval()
    model.set_attn_implementation("sdpa")
    return model


def dynamic_axes(name: str, config: Any) -> tuple[dict, dict]:
    """Return the axes of a tower's inputs and of its mask that vary: the batch, and frames or tokens."""
    batch = Dim("batch")
    if name == "text":
        length = Dim("tokens", min=2, max=text_max_length(config.text_config))
        return {0: batch, 1: length}, {0: batch, 1: length}
    length = Dim("frames", min=_least_frames(config), max=3000)
    return {0: batch, 2: length}, {0: batch, 1: length}


def example(name: str, config: Any) -> tuple[Tensor, Tensor]:
    """Return two clips or texts of different lengths, which a graph is traced with."""
    if name == "text":
        limit = min(_TOKENS, text_max_length(config.text_config) or _TOKENS)
        values = torch.randint(
            0, config.text_config.vocab_size, (2, limit), generator=torch.Generator().manual_seed(0)
        )
    else:
        shape = (2, config.audio_config.num_mel_bins, max(_FRAMES, _least_frames(config)))
        values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(values.shape[::2] if values.dim() == 3 else values.shape, dtype=torch.int64)
    mask[1, mask.shape[1] // 2 :] = 0
    return values, mask


def _least_frames(config: Any) -> int:
    """Return the frames that leave two positions after the convolutions and each pooling, as torch.export needs.

    The graphs take fewer as well.
    """
    factor, layers = frame_pooling(config.audio_config)
    return 2 * factor ** len(layers) + 1


def sentence(words: int) -> str:
    """Return a text of so many words."""
    from processing.datasets.synthetic import KINDS  # needs packages that embedding does not

    vocabulary = " ".join(caption for kind in KINDS.values() for caption in kind.captions[1:]).split()
    return " ".join((vocabulary * (words // len(vocabulary) + 1))[:words])


def noises() -> list[list[np.ndarray]]:
    """Return the batches of clips `[samples]` on which a backend must agree with torch: noise."""
    rng = np.random.default_rng(0)
    return [[rng.normal(scale=0.1, size=samples).astype(np.float32) for samples in batch] for batch in _CLIPS]


def batches(name: str, processor: ProcessorMixin) -> list[dict]:
    """Return the batches on which a backend must agree with torch, as torch tensors."""
    if name == "text":
        return [processor(text=[sentence(words) for words in batch], return_tensors="pt") for batch in _WORDS]
    clips = noises()
    options = {"sampling_rate": processor.feature_extractor.sampling_rate, "return_tensors": "pt"}
    native = [processor(audio=batch, padding="longest", **options) for batch in clips]
    return [*native, processor(audio=clips[1], padding="max_length", **options)]


@torch.no_grad()
def agreement(
    tower: Tower, run: Callable[[dict], np.ndarray] | Session, batches: Sequence[dict], library: str
) -> float:
    """Return the largest difference of a number to torch.

    Args:
        run: embeds a batch.
        library: its name, for errors.

    Raises:
        ValueError: it is over `TOLERANCE`, or vectors have another shape.
    """
    names, differences = INPUTS[tower.name], []
    for batch in batches:
        expected = tower(batch[names[0]], batch.get(names[1])).numpy()
        result = run(batch)
        if result.shape != expected.shape:
            raise ValueError(f"the {tower.name} tower gives {result.shape} in {library}, not {expected.shape}")
        differences.append(float(np.abs(result - expected).max()))
    worst = max(differences)
    if not worst <= TOLERANCE or np.isnan(differences).any():
        raise ValueError(f"the {tower.name} vectors in {library} differ from torch's by up to {differences}")
    return worst


def export_program(tower: Tower) -> torch.export.ExportedProgram:
    """Trace a tower for every batch and length.

    Raises:
        ValueError: torch cannot.
    """
    config = tower.model.config
    try:
        with torch.no_grad():
            axes = dynamic_axes(tower.name, config)
            return torch.export.export(tower, example(tower.name, config), dynamic_shapes=axes)
    except RuntimeError as error:
        raise ValueError(f"the {tower.name} tower cannot be exported: {error}") from error


def write_onnx(tower: Tower, path: Path, inputs: tuple[Tensor, Tensor], opset: int | None = None) -> int:
    """Write a tower as ONNX, weights over 2 GB beside it, and return its opset.

    Raises:
        ValueError: torch cannot.
    """
    names = INPUTS[tower.name]
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                tower,
                inputs,
                dynamo=True,
                dynamic_shapes=dynamic_axes(tower.name, tower.model.config),
                input_names=names,
                output_names=[f"{tower.name}_embeds"],
                opset_version=opset,
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        raise ValueError(f"the {tower.name} tower cannot be exported: {error}") from error
    program.save(path)
    return program.model.opset_imports[""]
