"""Packed linear layers compute what torch's do."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import WhisperConfig
from transformers.activations import ACT2FN

from modeling_wavlink.whisper_audio_wavlink import WavLinkAudioModel
from wavlink.backends.torch_cpu import PackedLinear, pack_layers, packing_pays

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
def test_only_the_exact_gelu_is_fused_into_the_layer(name):
    torch.manual_seed(0)
    model = nn.ModuleList([FeedForward(ACT2FN[name])])
    states = 3 * torch.randn(5, 8)
    expected = model[0](states)
    pack_layers(model)
    assert isinstance(model[0].fc1, PackedLinear) and isinstance(model[0].fc2, PackedLinear)
    assert model[0].fc1.gelu == isinstance(model[0].activation_fn, nn.Identity) == (name == "gelu")
    torch.testing.assert_close(model[0](states), expected, atol=1e-5, rtol=0)


def test_other_layers_and_dtypes_are_not_packed():
    model = nn.Sequential(Adapted(4, 4), nn.Linear(4, 4, dtype=torch.float16), nn.Conv1d(4, 4, 3), nn.Linear(4, 4))
    layers = list(model)
    pack_layers(model)
    assert list(model)[:3] == layers[:3] and isinstance(model[3], PackedLinear)


def whisper_config(implementation="sdpa"):
    sizes = {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}
    return WhisperConfig(**sizes, num_mel_bins=8, attn_implementation=implementation)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("output_frames", [False, True])
@torch.inference_mode()
def test_the_whole_tower(implementation, output_frames):
    torch.manual_seed(0)
    tower = WavLinkAudioModel(whisper_config(implementation)).eval()
    features, mask = torch.randn(2, 8, 50), (torch.arange(50) < torch.tensor([50, 31])[:, None]).long()
    expected = tower(features, mask, output_frames=output_frames)
    pack_layers(tower)
    assert not any(type(part) is nn.Linear for part in tower.modules())
    found = tower(features, mask, output_frames=output_frames)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, atol=1e-5, rtol=0)
    if output_frames:
        torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)
