"""Weights in and out: pretrained towers of every layout, nothing silently random, and bit-equal saves."""

import json
import shutil
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertForMaskedLM,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    ModernBertForMaskedLM,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperModel,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from modeling_wavlink import WavLinkConfig, WavLinkModel
from tests.tiny_models import batch_of, build

# What each published checkpoint is, saved from the same whole tower: name -> how to get it from the folder.
AUDIO_LAYOUTS = {
    "whole": WhisperModel.from_pretrained,
    "encoder": lambda folder: WhisperModel.from_pretrained(folder).encoder,
    "generation": lambda folder: _inside(WhisperForConditionalGeneration, "model", WhisperModel, folder),
}
TEXT_LAYOUTS = {
    "clip-whole": CLIPModel.from_pretrained,
    "clip-text": CLIPTextModel.from_pretrained,
    "clip-text-with-projection": CLIPTextModelWithProjection.from_pretrained,
    "bert": AutoModel.from_pretrained,
    "bert-masked-lm": lambda folder: _inside(BertForMaskedLM, "bert", AutoModel, folder),
    "modernbert": AutoModel.from_pretrained,
    "modernbert-masked-lm": lambda folder: _inside(ModernBertForMaskedLM, "model", AutoModel, folder),
}


def _inside(outer: type, name: str, inner: type, folder):
    """A fresh `outer` around the folder's weights: its heads are what a WavLink must leave out."""
    model = inner.from_pretrained(folder)
    whole = outer(model.config)
    getattr(whole, name).load_state_dict(model.state_dict(), strict=False)
    return whole


