"""A WavLink whose towers run in OpenVINO or onnxruntime, used like the model that it was made from."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from wavlink.bundled_models import name_of
from wavlink.installing import install_hint
from wavlink.loading import parameter_count, revision

from .choice import how_to_export
from .export_checks import refuse_unfit
from .exported import converted_folder, exported_folder, missing_packages, model_identity
from .graphs import exportable
from .sessions import INPUTS, Tower
from .standalone import open_towers


class CompiledModel(nn.Module):
    """A model for inference on the CPU. It has the config and the scale of the WavLink, but not its weights.

    Args:
        model: that the towers were made from.
        towers: `audio` and `text`.
        backend, precision: of the towers, see `Embedder`.

    Attributes:
        converted: the folder of its conversion in the cache; None for an export.
    """

    converted: Path | None = None

    def __init__(self, model: PreTrainedModel, towers: dict[str, Tower], backend: str, precision: str):
        super().__init__()
        self.config, self.name_or_path = model.config, getattr(model, "name_or_path", "")
        self.towers, self.backend, self.precision = towers, backend, precision
        self.hub_commit = getattr(model, "hub_commit", None)
        self.source_revision, self.source_parameters = revision(model), parameter_count(model)
        if (seed := getattr(model, "control_seed", None)) is not None:
            self.control_seed = seed
        self.logit_scale = nn.Parameter(model.logit_scale.detach().clone(), requires_grad=False)
        self.logit_bias = nn.Parameter(model.logit_bias.detach().clone(), requires_grad=False)

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return self.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """That of inputs and vectors, fp32."""
        return self.logit_scale.dtype

    @property
    def scale(self) -> Tensor:
        """Factor of the logits, at most `logit_scale_max`."""
        return self.logit_scale.exp().clamp(max=self.config.logit_scale_max)

    def get_audio_features(
        self, input_features: Tensor, input_features_mask: Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """Embed clips; arguments and `pooler_output` are `WavLinkModel`'s."""
        return self._features("audio", input_features, input_features_mask)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any):
        """Embed texts; arguments and `pooler_output` are `WavLinkModel`'s."""
        return self._features("text", input_ids, attention_mask)

    def _features(self, name: str, values: Tensor, mask: Tensor | None) -> BaseModelOutputWithPooling:
        inputs = dict(zip(INPUTS[name], (values, mask), strict=True))
        arrays: dict[str, np.ndarray] = {key: value.numpy() for key, value in inputs.items() if value is not None}
        refuse_unfit(name, arrays[INPUTS[name][0]], self.config)
        return BaseModelOutputWithPooling(pooler_output=torch.from_numpy(self.towers[name](arrays)))


def compile_model(
    model: PreTrainedModel, backend: str, precision: str, source: str = "", local_files_only: bool = False
) -> CompiledModel:
    """Return a model in another backend: by the export that it carries, else converted, which the cache keeps.

    Args:
        model: a WavLink with a Whisper; it becomes fp32 on the CPU.
        backend, precision: as `choice.choose` returns them.
        source: the folder or Hub id that it was loaded from; "" if it was not.
        local_files_only: whether a Hub id is looked up in the local cache alone.

    Raises:
        ValueError: a model that cannot be converted, no int8 export, or one that was made for another model.
    """
    seed, name = getattr(model, "control_seed", None), source or type(model).__name__
    model = exportable(model)
    identity, folder, converted = model_identity(model), None, None
    if source and seed is None:
        hub = {"revision": getattr(model, "hub_commit", None), "local_files_only": local_files_only}
        folder = exported_folder(source, backend, precision, identity, **({} if os.path.isdir(source) else hub))
    if folder is None and precision == "int8":
        how = how_to_export(backend, Path(source) if source else None)
        raise ValueError(f"{name_of(name)} carries no int8 export for {backend}: {how}")
    if folder is None:
        if missing := missing_packages(backend):
            raise ValueError(f"{name} is to be converted for {backend}: {install_hint(missing[0])}")
        folder = converted = converted_folder(model, backend, identity)
    compiled = CompiledModel(model, open_towers(folder, backend, precision), backend, precision)
    compiled.converted = converted
    return compiled
