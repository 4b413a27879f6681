"""Trainable parameters of a WavLink: projections only, LoRA, or all, in one tower or both; and adapters."""

import fnmatch
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .recipe_fields import REGIMES, SCOPES

TOWERS = {"audio": ("audio_model",), "both": ("audio_model", "text_model")}

# Never frozen: these are outside the towers' layers, and new or part of the shared embedding space.
ALWAYS_LEARNED = ("audio_model.global_token", "audio_projection.*", "text_projection.*", "logit_scale", "logit_bias")


def set_trainable(
    model: nn.Module,
    regime: str = "full",
    scope: str = "both",
    lora_rank: int = 8,
    lora_alpha: int = 16,
    targets: Sequence[str] = (),
) -> nn.Module:
    """Freeze and adapt a `WavLinkModel` in place, and return it.

    Args:
        regime: `"projector"` (both towers frozen), `"lora"` (arXiv 2106.09685, on the linear maps of the Transformer
            layers) or `"full"`.
        scope: `"audio"` or `"both"`: the towers that the regime applies to; the other one is frozen.
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
    """Return whether a parameter of this name is trained in every regime."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in ALWAYS_LEARNED)


def lora_config(
    model: nn.Module, scope: str, rank: int = 8, alpha: int = 16, targets: Sequence[str] = ()
) -> LoraConfig:
    """Configure LoRA for the linear maps in the layers of the towers in scope; `model` may be on the meta device.

    Raises:
        ValueError: targets that match nothing.
    """
    tower = rf"({'|'.join(TOWERS[scope])})\..*layers?\."
    maps = {
        name.rsplit(".", 1)[1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.match(tower, name)
    }
    chosen = [name for name in sorted(maps) if not targets or name in targets]
    unknown = sorted({*targets} - maps)
    if not chosen or unknown:
        raise ValueError(
            f"LoRA targets {', '.join(unknown) or 'of this model'} match nothing; the linear maps of its layers are "
            f"{', '.join(sorted(maps)) or 'none'} (--lora_targets)"
        )
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=rf"{tower}.*\b({'|'.join(chosen)})")


def decayed_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters with weight decay: the weights of linear maps and convolutions.

    Biases, norms, tables (of tokens, positions and relative positions), the global token, the scale and SigLIP's bias
    are not decayed.
    """
    maps = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv1D
    return [
        f"{name}.weight" if name else "weight" for name, module in model.named_modules() if isinstance(module, maps)
    ]


def parameter_groups(
    model: nn.Module, weight_decay: float, head_learning_rate: float = 0.0, *, text_learning_rate: float = 0.0
) -> list[dict]:
    """Return the trainable parameters as groups of an optimizer; see `decayed_names`.

    Scale and bias (0-dim) are a separate group: FSDP2 does not shard them, and AdamW steps through a group in one call
    that takes no mixture of sharded and other tensors.

    Args:
        head_learning_rate: of projections, global token, scale and bias; 0: the optimizer's.
        text_learning_rate: of the text tower; 0: the optimizer's.
    """
    decayed = {*decayed_names(model)}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]

    def groups(named: list[tuple[str, nn.Parameter]]) -> list[dict]:
        return [
            {"params": [p for name, p in named if name in decayed], "weight_decay": weight_decay},
            {"params": [p for name, p in named if name not in decayed and p.ndim], "weight_decay": 0.0},
            {"params": [p for name, p in named if name not in decayed and not p.ndim], "weight_decay": 0.0},
        ]

    by_rate: dict[float, list[tuple[str, nn.Parameter]]] = {0.0: []}
    for name, parameter in named:
        of_text = text_learning_rate if name.startswith("text_model.") else 0.0
        rate = head_learning_rate if always_learned(name) else of_text
        by_rate.setdefault(rate, []).append((name, parameter))
    return [{**group, "lr": rate} if rate else group for rate, part in by_rate.items() for group in groups(part)]


@torch.no_grad()
def clamp_scale(model: nn.Module) -> None:
    """Clamp the scale's parameter to `logit_scale_max`; call it after each optimizer step.

    Otherwise the parameter would move beyond the limit, and need as many steps to come back.
    """
    model.logit_scale.clamp_(max=math.log(model.config.logit_scale_max))


def describe(model: nn.Module) -> str:
    """Describe the trainable parameters: `1,200 parameters, of which 24 (2.0 %) learn: audio_model LoRA 20, ...`."""
    learned: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = name if always_learned(name) else name.split(".")[0] + (" LoRA" if ".lora_" in name else "")
            learned[part.removesuffix(".weight")] = learned.get(part.removesuffix(".weight"), 0) + parameter.numel()
    total, sum_learned = sum(p.numel() for p in model.parameters()), sum(learned.values())
    parts = ", ".join(f"{part} {count:,}" for part, count in learned.items())
    return f"{total:,} parameters, of which {sum_learned:,} ({100 * sum_learned / total:.1f} %) learn: {parts}"


def has_lora(model: nn.Module) -> bool:
    """Return whether a model has LoRA in place."""
    return hasattr(model, "peft_config")


@torch.no_grad()
def merged_state_dict(model: nn.Module, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the weights of a plain WavLink that computes what `model` does with its LoRA; `model` is unchanged.

    Args:
        state: the full state dict of a sharded model.
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


def save_adapter(
    model: nn.Module, folder: str | os.PathLike, base: str = "", state: dict[str, Tensor] | None = None
) -> None:
    """Write an adapter in peft's format; `PeftModel.from_pretrained(base_model, folder)` loads it.

    It holds LoRA and the parameters trained in every regime, some of which peft alone would not save.

    Args:
        model: with LoRA.
        folder: for the adapter's files.
        base: Hub id or folder of the WavLink it was trained on, for the adapter's config.
        state: the full state dict of a sharded model.
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


def load_adapter(model: nn.Module, folder: str | os.PathLike) -> None:
    """Load what `save_adapter` wrote into a model that `set_trainable` has prepared in the same way.

    Raises:
        ValueError: no adapter, or one of another rank, targets or scope.
    """
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
