"""The same vectors by every road: attention kernels, dtypes, gradient checkpointing, torch.compile, torch.export."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.export import Dim
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_wavlink import WavLinkAudioModel, WavLinkModel
from modeling_wavlink.losses_wavlink import LOSSES
from tests.conftest import RATE, tone
from tests.tiny_models import audio_embeds, batch_of, build
from wavlink.compat import enable_checkpointing

TOWERS = [("clip", "eos"), ("modernbert", "cls"), ("bert", "mean")]


def sounds(*seconds):
    return [tone(300 + 200 * i, s, seed=i) for i, s in enumerate(seconds)]


def test_eager_and_sdpa_agree(sharp_model, processor):
    clips = sounds(0.5, 0.33, 1.11)
    sharp_model.set_attn_implementation("eager")
    eager = audio_embeds(sharp_model, processor, clips)
    sharp_model.set_attn_implementation("sdpa")
    assert (eager - audio_embeds(sharp_model, processor, clips)).abs().max() < 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_mask_has_one_row_for_all_queries(sharp_model, processor, attention):
    sharp_model.set_attn_implementation(attention)
    shapes = []
    for layer in sharp_model.audio_model.encoder.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, options: shapes.append(tuple(options["attention_mask"].shape)), with_kwargs=True
        )
    audio_embeds(sharp_model, processor, sounds(0.5, 0.33, 0.11))
    assert shapes == [(3, 1, 1, 26)] * 2  # 50 frames, a token; two layers


def test_flash_attention_gets_a_2d_mask_of_frames_and_token(sharp_model, processor, monkeypatch):
    """A stand-in for the kernel: like it, it unpads by a 2-D mask, which here has a hole before the token, and takes a
    query that is alone as it is."""
    masks = []

    def unpadded_attention(module, query, key, value, attention_mask, scaling, **kwargs):
        masks.append(attention_mask)
        out = torch.zeros_like(query)
        for row, kept in enumerate(attention_mask.bool()):
            asking = kept if query.shape[2] > 1 else slice(None)
            parts = query[row, :, asking], key[row, :, kept], value[row, :, kept]  # (heads, kept, head_dim)
            out[row, :, asking] = F.scaled_dot_product_attention(*parts, scale=scaling)
        return out.transpose(1, 2), None

    clips = sounds(0.5, 0.33, 0.11)
    expected = audio_embeds(sharp_model, processor, clips)
    assert WavLinkModel._supports_flash_attn and WavLinkAudioModel._supports_flash_attn
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", unpadded_attention)
    for module in (sharp_model.audio_model, sharp_model.audio_model.encoder):
        module.config._attn_implementation = "flash_attention_2"
    assert (audio_embeds(sharp_model, processor, clips) - expected).abs().max() < 1e-5
    assert [tuple(mask.shape) for mask in masks] == [(3, 26)] * 2  # 50 frames, a token; two layers
    assert masks[0].sum(1).tolist() == [26, 18, 7]  # ceil(50 / 2), ceil(33 / 2), ceil(11 / 2) and the token
    assert masks[0][:, -1].all() and not masks[0][2, 6:25].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tower", "pooling"), TOWERS)
def test_half_precision_is_close(dtype, tower, pooling, request, tmp_path):
    model, processor = build(request, tower, text_pooling=pooling)
    inputs = batch_of(processor)
    model.save_pretrained(tmp_path)
    half = WavLinkModel.from_pretrained(tmp_path, dtype=dtype)
    assert {p.dtype for p in half.parameters()} == {dtype}
    with torch.no_grad():
        full, output = model(**inputs), half(**inputs)
    assert output.loss.dtype == torch.float32
    assert torch.allclose(output.loss, full.loss, rtol=0.05)
    for name in ("audio_embeds", "text_embeds"):
        assert output[name].dtype == dtype and output[name].isfinite().all()
        assert F.cosine_similarity(output[name].float(), full[name]).min() > 0.999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_distinguishes_clips(dtype, sharp_model, processor):
    clips = sounds(0.5, 0.33, 1.11)
    full = audio_embeds(sharp_model, processor, clips)
    half = audio_embeds(sharp_model.to(dtype), processor, clips).float()
    assert (half @ full.T).diagonal().min() > 0.99 > (full @ full.T).triu(1).max()


@pytest.mark.parametrize("loss_type", LOSSES)
def test_autocast_keeps_the_loss_in_fp32(loss_type, request):
    model, processor = build(request, "bert", loss_type=loss_type)
    inputs = batch_of(processor)
    full = model(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs)
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and torch.allclose(output.loss, full.loss, rtol=0.05)
    assert F.cosine_similarity(output.audio_embeds, full.audio_embeds).min() > 0.999
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("tower", "pooling"), TOWERS)
def test_gradient_checkpointing_gives_equal_gradients(tower, pooling, request):
    model, processor = build(request, tower, text_pooling=pooling)
    inputs, calls = batch_of(processor), []
    model.audio_model.encoder.layers[0].fc1.register_forward_hook(lambda *_: calls.append(1))

    def gradients():
        calls.clear()
        model.zero_grad()
        torch.manual_seed(0)  # BERT's dropout
        model.train()(**inputs).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}, len(calls)

    expected, once = gradients()
    enable_checkpointing(model)
    actual, twice = gradients()
    assert (once, twice) == (1, 2)  # the second is the recomputation
    assert all(torch.allclose(actual[name], value, atol=1e-6) for name, value in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize(("tower", "pooling"), TOWERS)
def test_torch_compile_is_one_graph_for_all_lengths(tower, pooling, request):
    model, processor = build(request, tower, text_pooling=pooling)
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for sentences in (["a dog barks", "low"], ["the bell rings", "rain falls", "a low sound"]):
        inputs = batch_of(processor, sentences, clips=len(sentences))
        with torch.no_grad():
            expected, actual = model(**inputs), compiled(**inputs)
        assert torch.allclose(actual.logits_per_audio, expected.logits_per_audio, atol=1e-5)
        assert torch.allclose(actual.loss, expected.loss, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_torch_compile_trains(model, processor):
    inputs = batch_of(processor)
    model(**inputs).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    torch._dynamo.reset()
    torch.compile(model, backend="aot_eager", fullgraph=True)(**inputs).loss.backward()
    for name, p in model.named_parameters():
        assert name not in expected or torch.allclose(p.grad, expected[name], atol=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize(("tower", "pooling"), TOWERS)
def test_torch_export_with_dynamic_batch_and_lengths(tower, pooling, request):
    model, processor = build(request, tower, text_pooling=pooling)
    torch.nn.init.normal_(model.audio_model.global_token)
    clips, texts, tokens = Dim("clips", max=64), Dim("texts", max=64), Dim("tokens", min=2, max=24)
    frames = Dim("frames", min=3, max=3000)
    shapes = {
        "input_ids": {0: texts, 1: tokens},
        "attention_mask": {0: texts, 1: tokens},
        "input_features": {0: clips, 2: frames},
        "input_features_mask": {0: clips, 1: frames},
        "return_loss": None,
    }
    inputs = {**batch_of(processor, ["a dog barks", "low"]), "return_loss": False}
    with torch.no_grad():
        program = torch.export.export(model, (), inputs, dynamic_shapes=shapes).module()
        for seconds, sentences in [
            ([0.77, 0.333, 1.113], ["a low sound"]),
            ([30, 0.01], ["a dog", "low rain", "the cat", "bell"]),
            ([0.03], ["a"]),
        ]:
            inputs = processor(text=sentences, audio=sounds(*seconds), sampling_rate=RATE, return_tensors="pt")
            expected, actual = (f(**inputs, return_loss=False) for f in (model, program))
            for name in ("audio_embeds", "text_embeds", "logits_per_audio"):
                assert torch.allclose(actual[name], expected[name], atol=1e-5)


def test_torch_export_without_a_mask(model):
    shapes = {0: Dim("clips", max=64), 2: Dim("frames", min=3, max=3000)}
    with torch.no_grad():
        features = torch.randn(2, 80, 100)
        program = torch.export.export(model.audio_model, (features,), dynamic_shapes=(shapes,)).module()
        for clips, frames in [(1, 3), (3, 101), (2, 3000)]:
            features = torch.randn(clips, 80, frames)
            expected = model.audio_model(features).pooler_output
            assert torch.allclose(program(features).pooler_output, expected, atol=1e-5)
