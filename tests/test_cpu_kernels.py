"""Packed linear layers compute what torch's do."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from modeling_wavlink.cpu_kernels import PackedLinear, pack_linears, packing_pays

pytestmark = pytest.mark.skipif(not packing_pays(torch.float32), reason="no packed kernels for this processor")
SHAPES = [(3, 7, 64), (5, 64), (1, 1, 64), (2, 3, 4, 64)]


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.inference_mode()
def test_equal_to_torchs(shape, bias, gelu):
    torch.manual_seed(0)
    linear, states = nn.Linear(64, 48, bias), torch.randn(shape)
    expected = F.gelu(linear(states)) if gelu else linear(states)
    packed = PackedLinear(linear, gelu)
    drawn = torch.get_rng_state()
    for one in (packed, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        torch.testing.assert_close(one(states), expected, atol=1e-5, rtol=0)
    assert torch.equal(torch.get_rng_state(), drawn)
    half = states[..., :1, :].expand(shape)  # neither contiguous nor all its own
    torch.testing.assert_close(packed(half), F.gelu(linear(half)) if gelu else linear(half), atol=1e-5, rtol=0)


class FeedForward(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.fc1, self.fc2, self.activation_fn = nn.Linear(8, 16), nn.Linear(16, 8), activation

    def forward(self, states):
        return self.fc2(self.activation_fn(self.fc1(states)))


class Adapted(nn.Linear):
    """What PEFT or torch itself may have in the place of a layer."""


@pytest.mark.parametrize("name", ["gelu", "quick_gelu", "gelu_new", "relu"])
@torch.inference_mode()
def test_only_the_exact_gelu_goes_into_the_layer(name):
    torch.manual_seed(0)
    model = nn.ModuleList([FeedForward(ACT2FN[name])])
    states = 3 * torch.randn(5, 8)
    expected = model[0](states)
    pack_linears(model)
    assert isinstance(model[0].fc1, PackedLinear) and isinstance(model[0].fc2, PackedLinear)
    assert model[0].fc1.gelu == isinstance(model[0].activation_fn, nn.Identity) == (name == "gelu")
    torch.testing.assert_close(model[0](states), expected, atol=1e-5, rtol=0)


def test_other_layers_and_dtypes_stay():
    model = nn.Sequential(Adapted(4, 4), nn.Linear(4, 4, dtype=torch.float16), nn.Conv1d(4, 4, 3), nn.Linear(4, 4))
    layers = list(model)
    pack_linears(model)
    assert list(model)[:3] == layers[:3] and isinstance(model[3], PackedLinear)
