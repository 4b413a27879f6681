"""A model's towers on a CPU, for inference: linear layers by oneDNN with weights packed once, Whisper's attention with
no copies between.

torch's fp32 `nn.Linear` calls MKL, which keeps its best kernels for Intel's processors, and both MKL and oneDNN put
the weights in their kernels' order anew at each call. Packed once, oneDNN is as fast or faster for every shape of ours
(`benchmarks/speed.py` measures it), in fp32 and in bf16, and computes a GELU that follows while its input is in cache.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.whisper.modeling_whisper import WhisperAttention

from wavlink import compat

# Where transformers has a linear layer and its activation: Whisper's feed-forward, and that of BERT and HTS-AT.
_ACTIVATED = (("fc1", "activation_fn"), ("dense", "intermediate_act_fn"))
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
_LAST_LAYER = "WavLinkLastLayer"  # by its name: a model of the Hub may bring a class of its own


class PackedLinear(nn.Module):
    """What an `nn.Linear` computes, to rounding, and perhaps GELU after it. It has no gradient and no `state_dict`.

    Args:
        linear: stays as it is.
        gelu: whether the exact GELU follows.
    """

    def __init__(self, linear: nn.Linear, gelu: bool = False):
        super().__init__()
        self.in_features, self.out_features, self.gelu = linear.in_features, linear.out_features, gelu
        self.weight = compat.pack_linear(linear.weight.detach())  # opaque; has a dtype
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, states: Tensor) -> Tensor:
        """`[..., in_features] -> [..., out_features]`"""
        return compat.packed_linear(states, self.weight, self.bias, self.gelu)

    def __reduce__(
        self,
    ):  # copies and pickles: torch cannot pickle the packed order, which is another machine's anyway
        linear = nn.Linear(self.in_features, self.out_features, device="meta")  # draws no random numbers
        linear.weight = nn.Parameter(self.weight.to_dense(), requires_grad=False)
        linear.bias = None if self.bias is None else nn.Parameter(self.bias, requires_grad=False)
        return PackedLinear, (linear, self.gelu)


class PackedAttention(nn.Module):
    """What Whisper's self-attention computes, to rounding, with heads read where the projections put them.

    Args:
        attention: stays as it is.
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
        **options,
    ) -> tuple[Tensor, None]:
        """`[B, N, D]` asking, `[B, L, D]` heard (those that ask, unless others are given), mask `[B, 1, N, L]`, of
        bools or to be added -> `[B, N, D]`. `options` are WhisperAttention's others, which change nothing here."""
        heard = hidden_states if key_value_states is None else key_value_states
        parts = self.q_proj(hidden_states), self.k_proj(heard), self.v_proj(heard)
        parts = (part.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for part in parts)
        found = F.scaled_dot_product_attention(*parts, attn_mask=attention_mask)  # (B, H, N, head_dim)
        return self.out_proj(found.transpose(1, 2).flatten(2)), None


class TokenAttention(PackedAttention):
    """`PackedAttention` of a layer in which one state may ask alone. Then no frame needs a key or a value:
    `q (W x) = (q W) x`, so the query goes through the keys' weights, and the mean of the states through the values'.
    """

    def __init__(self, attention: WhisperAttention):
        super().__init__(attention)
        weights = attention.k_proj.weight, attention.v_proj.weight  # (D, D) -> (H, head_dim, D)
        self.keys, self.values = (weight.detach().unflatten(0, (self.num_heads, -1)) for weight in weights)

    def forward(self, hidden_states, key_value_states=None, attention_mask=None, **options) -> tuple[Tensor, None]:
        if key_value_states is None or hidden_states.shape[1] > 1:
            return super().forward(hidden_states, key_value_states, attention_mask)
        query = self.q_proj(hidden_states[:, 0]).unflatten(-1, (self.num_heads, -1))  # (B, H, head_dim)
        # A key's bias would add the same to every score of a head, which its softmax does not see.
        query, heard = torch.einsum("bhd,hdx->bhx", query, self.keys)[:, None], key_value_states[:, None]
        mean = F.scaled_dot_product_attention(
            query, heard, heard, attn_mask=attention_mask, scale=self.head_dim**-0.5
        )  # (B, 1, H, D)
        value = torch.einsum("bhx,hdx->bhd", mean[:, 0], self.values).flatten(1)[:, None]
        return self.out_proj(value if self.v_proj.bias is None else value + self.v_proj.bias), None


def packing_pays(dtype: torch.dtype) -> bool:
    """Whether this processor and this build of torch have oneDNN's packed kernels for `dtype`: on x86 with AVX2 or
    better fp32, and bf16 where the processor has it. A rule, not a timing, so that a vector never hangs on chance."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    if not compat.has_packed_linear():
        return False
    return dtype == torch.float32 or dtype == torch.bfloat16 and compat.has_bf16_kernels()


def pack_layers(model: nn.Module) -> None:
    """Replaces the linear layers below `model` by `PackedLinear`s and Whisper's attention by `PackedAttention`, in
    place. Subclasses stay: theirs may be other results."""
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
    """Whether its projections are plain ones, and its masks are those of sdpa or eager, which sdpa takes too."""
    plain = all(type(getattr(attention, name)) is nn.Linear for name in _PROJECTIONS)
    known = compat.attention_of(attention.config) in ("sdpa", "eager")
    return plain and known and packing_pays(attention.q_proj.weight.dtype)


def _is_gelu(activation) -> bool:
    """Whether it is the exact GELU, in one of transformers' or torch's forms."""
    if isinstance(activation, nn.GELU):
        return activation.approximate == "none"
    return getattr(activation, "act", None) is F.gelu
