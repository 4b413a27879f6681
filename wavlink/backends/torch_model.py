"""Models of an `Embedder` in torch: loaded, moved to their device, and run."""

import copy

import torch
from torch.nn import functional as F
from transformers import BatchFeature

from wavlink import defaults
from wavlink.loading import Model, Processor, load_for_evaluation

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


def on_device(model: Model, device: str, dtype: str, fast_kernels: bool) -> Model:
    """Return a model for inference, and on a CPU with fast kernels if `fast_kernels`."""
    model = model.to(device, DTYPES[dtype]).eval()
    if fast_kernels and torch.device(device).type == "cpu" and hasattr(model, "audio_model"):
        pack_layers(model.audio_model)
        pack_layers(model.text_model)
    return model


def vectors_of(model: Model, inputs: dict, method: str, keeps_graph: bool):
    """Run a model on a batch: `[B, dims]` fp32.

    Args:
        method: of the model.
        keeps_graph: whether the model is trained on afterwards, which tensors of inference mode do not allow.
    """
    inputs = BatchFeature(dict(inputs)).to(model.device, dtype=model.dtype)  # casts floats alone
    with torch.no_grad() if keeps_graph else torch.inference_mode():
        return F.normalize(getattr(model, method)(**inputs).pooler_output.float(), dim=-1).cpu().numpy()
