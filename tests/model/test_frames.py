"""What becomes of Whisper's frames: a last layer for the token alone, and means of neighbours (`frame_pooling`)."""

import copy

import pytest
import torch
from torch.export import Dim
from transformers import AutoModel, ClapAudioConfig

import train
from modeling_wavlink import WavLinkConfig, WavLinkModel
from modeling_wavlink.configuration_wavlink import frame_pooling
from tests.conftest import RATE, tone
from wavlink.training.factory import build, refuse_bad_start
from wavlink.training.finetuning import set_trainable
from wavlink.training.recipes import RECIPES, Recipe

CLIPS = [tone(300, 0.31, 0), tone(800, 1.23, 1), tone(500, 0.8, 2)]


def features(processor, clips=CLIPS, **options):
    return processor(audio=clips, sampling_rate=RATE, return_tensors="pt", **options)


@torch.no_grad()
def vectors(model, processor, clips=CLIPS, **options) -> torch.Tensor:
    return model.get_audio_features(**features(processor, clips, **options)).pooler_output


def pooled(model, factor: int, layer: int | list[int] = 1):
    model.config.audio_config.frame_pooling = factor
    model.config.audio_config.frame_pooling_layer = layer
    return model


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", ["longest", "max_length"])
@torch.no_grad()
def test_a_token_alone_is_what_it_is_among_frames(attn, padding, sharp_model, processor):
    sharp_model.set_attn_implementation(attn)
    inputs = features(processor, padding=padding)
    both = sharp_model.audio_model(**inputs)
    alone = sharp_model.audio_model(**inputs, output_frames=False)
    assert alone.last_hidden_state is None and both.last_hidden_state is not None
    torch.testing.assert_close(alone.pooler_output, both.pooler_output, atol=5e-6, rtol=0)
    expected = sharp_model.get_audio_features(**inputs, output_frames=True)
    found = sharp_model.get_audio_features(**inputs)
    assert torch.equal(expected.last_hidden_state, both.last_hidden_state) and found.last_hidden_state is None
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, atol=5e-6, rtol=0)


def test_the_last_layer_feeds_the_token_alone_forward(sharp_model, processor):
    rows = []
    for layer in sharp_model.audio_model.encoder.layers:
        layer.fc1.register_forward_hook(lambda _, __, output: rows.append(output.shape[1]))
    inputs = features(processor, CLIPS[1:2])  # 123 mel frames
    sharp_model.get_audio_features(**inputs)
    sharp_model.get_audio_features(**inputs, output_frames=True)
    pooled(sharp_model, 4).get_audio_features(**inputs, output_frames=True)
    assert rows == [63, 1, 63, 63, 63, 17]


@pytest.mark.parametrize("pooling", ["mean", "token_mean"])
@torch.no_grad()
def test_a_mean_needs_its_frames(pooling, sharp_model, processor):
    inputs = features(processor)
    both = sharp_model.audio_model(**inputs, pooling=pooling)
    found = sharp_model.audio_model(**inputs, pooling=pooling, output_frames=False)
    assert torch.equal(found.pooler_output, both.pooler_output) and found.last_hidden_state is None


def test_both_ways_teach_the_same(sharp_model, processor):
    inputs = features(processor)

    def gradients(**options):
        sharp_model.zero_grad()
        sharp_model.audio_model(**inputs, **options).pooler_output.pow(3).sum().backward()
        return {name: p.grad.clone() for name, p in sharp_model.audio_model.named_parameters() if p.requires_grad}

    expected, found = gradients(), gradients(output_frames=False)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4 * gradient.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize(("factor", "layers"), [(2, [1]), (3, [0]), (5, [1]), (2, [0, 1])])
