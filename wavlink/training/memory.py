"""Memory of training on a CPU: recompute large states, measure the peak."""

import inspect
import sys

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from wavlink.compat import disable_checkpointing, enable_checkpointing

MANY_WEIGHTS = 14 << 20  # 56 MB in fp32, in each layer
MANY_TOKENS = 64 * 64
_NAME = "eager_recomputed"


def peak_memory() -> int | None:
    """Return the peak resident memory of this process, in MiB; None if the system does not report it."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:  # `getrusage` would begin with the parent's peak
            return next(int(line.split()[1]) >> 10 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)


def recompute_attention(model: PreTrainedModel) -> None:
    """Make a tower with eager attention recompute large attention weights in backward.

    The gradients are bit-equal. With `attn_implementation="eager"`, the fastest in bf16 on a CPU, the weights
    `[B, heads, L, L]` of long clips take most of a step's memory.
    """
    AttentionInterface.register(_NAME, _recomputed_attention)
    AttentionMaskInterface.register(_NAME, eager_mask)
    model.set_attn_implementation(_NAME)


def recompute_long_texts(model: PreTrainedModel) -> None:
    """Make a text tower recompute its layers' states in backward for batches of many tokens.

    The gradients are bit-equal, dropout included. A tower without gradient checkpointing is unchanged, and so is one
    that does not learn: checkpointing would compute its gradients nevertheless.
    """
    if not (model.supports_gradient_checkpointing and learns(model)):
        return

    def choose(_, args: tuple, kwargs: dict) -> None:
        tokens = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        many = torch.is_grad_enabled() and tokens.numel() >= MANY_TOKENS
        (enable_checkpointing if many else disable_checkpointing)(model)

    model.register_forward_pre_hook(choose, with_kwargs=True)
    use_no_cache(model)


def learns(model: nn.Module) -> bool:
    """Whether some of a model's parameters learn."""
    return any(parameter.requires_grad for parameter in model.parameters())


def use_no_cache(model: PreTrainedModel) -> None:
    """Make a text tower compute without a cache of keys and values, which an encoder never uses.

    transformers warns of the two together where a config says `use_cache`, as BERT's does; the config is unchanged.
    """
    if getattr(model.config, "use_cache", False):
        model.register_forward_pre_hook(
            lambda _, args, kwargs: (args, {**kwargs, "use_cache": False}), with_kwargs=True
        )


def _recomputed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options
) -> tuple[Tensor, Tensor | None]:
    """`[B, heads, L, d]` thrice and a mask `[B or 1, 1, L, L]` -> `[B, L, heads, d]`, and weights or None."""
    attend = inspect.getmodule(type(module)).eager_attention_forward  # each model defines one
    batch, heads, length = query.shape[:3]
    weights = heads * length * key.shape[2]  # of a clip
    if not torch.is_grad_enabled() or batch * weights < MANY_WEIGHTS:
        return attend(module, query, key, value, mask, **options)
    size = max(1, MANY_WEIGHTS // weights)
    if module.training and options.get("dropout"):
        size = batch  # so that dropout draws the same random numbers as without this
    pieces = [x.split(size) for x in (query, key, value)]
    masks = [None] * len(pieces[0]) if mask is None else mask.expand(batch, -1, -1, -1).split(size)
    attended = [
        checkpoint(lambda *piece: attend(module, *piece, **options)[0], *piece, use_reentrant=False)
        for piece in zip(*pieces, masks, strict=True)
    ]
    return torch.cat(attended), None
