"""Models of an `Embedder` in torch: loaded, moved to their device, and run."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch.nn import functional as F
from transformers import BatchFeature

from wavlink import defaults
from wavlink.loading import Model, Processor, load_for_evaluation
from wavlink.mapped_weights import WeightsFile

from .torch_cpu import pack_layers

DTYPES = {name: getattr(torch, name) for name in defaults.DTYPES}


def load(
    model: str | Model, processor: Processor | None, revision: str | None, local_files_only: bool
) -> tuple[Model, Processor]:
    """Load a model and its processor, or copy a loaded model."""
    if isinstance(model, str):
        return load_for_evaluation(model, revision=revision, local_files_only=local_files_only)
    assert processor is not None
    return copy.deepcopy(model), processor


def on_device(
    model: Model, device: str, dtype: str, fast_kernels: bool, weights: WeightsFile
) -> tuple[Model, Callable[[], None] | None]:
    """Return a model for inference, and what packs its text tower; None if nothing does.

    With `fast_kernels`, on a CPU, its audio tower is packed. Whoever embeds only sounds needs no memory for the
    weights of the text tower.

    Args:
        weights: the file that the model was loaded from.
    """
    weights.map_again(model)  # what was read to check and to hash the weights
    model = model.to(device, DTYPES[dtype]).eval()
    if not (fast_kernels and torch.device(device).type == "cpu" and hasattr(model, "audio_model")):
        return model, None
    _pack(model, "audio_model", weights)
    return model, partial(_pack, model, "text_model", weights)


def _pack(model: Model, tower: str, weights: WeightsFile) -> None:
    pack_layers(getattr(model, tower))
    weights.map_again(model)  # what was read to pack them


def own_dtype(model: Model) -> torch.autocast:
    """Let a model compute in its own dtype, also within a caller's autocast, which packed layers do not take."""
    return torch.autocast(model.device.type, enabled=False)


def vectors_of(model: Model, inputs: dict, method: str, keeps_graph: bool):
    """Run a model on a batch: `[B, dims]` fp32.

    Args:
        method: of the model.
        keeps_graph: whether the model is trained on afterwards, which tensors of inference mode do not allow.
    """
    inputs = BatchFeature(dict(inputs)).to(model.device, dtype=model.dtype)  # casts floats alone
    dtype = nullcontext() if keeps_graph else own_dtype(model)
    with dtype, torch.no_grad() if keeps_graph else torch.inference_mode():
        return F.normalize(getattr(model, method)(**inputs).pooler_output.float(), dim=-1).cpu().numpy()
