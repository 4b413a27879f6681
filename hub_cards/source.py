"""Open what can be pushed: a WavLink, a LoRA adapter on its base, or the paper's model before any training."""

import json
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from transformers import set_seed
from transformers.utils import logging
from transformers.utils.hub import extract_commit_hash

from modeling_wavlink import WavLinkModel
from modeling_wavlink.compat_wavlink import optional_file
from modeling_wavlink.pretrained_wavlink import refuse_adapter
from processing import WavLinkProcessor
from processing.hub_names import model_of_run, needs_cache
from wavlink.bundled_models import bundled, names
from wavlink.training.factory import build
from wavlink.training.recipes import get_recipe

logger = logging.get_logger(__name__)

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def open_checkpoint(source: str) -> tuple[WavLinkModel | PeftModel, WavLinkProcessor]:
    """Load a WavLink, or LoRA that is not merged yet, in eval mode, and its processor.

    Args:
        source: a folder or Hub id of a WavLink, such as runs/sounds/best, or of a PEFT adapter of one.

    Raises:
        ValueError: neither, or an adapter that does not fit its base.
    """
    folder = Path(source)
    needs_cache(source)
    if optional_file(source, "adapter_config.json"):
        return _open_adapter(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        hint = model_of_run(folder) or "give a WavLink's folder or Hub id"
        raise ValueError(f"{source} has neither a config.json nor an adapter_config.json: {hint}")
    model = WavLinkModel.from_pretrained(source, use_safetensors=True).eval()
    return model, WavLinkProcessor.from_pretrained(source)


def open_paper_model(size: str) -> tuple[WavLinkModel, WavLinkProcessor]:
    """Build the start of a size's first stage: pretrained towers, and new weights drawn from the recipe's seed."""
    recipe = get_recipe(f"{size}_stage1")
    set_seed(recipe.seed)
    model, processor = build(recipe, lambda: ())
    return model.eval(), processor


def stored_state(model: WavLinkModel, source: str) -> dict[str, torch.Tensor] | None:
    """Return the weights in the number formats in which `source` stores them; None if they are in these already.

    A model is computed in the format of its config, and may be stored in a smaller one. A weight that this would
    change keeps its format.

    Args:
        source: the folder or Hub id that the model was loaded from.
    """
    dtypes = _stored_dtypes(source)
    state = model.state_dict()
    stored = {name: value.to(dtypes.get(name, value.dtype)) for name, value in state.items()}
    same = {name: torch.equal(stored[name].to(value.dtype), value) for name, value in state.items()}
    stored = {name: stored[name] if same[name] else value for name, value in state.items()}
    return stored if any(stored[name].dtype != value.dtype for name, value in state.items()) else None


def _stored_dtypes(source: str) -> dict[str, torch.dtype]:
    """Return the number format of each weight in the files of a folder or Hub id; {} for an adapter."""
    index = optional_file(source, "model.safetensors.index.json")
    names = {*json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()} if index else set()
    dtypes = {}
    for path in (optional_file(source, name) for name in names or ("model.safetensors",)):
        if path:
            with safe_open(path, "pt") as file:
                dtypes |= {name: _DTYPES.get(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
    return {name: dtype for name, dtype in dtypes.items() if dtype}


def merged(model: WavLinkModel | PeftModel) -> WavLinkModel:
    """Return the model with its adapter, if any, merged into the weights, and without the base's calibration."""
    if not isinstance(model, PeftModel):
        return model
    model = model.merge_and_unload(safe_merge=True)
    model.config.match_calibration = None  # of the base's weights
    return model


def run_of(source: str) -> Path | None:
    """Return the folder of the training run that wrote `source` (RUN/best, RUN/best/adapter), if there is one."""
    near = Path(source).resolve().parents[:2] if Path(source).is_dir() else ()
    return next((folder for folder in near if (folder / "recipe.json").is_file()), None)


def commit_of(source: str) -> str:
    """Return the Hub's commit of a WavLink; "" for a folder, and for an adapter, which has to be merged first."""
    needs_cache(source)
    if Path(source).is_dir() or optional_file(source, "adapter_config.json"):
        return ""
    config = optional_file(source, "config.json")
    return (config and extract_commit_hash(config, None)) or ""


def _open_adapter(source: str) -> tuple[PeftModel, WavLinkProcessor]:
    config = PeftConfig.from_pretrained(source)
    base = config.base_model_name_or_path
    if getattr(config, "megatron_config", None):
        raise ValueError(f"the adapter_config.json of {source} names a module to import (megatron_config): delete it")
    weights = optional_file(source, "adapter_model.safetensors")
    if not weights:
        raise ValueError(f"{source} has no adapter_model.safetensors: save it with peft's safe_serialization=True")
    if not base:
        raise ValueError(
            f"{source} does not name the model it was trained on: push the merged folder it lies in, or write its "
            "folder or Hub id into adapter_config.json as base_model_name_or_path"
        )
    if not Path(source).is_dir() and Path(base).exists():
        raise ValueError(
            f"{source}, an adapter of the Hub, names {base} as its base, which is on this machine: download the "
            "adapter, look at it, and give its folder"
        )
    base = bundled(base) if base in names() else base
    logger.warning(f"the base of {source} is {base[:200]!r}, as its adapter_config.json says")
    try:
        refuse_adapter(base)
        bare = WavLinkModel.from_pretrained(base, use_safetensors=True)
    except OSError as error:
        raise ValueError(f"{base}, which {source} was trained on, does not load: {error}") from error
    model = PeftModel.from_pretrained(bare, source).eval()
    _refuse_forgotten(source, weights, model)
    # The run's processor, beside its merged weights: the recipe may pad otherwise than the base.
    above = Path(source).parent
    folders = [folder for folder in (source, str(above)) if Path(folder, "processor_config.json").is_file()]
    return model, WavLinkProcessor.from_pretrained([*folders, base][0])


def _refuse_forgotten(source: str, weights: str, model: PeftModel) -> None:
    """Refuse an adapter with weights that PEFT does not load, which it skips without a warning."""
    state = model.state_dict()
    adapted = {name.split(".lora_")[0] for name in state if ".lora_" in name}
    with safe_open(weights, "pt") as file:
        names = file.keys()
        lost = [name for name in names if ".lora_" in name and name.split(".lora_")[0] not in adapted]
        for name in (name for name in names if ".lora_" not in name):
            stem, _, last = name.rpartition(".")
            loaded = state.get(name, state.get(f"{stem}.modules_to_save.default.{last}"))
            if loaded is None or not torch.equal(loaded, file.get_tensor(name).to(loaded.dtype)):
                lost.append(name)
    if lost:
        raise ValueError(f"{source} does not fit the model it names as its base: {', '.join(sorted(lost)[:3])}")
