"""Inference on a CPU: linear layers by oneDNN with packed weights, and Whisper's attention without copies.

torch's fp32 `nn.Linear` calls MKL, which has its best kernels for Intel's processors, and both MKL and oneDNN reorder
the weights for their kernels at every call. With weights packed once, oneDNN is as fast or faster for every shape used
here (`benchmarks/speed.py` measures it), in fp32 and in bf16, and computes a following GELU while its input is in
cache.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.whisper.modeling_whisper import WhisperAttention

from wavlink import compat

# Names of a linear layer and its activation in transformers: feed-forwards of Whisper, and of BERT and HTS-AT.
_ACTIVATED = (("fc1", "activation_fn"), ("dense", "intermediate_act_fn"))
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
_LAST_LAYER = "WavLinkLastLayer"  # by its name: code from the Hub has another class of this name


class PackedLinear(nn.Module):
    """A linear layer with packed weights, and optionally GELU. It has no gradient and no `state_dict`.

    Its results equal those of `linear` up to rounding.

    Args:
        linear: is not changed.
        gelu: whether the exact GELU follows.
    """

    def __init__(self, linear: nn.Linear, gelu: bool = False):
        super().__init__()
        self.in_features, self.out_features, self.gelu = linear.in_features, linear.out_features, gelu
        self.weight = compat.pack_linear(linear.weight.detach())  # opaque; has a dtype
        # A copy: a view would keep all weights of its file in memory.
        self.bias = None if linear.bias is None else linear.bias.detach().clone()

    def forward(self, states: Tensor) -> Tensor:
        """Compute `[..., in_features] -> [..., out_features]`."""
        return compat.packed_linear(states, self.weight, self.bias, self.gelu)

    def __reduce__(self):
        """Copy and pickle by the unpacked weights: torch cannot pickle packed ones, which depend on the machine."""
        linear = nn.Linear(self.in_features, self.out_features, device="meta")  # draws no random numbers
        linear.weight = nn.Parameter(self.weight.to_dense(), requires_grad=False)
        linear.bias = None if self.bias is None else nn.Parameter(self.bias, requires_grad=False)
        return PackedLinear, (linear, self.gelu)


class PackedAttention(nn.Module):
    """Whisper's self-attention with packed projections, whose outputs are split into heads without a copy.

    Its results equal those of `attention` up to rounding.

    Args:
        attention: is not changed.
    """

    def __init__(self, attention: WhisperAttention):
        super().__init__()
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        for name in _PROJECTIONS:
            setattr(self, name, PackedLinear(getattr(attention, name)))

    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """Attend, `[B, N, D] -> [B, N, D]`.

        Args:
            hidden_states: `[B, N, D]`, the queries.
            key_value_states: `[B, L, D]`, attended to; default: `hidden_states`.
            attention_mask: `[B, 1, N, L]`, bool or additive.
            options: WhisperAttention's other arguments, which have no effect here.
        """
        attended = hidden_states if key_value_states is None else key_value_states
        parts = self.q_proj(hidden_states), self.k_proj(attended), self.v_proj(attended)
        parts = (part.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for part in parts)
        context = F.scaled_dot_product_attention(*parts, attn_mask=attention_mask)  # (B, H, N, head_dim)
        return self.out_proj(context.transpose(1, 2).flatten(2)), None


class TokenAttention(PackedAttention):
    """`PackedAttention` for a layer that may have a single query.

    Then no frame needs a key or a value. As `q (W x) = (q W) x`, the query is multiplied by the weights of the keys,
    and the weighted mean of the states by those of the values.
    """

    def __init__(self, attention: WhisperAttention):
        super().__init__(attention)
        weights = attention.k_proj.weight, attention.v_proj.weight  # (D, D) -> (H, head_dim, D)
        self.keys, self.values = (weight.detach().clone().unflatten(0, (self.num_heads, -1)) for weight in weights)

    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """Attend, as `PackedAttention` does."""
        if key_value_states is None or hidden_states.shape[1] > 1:
            return super().forward(hidden_states, key_value_states, attention_mask)
        query = self.q_proj(hidden_states[:, 0]).unflatten(-1, (self.num_heads, -1))  # (B, H, head_dim)
        # The bias of the keys would add a constant to all scores of a head, which does not change their softmax.
        query, attended = torch.einsum("bhd,hdx->bhx", query, self.keys)[:, None], key_value_states[:, None]
        mean = F.scaled_dot_product_attention(
            query, attended, attended, attn_mask=attention_mask, scale=self.head_dim**-0.5
        )  # (B, 1, H, D)
        value = torch.einsum("bhx,hdx->bhd", mean[:, 0], self.values).flatten(1)[:, None]
        return self.out_proj(value if self.v_proj.bias is None else value + self.v_proj.bias), None


def packing_pays(dtype: torch.dtype) -> bool:
    """Return whether this processor and this build of torch have oneDNN's packed kernels for `dtype`.

    These are x86 with AVX2 or better for fp32, and bf16 if the processor has it. This is a rule rather than a timing,
    so that vectors are deterministic.
    """
    if not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    if not compat.has_packed_linear():
        return False
    return dtype == torch.float32 or dtype == torch.bfloat16 and compat.has_bf16_kernels()


def pack_layers(model: nn.Module) -> None:
    """Replace linear layers by `PackedLinear` and Whisper's attention by `PackedAttention`, in place.

    Subclasses are not replaced: their results may differ.
    """
    for name, child in list(model.named_children()):
        if type(child) is WhisperAttention and _attention_packs(child):
            packed = TokenAttention if type(model).__name__ == _LAST_LAYER else PackedAttention
            setattr(model, name, packed(child))
        elif type(child) is nn.Linear and packing_pays(child.weight.dtype):
            activation = dict(_ACTIVATED).get(name)
            gelu = _is_gelu(getattr(model, activation, None)) if activation else False
            setattr(model, name, PackedLinear(child, gelu))
            if gelu:
                setattr(model, activation, nn.Identity())
        else:
            pack_layers(child)


def _attention_packs(attention: WhisperAttention) -> bool:
    """Whether its projections are plain linear layers, and its masks those of sdpa or eager, which sdpa takes too."""
    plain = all(type(getattr(attention, name)) is nn.Linear for name in _PROJECTIONS)
    known = compat.attention_of(attention.config) in ("sdpa", "eager")
    return plain and known and packing_pays(attention.q_proj.weight.dtype)


def _is_gelu(activation) -> bool:
    """Whether it is the exact GELU, of transformers or torch."""
    if isinstance(activation, nn.GELU):
        return activation.approximate == "none"
    return getattr(activation, "act", None) is F.gelu
