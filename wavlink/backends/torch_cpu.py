"""Inference on a CPU in torch: linear layers by oneDNN with packed weights.

torch's fp32 `nn.Linear` calls MKL, which has its best kernels for Intel's processors, and both MKL and oneDNN reorder
the weights for their kernels at every call. With weights packed once, oneDNN is as fast or faster for every shape used
here (`benchmarks/speed.py` measures it), in fp32 and in bf16, and computes a following GELU while its input is in
cache.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wavlink import compat

# Names of a linear layer and its activation in transformers: feed-forwards of Whisper, and of BERT and HTS-AT.
_ACTIVATED = (("fc1", "activation_fn"), ("dense", "intermediate_act_fn"))


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
    """Replace linear layers by `PackedLinear`, in place.

    Subclasses are not replaced: their results may differ.
    """
    for name, child in list(model.named_children()):
        if type(child) is nn.Linear and packing_pays(child.weight.dtype):
            activation = dict(_ACTIVATED).get(name)
            gelu = _is_gelu(getattr(model, activation, None)) if activation else False
            setattr(model, name, PackedLinear(child, gelu))
            if gelu:
                setattr(model, activation, nn.Identity())
        else:
            pack_layers(child)


def _is_gelu(activation) -> bool:
    """Whether it is the exact GELU, of transformers or torch."""
    if isinstance(activation, nn.GELU):
        return activation.approximate == "none"
    return getattr(activation, "act", None) is F.gelu
