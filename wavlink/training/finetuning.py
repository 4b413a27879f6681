"""What of a WavLink learns: projections only, LoRA, or everything, in one tower or both; and how far it may move."""

import fnmatch
import math
import re
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .recipes import REGIMES, SCOPES

TOWERS = {"audio": ("audio_model",), "both": ("audio_model", "text_model")}

# Outside the towers' layers, and never frozen: each of these is new, or belongs to the shared space.
ALWAYS_LEARNED = ("audio_model.global_token", "audio_projection.*", "text_projection.*", "logit_scale", "logit_bias")


def set_trainable(
    model: nn.Module, regime: str = "full", scope: str = "both", lora_rank: int = 8, lora_alpha: int = 16, targets=()
) -> nn.Module:
    """Freezes and adapts a `WavLinkModel` in place, and returns it.

    Args:
        regime: `"projector"` (both towers frozen), `"lora"` (arXiv 2106.09685, on the linear maps of the Transformer
            layers) or `"full"`.
        scope: `"audio"` or `"both"`: the towers that the regime is about; the others are frozen.
        lora_rank, lora_alpha: of every adapted map W: W + alpha / rank B A.
        targets: last parts of the names of the maps to adapt, such as `("q_proj", "v_proj")`; default: all.

    The global token, both projections, the scale and SigLIP's bias learn in every regime.
    """
    if regime not in REGIMES or scope not in SCOPES:
        raise ValueError(f"regime must be one of {REGIMES} and scope one of {SCOPES}, got {regime!r} and {scope!r}")
    if regime == "lora":
        inject_adapter_in_model(lora_config(model, scope, lora_rank, lora_alpha, targets), model)
    for name, parameter in model.named_parameters():
        in_scope = name.startswith(TOWERS[scope])
        if not always_learned(name):
            parameter.requires_grad_(in_scope and (regime == "full" or ".lora_" in name))
        else:
            parameter.requires_grad_(True)
    model.freeze_constants()
    return model


def always_learned(name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in ALWAYS_LEARNED)


def lora_config(model: nn.Module, scope: str, rank: int = 8, alpha: int = 16, targets=()) -> LoraConfig:
    """For `model`, which may be on the meta device: LoRA on the linear maps in the layers of the towers in scope."""
    tower = rf"({'|'.join(TOWERS[scope])})\..*layers?\."
    found = {
        name.rsplit(".", 1)[1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.match(tower, name)
    }
    chosen = [name for name in sorted(found) if not targets or name in targets]
    unknown = sorted({*targets} - found)
    if not chosen or unknown:
        raise ValueError(
            f"LoRA targets {', '.join(unknown) or 'of this model'} match nothing; the linear maps of its layers are "
            f"{', '.join(sorted(found)) or 'none'} (--lora_targets)"
        )
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=rf"{tower}.*\b({'|'.join(chosen)})")


def decayed_names(model: nn.Module) -> list[str]:
    """The parameters that weight decay applies to: the weights of linear maps and convolutions.

    Biases, norms, tables (of tokens, positions and relative positions), the global token, the scale and SigLIP's bias
    are not decayed.
    """
    maps = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv1D
    return [
        f"{name}.weight" if name else "weight" for name, module in model.named_modules() if isinstance(module, maps)
    ]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """The parameters that learn, as groups of an optimizer: see `decayed_names`.

    Scale and bias (0-dim) are a group of their own: FSDP2 leaves them whole, and AdamW steps through a group in one
    call that takes no mixture of whole and sharded tensors.
    """
    decayed = {*decayed_names(model)}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in named if name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name not in decayed and p.ndim], "weight_decay": 0.0},
        {"params": [p for name, p in named if name not in decayed and not p.ndim], "weight_decay": 0.0},
    ]


@torch.no_grad()
def clamp_scale(model: nn.Module) -> None:
    """Keeps the parameter of the scale within `logit_scale_max`; to be called after each optimizer step.

    Without it the parameter moves on while the clamped scale stays, and needs as many steps to come back.
    """
    model.logit_scale.clamp_(max=math.log(model.config.logit_scale_max))


def describe(model: nn.Module) -> str:
    """What learns, for a person: `1,200 parameters, of which 24 (2.0 %) learn: audio_model LoRA 20, ...`."""
    learned: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = name if always_learned(name) else name.split(".")[0] + (" LoRA" if ".lora_" in name else "")
            learned[part.removesuffix(".weight")] = learned.get(part.removesuffix(".weight"), 0) + parameter.numel()
    total, sum_learned = sum(p.numel() for p in model.parameters()), sum(learned.values())
    parts = ", ".join(f"{part} {count:,}" for part, count in learned.items())
    return f"{total:,} parameters, of which {sum_learned:,} ({100 * sum_learned / total:.1f} %) learn: {parts}"


def has_lora(model: nn.Module) -> bool:
    return hasattr(model, "peft_config")


@torch.no_grad()
def merged_state_dict(model: nn.Module, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The weights of a plain WavLink that computes what `model` with its LoRA does; the model stays as it is.

    Args:
        state: the full state dict where the model's own is sharded.
    """
    state = dict(model.state_dict() if state is None else state)
    if not has_lora(model):
        return state
    config = model.peft_config["default"]
    for name in [name for name in state if ".lora_A." in name]:
        module = name.split(".lora_A.")[0]
        down, up = state.pop(name).float(), state.pop(name.replace(".lora_A.", ".lora_B.")).float()
        base = state[f"{module}.base_layer.weight"]
        merged = base.float() + config.lora_alpha / config.r * up @ down
        state[f"{module}.base_layer.weight"] = merged.to(base.dtype)
    return {name.replace(".base_layer.", "."): value for name, value in state.items()}


def save_adapter(model: nn.Module, folder, base: str = "", state: dict[str, Tensor] | None = None) -> None:
    """A small folder in peft's own form; `PeftModel.from_pretrained(base_model, folder)` puts it on its base.

    LoRA, and whatever learns in every regime, which peft by itself would forget where it is no module.

    Args:
        base: Hub id or folder of the WavLink it was trained on, for the adapter's config.
    """
    state = model.state_dict() if state is None else state
    adapter = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    adapter |= {name: value for name, value in state.items() if always_learned(name)}
    Path(folder).mkdir(parents=True, exist_ok=True)
    weights = {f"base_model.model.{name}": value.contiguous() for name, value in adapter.items()}
    save_file(weights, Path(folder) / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"]
    config.base_model_name_or_path = base or None
    config.inference_mode = True
    config.save_pretrained(folder)
    config.inference_mode = False


def load_adapter(model: nn.Module, folder) -> None:
    """Puts what `save_adapter` wrote back into a model that `set_trainable` has prepared as the saved one was."""
    path = Path(folder) / "adapter_model.safetensors"
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: only a folder written with LoRA can be loaded into a model with LoRA"
        )
    state = {name.removeprefix("base_model.model."): value for name, value in load_file(path).items()}
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    learned = {name.replace(".default.", "."): parameter.shape for name, parameter in named}
    saved = {name: value.shape for name, value in state.items() if name in learned or ".lora_" in name}
    other = sorted(name for name in {*learned, *saved} if learned.get(name) != saved.get(name))
    if other:
        raise ValueError(
            f"{folder} was trained with another LoRA (rank, targets or scope) than this model has: its "
            f"{', '.join(other[:3])} differ; call set_trainable as before"
        )
    set_peft_model_state_dict(model, state)