@pytest.mark.parametrize("frames", [61, 60, 1, 2])
@torch.no_grad()
def test_frame_pooling_by_hand(factor, layers, frames, sharp_model):
    tower = pooled(sharp_model, factor, layers).audio_model
    inputs = torch.randn(1, 80, 2 * frames - 1)
    states, _ = tower._convolve(inputs, None)
    states, expected_frames = torch.cat([states, tower.global_token], 1), frames
    for place, layer in enumerate(tower.encoder.layers):
        if place in layers:
            groups = [group.mean(1, keepdim=True) for group in states[:, :-1].split(factor, dim=1)]
            states, expected_frames = torch.cat([*groups, states[:, -1:]], 1), -(-expected_frames // factor)
        output = layer(states, None)
        states = output[0] if isinstance(output, tuple) else output
    states = tower.encoder.layer_norm(states)
    found = tower(inputs)
    assert found.last_hidden_state.shape[1] == expected_frames
    torch.testing.assert_close(torch.cat([found.last_hidden_state, found.pooler_output[:, None]], 1), states)


def test_one_layer_is_a_list_of_one(sharp_model, processor):
    one, several = (vectors(pooled(sharp_model, 2, layer), processor) for layer in (1, [1]))
    assert torch.equal(one, several)


@pytest.mark.parametrize("layer", [1, [0, 1]])
@pytest.mark.parametrize("pooling", ["token", "mean", "token_mean"])
@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_one_clip_one_vector(layer, pooling, padding, sharp_model, processor):
    sharp_model.config.pooling = pooling
    whole = vectors(sharp_model, processor, padding=padding)
    together = vectors(pooled(sharp_model, 4, layer), processor, padding=padding)
    alone = torch.cat([vectors(sharp_model, processor, [clip], padding=padding) for clip in CLIPS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert (together - whole).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("layer", [1, [0, 1]])
def test_saved_loaded_trained_and_exported(layer, sharp_model, processor, tmp_path):
    pooled(sharp_model, 2, layer).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert loaded.config.audio_config.frame_pooling == 2
    expected = vectors(sharp_model, processor)
    assert torch.equal(vectors(loaded, processor), expected)
    assert torch.equal(vectors(WavLinkModel.from_pretrained(tmp_path).eval(), processor), expected)
    tower = copy.deepcopy(sharp_model.audio_model)
    inputs = features(processor)
    shapes = {"input_features": {0: Dim("clips", max=64), 2: Dim("frames", min=9, max=3000)}}
    shapes["input_features_mask"] = {0: shapes["input_features"][0], 1: shapes["input_features"][2]}
    exported = torch.export.export(tower, (), dict(inputs), dynamic_shapes=shapes)
    for clips in (CLIPS[:1], CLIPS[:2]):
        one = features(processor, clips)
        found = exported.module()(**one).pooler_output
        torch.testing.assert_close(found, tower(**one).pooler_output, atol=1e-5, rtol=0)
    lora = set_trainable(sharp_model, "lora")
    lora.audio_model(**inputs, output_frames=False).pooler_output.pow(3).sum().backward()
    assert lora.audio_model.global_token.grad.abs().sum() > 0


def test_recipes_build_it(whisper_folder, bert_folder):
    towers = {"audio_model": str(whisper_folder), "text_model": str(bert_folder)}
    recipe = Recipe(name="x", **towers, frame_pooling=2, frame_pooling_layer=(0, 1))
    refuse_bad_start(recipe)
    model, _ = build(recipe, list)
    assert frame_pooling(model.config.audio_config) == (2, (0, 1))
    quick = train.parse_recipe(["quickstart", "--frame_pooling", "4", "--frame_pooling_layer", "0"])
    model, _ = build(quick, lambda: ["a dog"])
    assert frame_pooling(model.audio_model.config) == (4, (0,))
    assert all(recipe().frame_pooling == 0 for name, recipe in RECIPES.items() if "_stage" in name)  # the paper's


def test_what_cannot_be_pooled_is_refused(whisper_folder, bert_folder, wavlink_folder):
    towers = {"audio_model": str(whisper_folder), "text_model": str(bert_folder)}
    for layers in ((2,), (-1,), (1, 0), (1, 1), (), ("1",), (1.0,)):
        with pytest.raises(ValueError, match="frame_pooling_layer must be one of 0 to 1"):
            refuse_bad_start(Recipe(name="x", **towers, frame_pooling=2, frame_pooling_layer=layers))
    with pytest.raises(ValueError, match="frame_pooling must be a whole number"):
        WavLinkConfig({"frame_pooling": 1.5})
    with pytest.raises(ValueError, match="HTS-AT pools its patches itself"):
        WavLinkConfig(ClapAudioConfig(frame_pooling=2))
    for pooling in ({"frame_pooling": 2}, {"frame_pooling": 2, "frame_pooling_layer": (0, 1)}):
        with pytest.raises(ValueError, match="brings its frame_pooling, 1 after layer 1"):
            refuse_bad_start(Recipe(name="x", init=str(wavlink_folder), **pooling))