def same(module, other) -> bool:
    """Whether `module` has exactly the values of `other`'s tensors of the same names, and no other names."""
    ours, theirs = module.state_dict(), other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def edit(source, target, drop=(), add=()):
    """A copy of a checkpoint without some tensors and with others."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    weights = load_file(target / "model.safetensors")
    for key in drop:
        del weights[key]
    save_file({**weights, **{key: torch.ones(2) for key in add}}, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize("layout", AUDIO_LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_audio_tower_of_every_layout(layout, dtype, whisper_folder, bert_folder, tmp_path):
    AUDIO_LAYOUTS[layout](whisper_folder).to(dtype).save_pretrained(tmp_path)
    model = WavLinkModel.from_audio_text_pretrained(str(tmp_path), str(bert_folder))
    expected = WhisperModel.from_pretrained(whisper_folder).encoder.to(dtype).float()
    assert same(model.audio_model.encoder, expected)
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # openai/whisper-large-v3 is stored in fp16


@pytest.mark.parametrize("layout", TEXT_LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_text_tower_of_every_layout(layout, dtype, whisper_folder, request, tmp_path):
    tower = layout.split("-")[0]
    folder = request.getfixturevalue(f"{tower}_folder")
    TEXT_LAYOUTS[layout](folder).to(dtype).save_pretrained(tmp_path)
    model = WavLinkModel.from_audio_text_pretrained(str(whisper_folder), str(tmp_path))
    clip = CLIPTextModelWithProjection.from_pretrained(folder).to(dtype).float() if tower == "clip" else None
    assert same(model.text_model, clip.text_model if clip else AutoModel.from_pretrained(folder).to(dtype).float())
    assert not any(name.startswith("pooler.") for name in model.text_model.state_dict())
    if clip and layout != "clip-text":  # a CLIPTextModel has no projection to keep
        assert torch.equal(model.text_projection.weight, clip.text_projection.weight)
    assert model.config.projection_dim == (16 if clip else 32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_complete_clip_checkpoint_sets_the_width_of_its_projection(whisper_folder, clip_folder, tmp_path):
    clip = CLIPModel.from_pretrained(clip_folder)
    clip.config.text_config.projection_dim = 512  # the class default, left standing in published configs
    clip.save_pretrained(tmp_path)
    model = WavLinkModel.from_audio_text_pretrained(str(whisper_folder), str(tmp_path))
    assert torch.equal(model.text_projection.weight, clip.text_projection.weight)


def test_a_projection_of_another_width_is_new_and_said_to_be(whisper_folder, clip_folder, caplog):
    model = WavLinkModel.from_audio_text_pretrained(str(whisper_folder), str(clip_folder), projection_dim=24)
    assert model.text_projection.weight.shape == (24, 32)
    assert "text projection" in caplog.text and "has 16 dims, not projection_dim=24" in caplog.text


def test_sentence_transformers_pooling_is_kept(whisper_folder, bert_folder, tmp_path):
    shutil.copytree(bert_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    towers = str(whisper_folder), str(tmp_path)
    assert WavLinkModel.from_audio_text_pretrained(*towers).config.text_pooling == "mean"
    assert WavLinkModel.from_audio_text_pretrained(*towers, text_pooling="cls").config.text_pooling == "cls"


def test_only_the_declared_weights_are_new(whisper_folder, bert_folder):
    towers = str(whisper_folder), str(bert_folder)
    first, second = (WavLinkModel.from_audio_text_pretrained(*towers, loss_type="sigmoid") for _ in range(2))
    other = second.state_dict()
    new = {name for name, value in first.state_dict().items() if not torch.equal(value, other[name])}
    assert new == {"audio_model.global_token", "audio_projection.weight", "text_projection.weight"}
    assert (round(first.logit_scale.exp().item(), 4), first.logit_bias.item()) == (10.0, -10.0)


def test_a_model_from_scratch_starts_as_its_config_says():
    audio = WhisperConfig(d_model=64, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=64)
    text = {"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = WavLinkModel(WavLinkConfig(audio, text, 64, initializer_range=0.3, logit_scale_init_value=1.5))
    positions = model.audio_model.encoder.embed_positions.weight
    assert torch.equal(positions, WhisperEncoder(audio).embed_positions.weight)  # sinusoids
    assert model.audio_projection.weight.std().item() == pytest.approx(0.3, rel=0.1)
    assert model.text_projection.weight.std().item() == pytest.approx(0.3, rel=0.1)
    assert model.audio_model.global_token.std().item() == pytest.approx(audio.init_std, rel=0.4)
    assert model.logit_scale.item() == 1.5


@pytest.mark.parametrize(
    ("tower", "key"),
    [
        ("whisper", "encoder.layer_norm.weight"),
        ("whisper", "encoder.embed_positions.weight"),
        ("clip", "text_model.final_layer_norm.bias"),
        ("bert", "encoder.layer.1.output.dense.weight"),
        ("modernbert", "layers.1.mlp.Wo.weight"),
    ],
)
def test_a_missing_weight_of_a_tower_is_named(tower, key, request, tmp_path):
    folders = {name: request.getfixturevalue(f"{name}_folder") for name in {"whisper", "bert", tower}}
    folders[tower] = edit(folders[tower], tmp_path, drop=[key])
    short = key.removeprefix("encoder.") if tower == "whisper" else key
    with pytest.raises(ValueError, match=rf"weights of {tmp_path} do not fit: missing \['{short}'\]"):
        WavLinkModel.from_audio_text_pretrained(
            str(folders["whisper"]), str(folders["bert" if tower == "whisper" else tower])
        )


@pytest.mark.parametrize(
    ("tower", "key"),
    [("whisper", "encoder.layers.2.fc1.bias"), ("clip", "text_model.extra"), ("bert", "encoder.extra")],
)
def test_an_unexpected_weight_of_a_tower_is_named(tower, key, request, tmp_path):
    folders = {name: request.getfixturevalue(f"{name}_folder") for name in {"whisper", "bert", tower}}
    folders[tower] = edit(folders[tower], tmp_path, add=[key])
    with pytest.raises(ValueError, match=r"do not fit: missing \[\], unexpected \['.*'\]"):
        WavLinkModel.from_audio_text_pretrained(
            str(folders["whisper"]), str(folders["bert" if tower == "whisper" else tower])
        )


@pytest.mark.parametrize(
    "key",
    [
        "audio_model.global_token",
        "audio_model.encoder.conv1.weight",
        "audio_projection.weight",
        "text_projection.weight",
        "text_model.embeddings.LayerNorm.bias",
        "logit_scale",
        "logit_bias",
    ],
)
def test_a_missing_weight_of_a_wavlink_is_named(key, model, tmp_path):
    model.save_pretrained(tmp_path / "whole")
    broken = edit(tmp_path / "whole", tmp_path / "broken", drop=[key])
    with pytest.raises(ValueError, match=rf"weights of .* do not fit: missing \['{key}'\], unexpected \[\]"):
        WavLinkModel.from_pretrained(broken)


def test_an_unexpected_weight_of_a_wavlink_is_named(model, tmp_path):
    model.save_pretrained(tmp_path / "whole")
    broken = edit(tmp_path / "whole", tmp_path / "broken", add=["audio_model.cls_token"])
    with pytest.raises(ValueError, match=r"missing \[\], unexpected \['audio_model.cls_token'\]"):
        WavLinkModel.from_pretrained(broken)


@pytest.mark.parametrize("folder", ["whisper_folder", "bert_folder", "clip_folder"])
def test_a_checkpoint_of_something_else_is_refused(folder, request):
    with pytest.raises(ValueError, match="not of a WavLink model; .*from_audio_text_pretrained"):
        WavLinkModel.from_pretrained(request.getfixturevalue(folder))


def test_a_tower_of_something_else_is_refused(whisper_folder, bert_folder):
    with pytest.raises(ValueError, match="is a 'bert' model; the audio tower must be a Whisper"):
        WavLinkModel.from_audio_text_pretrained(str(bert_folder), str(whisper_folder))


def settings(config) -> dict:
    """All but the dtype of the towers, which older transformers 5 write down only when they load."""
    found = config.to_diff_dict()
    for tower in ("audio_config", "text_config"):
        found[tower] = {name: value for name, value in found[tower].items() if name != "dtype"}
    return found


@pytest.mark.parametrize("tower", ["clip", "modernbert", "bert"])
@pytest.mark.parametrize("loss_type", ["info_nce", "sigmoid"])
def test_save_and_load_give_equal_outputs(tower, loss_type, request, tmp_path):
    model, processor = build(request, tower, loss_type=loss_type, matryoshka_dims=[16, 8])
    torch.nn.init.normal_(model.audio_model.global_token)
    model.logit_scale.data.fill_(1.25)
    model.logit_bias.data.fill_(-2.5)
    model.save_pretrained(tmp_path)
    loaded = WavLinkModel.from_pretrained(tmp_path)
    assert not loaded.training
    inputs = batch_of(processor)
    with torch.no_grad():
        expected, actual = model(**inputs).to_tuple(), loaded(**inputs).to_tuple()
    assert all(torch.equal(a, b) for a, b in zip(expected[:5], actual[:5], strict=True))
    assert same(loaded, model) and same(model, loaded)
    assert settings(loaded.config) == settings(model.config)


@pytest.mark.parametrize("broken", ["", "fp16"])
def test_weights_that_are_not_finite_are_refused_also_in_a_variant(broken, model, tmp_path):
    """A variant is another file than that which is read by default."""
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, variant="fp16")
    path = tmp_path / f"model{f'.{broken}' if broken else ''}.safetensors"
    state = load_file(path)
    state["text_projection.weight"][0, 0] = torch.nan
    save_file(state, path, metadata={"format": "pt"})
    for variant in ("", "fp16"):
        refused = pytest.raises(ValueError, match="text_projection.weight of .* holds NaN")
        with refused if variant == broken else nullcontext():
            WavLinkModel.from_pretrained(tmp_path, variant=variant or None)
    if not broken:
        with pytest.raises(ValueError, match="text_projection.weight of .* holds NaN"):
            WavLinkModel.from_pretrained(tmp_path)


def with_gamma(folder) -> None:
    """A weight that transformers takes for another one, under which the file has a whole one."""
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if name.endswith("LayerNorm.weight"))
    state[name.replace("weight", "gamma")] = torch.full_like(state[name], torch.nan)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def with_another_file(folder) -> None:
    state = load_file(folder / "model.safetensors")
    next(value for name, value in state.items() if name.endswith("LayerNorm.weight"))[0] = torch.nan
    save_file(state, folder / "other.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))


@pytest.mark.parametrize("change", [with_gamma, with_another_file])
def test_weights_of_other_names_and_files_are_checked_too(change, model, tmp_path):
    model.save_pretrained(tmp_path)
    change(tmp_path)
    for load in (
        WavLinkModel.from_pretrained,
        AutoModel.from_pretrained,
        partial(WavLinkModel.from_pretrained, dtype=torch.float32),
    ):
        with pytest.raises(ValueError, match="LayerNorm.weight of .* holds NaN"):
            load(tmp_path)
