"""Adapters on any layer of both towers, and weights that a library stores in another form than floats."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F

from modeling_wavlink import WavLinkConfig, WavLinkModel
from modeling_wavlink.pretrained_wavlink import refuse_broken_weights
from tests.conftest import RATE, tone
from tests.tiny_models import HTSAT, batch_of, build

TOWERS = [("clip", "eos"), ("modernbert", "cls"), ("bert", "mean")]
CLIPS = [tone(300, 0.31, 0), tone(800, 1.23, 1), tone(500, 0.8, 2)]


def layers_of(model) -> list[str]:
    kinds = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def adapted(model, targets: list[str]):
    """`model` with LoRA that changes something on each of `targets`, PEFT's full names."""
    torch.manual_seed(0)
    lora = get_peft_model(model, LoraConfig(r=2, target_modules=targets)).eval()
    for name, parameter in lora.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return lora


@pytest.mark.parametrize(("tower", "pooling"), TOWERS)
def test_lora_on_every_layer(tower, pooling, request):
    model, processor = build(request, tower, text_pooling=pooling)
    inputs = batch_of(processor)
    names = layers_of(model)
    assert {"audio_model.encoder.conv1", "audio_model.encoder.conv2", "audio_projection"} <= {*names}
    lora = adapted(model, names)
    lora(**inputs, return_loss=True).loss.backward()
    learn = {name for name, p in lora.named_parameters() if "lora_" in name and p.grad is not None and p.grad.any()}
    without = [name for name in names if not any(f".{name}." in one for one in learn)]
    assert all("position" in name or "token_type" in name for name in without)  # one that no id asks for
    expected = lora(**inputs).logits_per_audio
    torch.testing.assert_close(lora.merge_and_unload()(**inputs).logits_per_audio, expected, atol=2e-4, rtol=0)


def test_lora_on_every_layer_of_htsat(model, processor):
    config = WavLinkConfig({"model_type": "clap_audio_model", **HTSAT}, model.config.text_config, 16)
    model = WavLinkModel(config)
    features = torch.randn(2, 2, 100, 16)
    lora = adapted(model, [name for name in layers_of(model) if name.startswith("audio")])
    lora.get_audio_features(features).pooler_output.pow(3).sum().backward()
    assert all(p.grad is not None for name, p in lora.named_parameters() if "lora_" in name)
    expected = lora.get_audio_features(features).pooler_output
    found = lora.merge_and_unload().get_audio_features(features).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("targets", [["conv1"], ["conv2"], ["conv1", "conv2"], ["embed_positions"]])
@torch.no_grad()
def test_one_clip_has_one_vector_with_adapters_in_front(targets, sharp_model, processor):
    """Masked convolutions stay exact: the adapters see the zeros too that a clip sees alone."""

    def vectors(clips):
        inputs = processor(audio=clips, sampling_rate=RATE, return_tensors="pt")
        return lora.get_audio_features(**inputs).pooler_output

    lora = adapted(copy.deepcopy(sharp_model), targets)
    together, alone = vectors(CLIPS), torch.cat([vectors([clip]) for clip in CLIPS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    with lora.disable_adapter():
        assert (vectors(CLIPS) - together).abs().max() > 1e-3


class Integers(nn.Module):
    """Stands for a library's linear layer, whose weight is stored in 8 bits, as bitsandbytes' is."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.scale = linear.weight.detach().abs().max() / 127
        stored = (linear.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.bias = linear.bias

    def forward(self, states):
        weight = self.weight.to(states.dtype) * self.scale.to(states.dtype)
        return F.linear(states, weight, None if self.bias is None else self.bias.to(states.dtype))


def store_integers(module: nn.Module) -> nn.Module:
    for name, child in list(module.named_children()):
        setattr(module, name, Integers(child)) if type(child) is nn.Linear else store_integers(child)
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tower", "pooling"), TOWERS)
@torch.no_grad()
def test_vectors_have_the_models_dtype_whatever_its_linear_layers_store(tower, pooling, dtype, request):
    model, processor = build(request, tower, text_pooling=pooling)
    inputs = batch_of(processor)
    expected = model.eval()(**inputs)
    quantised = store_integers(copy.deepcopy(model).to(dtype))
    found = quantised(**inputs)
    for name in ("audio_embeds", "text_embeds"):
        vectors = getattr(found, name)
        assert vectors.dtype == dtype
        torch.testing.assert_close(vectors.float().norm(dim=1), torch.ones(3), atol=1e-2, rtol=0)
        assert F.cosine_similarity(vectors.float(), getattr(expected, name)).min() > 0.98
    assert found.loss.isfinite()


@torch.no_grad()
def test_vectors_under_autocast_are_in_fp32(model, processor):
    """As the weights are: the norm is then not rounded to bf16 a second time."""
    inputs = batch_of(processor)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model.eval()(**inputs)
    assert output.audio_embeds.dtype == output.text_embeds.dtype == torch.float32
    torch.testing.assert_close(output.audio_embeds.norm(dim=1), torch.ones(3), atol=1e-6, rtol=0)


class Quantised(torch.Tensor):
    """A tensor that says it is of floats and knows little of what those can do, such as torchao's."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (torch.isfinite, torch.Tensor.isfinite):
            raise NotImplementedError(f"unimplemented operator: {function}")
        return super().__torch_function__(function, types, args, kwargs or {})


def test_weights_that_cannot_be_asked_are_taken(model):
    linear = model.audio_projection
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Quantised))
    with pytest.raises(NotImplementedError):
        torch.isfinite(linear.weight)
    refuse_broken_weights("x", model)
    with torch.no_grad():
        model.text_projection.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="text_projection.weight of x holds NaN"):
        refuse_broken_weights("x", model)
