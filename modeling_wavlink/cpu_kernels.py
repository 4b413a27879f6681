"""The linear layers of a model's towers on a CPU, by oneDNN with weights packed once, for inference.

torch's fp32 `nn.Linear` calls MKL, which keeps its best kernels for Intel's processors, and both MKL and oneDNN put
the weights in their kernels' order anew at each call. Packed once, oneDNN is as fast or faster for every shape of ours
(`benchmarks/speed.py` measures it), in fp32 and in bf16, and computes a GELU that follows while its input is in cache.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Where transformers has a linear layer and its activation: Whisper's feed-forward, and that of BERT and HTS-AT.
_ACTIVATED = (("fc1", "activation_fn"), ("dense", "intermediate_act_fn"))


class PackedLinear(nn.Module):
    """What an `nn.Linear` computes, to rounding, and perhaps GELU after it. It has no gradient and no `state_dict`.

    Args:
        linear: stays as it is.
        gelu: whether the exact GELU follows.
    """

    def __init__(self, linear: nn.Linear, gelu: bool = False):
        super().__init__()
        self.in_features, self.out_features, self.gelu = linear.in_features, linear.out_features, gelu
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())  # opaque; has a dtype
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, states: Tensor) -> Tensor:
        """`[..., in_features] -> [..., out_features]`"""
        after = ("gelu", [], "none") if self.gelu else ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, *after)

    def __reduce__(
        self,
    ):  # copies and pickles: torch cannot pickle the packed order, which is another machine's anyway
        linear = nn.Linear(self.in_features, self.out_features, device="meta")  # draws no random numbers
        linear.weight = nn.Parameter(self.weight.to_dense(), requires_grad=False)
        linear.bias = None if self.bias is None else nn.Parameter(self.bias, requires_grad=False)
        return PackedLinear, (linear, self.gelu)


def packing_pays(dtype: torch.dtype) -> bool:
    """Whether this processor and this build of torch have oneDNN's packed kernels for `dtype`: on x86 with AVX2 or
    better fp32, and bf16 where the processor has it. A rule, not a timing, so that a vector never hangs on chance."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    return dtype == torch.float32 or dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pack_linears(model: nn.Module) -> None:
    """Replaces the linear layers below `model` by `PackedLinear`s, in place. Subclasses of `nn.Linear` stay."""
    for name, child in list(model.named_children()):
        if type(child) is nn.Linear and packing_pays(child.weight.dtype):
            activation = dict(_ACTIVATED).get(name)
            gelu = _is_gelu(getattr(model, activation, None)) if activation else False
            setattr(model, name, PackedLinear(child, gelu))
            if gelu:
                setattr(model, activation, nn.Identity())
        else:
            pack_linears(child)


def _is_gelu(activation) -> bool:
    """Whether it is the exact GELU, in one of transformers' or torch's forms."""
    if isinstance(activation, nn.GELU):
        return activation.approximate == "none"
    return getattr(activation, "act", None) is F.gelu
