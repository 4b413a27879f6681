"""WavLinkConfig: what it keeps through a save, the paper's three sizes, and what it refuses."""

import math

import pytest
import torch
from transformers import MODEL_MAPPING, BertConfig, CLIPTextConfig, MPNetConfig, WhisperConfig, XLNetConfig

from modeling_wavlink import WavLinkConfig, WavLinkModel
from modeling_wavlink.config_checks_wavlink import check_text_config
from modeling_wavlink.configuration_wavlink import nested_dims, text_max_length

TOWERS = [
    {"model_type": "clip_text_model", "hidden_size": 24},
    {"model_type": "modernbert", "hidden_size": 48},
    {"model_type": "bert", "hidden_size": 36},
]


@pytest.mark.parametrize("text_config", TOWERS, ids=lambda config: config["model_type"])
def test_round_trip(text_config, tmp_path):
    config = WavLinkConfig(
        audio_config=WhisperConfig(d_model=40, encoder_layers=3, encoder_attention_heads=4),
        text_config=text_config,
        projection_dim=20,
        matryoshka_dims=[20, 7],
        loss_type="sigmoid",
        text_pooling="mean",
        logit_scale_init_value=1.5,
        logit_bias_init_value=-3.0,
        logit_scale_max=50.0,
        initializer_range=0.1,
    )
    assert WavLinkConfig(label_smoothing=0.25).to_dict()["label_smoothing"] == 0.25
    config.save_pretrained(tmp_path)
    loaded = WavLinkConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == {**config.to_dict(), "transformers_version": loaded.transformers_version}
    assert type(loaded.audio_config) is WhisperConfig and loaded.audio_config.d_model == 40
    assert type(loaded.text_config) is type(config.text_config)
    assert loaded.text_config.hidden_size == text_config["hidden_size"]
    assert (loaded.matryoshka_dims, loaded.text_pooling, loaded.logit_scale_max) == ([20, 7], "mean", 50.0)


@pytest.mark.parametrize(
    ("size", "total", "audio", "text", "dims"),
    [
        ("base", 84.28, 20.85, 63.43, [512, 256, 128, 64]),
        ("small", 151.98, 88.55, 63.43, [512, 256, 128, 64]),
        ("large", 761.60, 637.95, 123.65, [768, 384, 192, 96]),
    ],
)
def test_parameter_counts_of_table_1(size, total, audio, text, dims):
    with torch.device("meta"):
        model = WavLinkModel(WavLinkConfig.for_size(size))

    def millions(*modules):
        return round(sum(p.numel() for module in modules for p in module.parameters()) / 1e6, 2)

    assert millions(model) == total
    assert millions(model.audio_model, model.audio_projection) == audio
    assert millions(model.text_model, model.text_projection) == text
    assert model.config.matryoshka_dims == dims
    assert model.config.text_config.projection_dim == dims[0]


def test_default_is_the_base_size():
    assert WavLinkConfig().to_dict() == WavLinkConfig.for_size("base").to_dict()


def test_for_size_takes_overrides():
    config = WavLinkConfig.for_size("large", loss_type="sigmoid", text_config=TOWERS[1])
    assert (config.loss_type, config.text_config.model_type, config.projection_dim) == ("sigmoid", "modernbert", 768)


@pytest.mark.parametrize(("loss_type", "scale", "bias"), [("info_nce", 1 / 0.07, 0.0), ("sigmoid", 10.0, -10.0)])
def test_scale_and_bias_start_as_their_papers_say(loss_type, scale, bias):
    config = WavLinkConfig(loss_type=loss_type)
    assert math.exp(config.logit_scale_init_value) == pytest.approx(scale)
    assert config.logit_bias_init_value == bias


def test_zero_is_a_start_like_any_other():
    config = WavLinkConfig(loss_type="sigmoid", logit_scale_init_value=0.0, logit_bias_init_value=0.0)
    assert (config.logit_scale_init_value, config.logit_bias_init_value) == (0.0, 0.0)


@pytest.mark.parametrize(("text_config", "pooling"), [*zip(TOWERS, ["eos", "cls", "cls"], strict=True)])
def test_pooling_follows_the_tower(text_config, pooling):
    assert WavLinkConfig(text_config=text_config).text_pooling == pooling


def test_nested_dims_are_halves():
    assert nested_dims(512) == [512, 256, 128, 64]
    assert nested_dims(100, levels=3) == [100, 50, 25]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss_type": "clip"}, "loss_type must be one of info_nce, sigmoid, got 'clip'"),
        ({"text_pooling": "max"}, "text_pooling must be one of eos, cls, mean, got 'max'"),
        ({"text_pooling": "eos", "text_config": TOWERS[2]}, "needs an eos_token_id, which this 'bert' config lacks"),
        (
            {"audio_config": {"model_type": "wav2vec2"}},
            "must be a whisper, clap_audio_model or passt config, got 'wav2vec2'",
        ),
        ({"text_config": {"model_type": "no_such_model"}}, "knows no model_type 'no_such_model'"),
        ({"matryoshka_dims": []}, "matryoshka_dims must be"),
        ({"matryoshka_dims": [1024]}, "between 1 and projection_dim=512"),
        ({"matryoshka_dims": [512, 0]}, "between 1 and"),
        ({"matryoshka_dims": [64, 64]}, "distinct"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, got 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing must be at least 0"),
        ({"label_smoothing": float("nan")}, "label_smoothing must be at least 0"),
        ({"label_smoothing": 0.1, "loss_type": "sigmoid"}, "label_smoothing=0.1 needs loss_type='info_nce'"),
        ({"projection_dim": 7}, r"got \[7, 3, 1, 0\]"),
    ],
)
def test_bad_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        WavLinkConfig(**fields)


HTSAT = {"model_type": "clap_audio_model", "hidden_size": 768, "patch_embeds_hidden_size": 96}


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        (
            {"model_type": "whisper", "d_model": 65},
            "the width of a 'whisper' tower, 65, must be a multiple of its heads",
        ),
        ({"model_type": "whisper", "encoder_attention_heads": -1}, "must be a multiple of its heads, -1"),
        ({"model_type": "bert", "num_attention_heads": 7}, "the width of a 'bert' tower, 768, .* of its heads, 7"),
        ({"model_type": "distilbert", "n_heads": 7}, "the width of a 'distilbert' tower, 768, "),
        ({"model_type": "whisper", "dropout": -(2**63)}, "dropout of a 'whisper' tower must be a probability, "),
        ({"model_type": "whisper", "activation_dropout": 3}, "activation_dropout of a 'whisper' tower must be a prob"),
        ({"model_type": "bert", "attention_probs_dropout_prob": 1.5}, "attention_probs_dropout_prob of a 'bert'"),
        ({"model_type": "gpt2", "resid_pdrop": -1, "eos_token_id": 1}, "resid_pdrop of a 'gpt2' tower must be a prob"),
        ({"model_type": "bert", "chunk_size_feed_forward": 7}, "chunk_size_feed_forward of a 'bert' tower must be 0"),
        ({"model_type": "bert", "add_cross_attention": True}, "a 'bert' cannot be the text tower, .* has no decoder"),
        (
            {"model_type": "clip_text_model", "layer_norm_eps": None},
            "layer_norm_eps of a 'clip_text_model' tower must",
        ),
        (
            {"model_type": "clip_text_model", "eos_token_id": None},
            "eos_token_id of a 'clip_text_model' tower must be a",
        ),
        (
            {"model_type": "roberta", "pad_token_id": None},
            "pad_token_id of a 'roberta' tower must be a token's number",
        ),
        (
            {"model_type": "mpnet", "pad_token_id": 514},
            "max_position_embeddings=512 of a 'mpnet' tower leaves no room",
        ),
        ({"model_type": "modernbert", "max_position_embeddings": -2}, "max_position_embeddings=-2 of a 'modernbert'"),
        (HTSAT | {"num_attention_heads": [4, 8, 16, 31]}, r"a divisor of each stage's width, of \[96, .*16, 31\]"),
        (HTSAT | {"num_attention_heads": [4, 8]}, r"a divisor of each stage's width, of \[96, .*got \[4, 8\]"),
        (HTSAT | {"flatten_patch_embeds": False}, "flatten_patch_embeds must be true"),
        (HTSAT | {"patch_stride": [1, 1]}, "spec_size=256, at most 4096, must be so many patches"),
        (HTSAT | {"patch_stride": [7, 7]}, "spec_size=256, at most 4096, must be so many patches"),
        (HTSAT | {"spec_size": 10**9}, "spec_size=1000000000, at most 4096, "),
        (HTSAT | {"spec_size": 260}, "that 3 stages can halve them"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else None,
)
def test_towers_that_could_not_embed_are_refused(tower, message):
    """Without these checks they fail while they are built or embed, in an error of transformers or torch."""
    name = "audio_config" if tower["model_type"] in ("whisper", "clap_audio_model") else "text_config"
    with pytest.raises(ValueError, match=message):
        WavLinkConfig(**{name: tower, "text_pooling": "mean", "pooling": "token"})


def test_every_config_of_transformers_is_taken_or_refused_as_no_text_tower():
    """Models that are not tested as towers have other fields: no heads, no limit of length, sizes of their own."""
    taken = []
    for kind in MODEL_MAPPING:
        try:
            config = kind()
        except Exception:  # it has no defaults
            continue
        try:
            check_text_config(config)
            taken.append(config.model_type)
        except ValueError as error:
            assert "cannot be the text tower" in str(error), config.model_type
    assert {"bert", "clip_text_model", "fnet", "gpt2", "xlnet"} <= set(taken) and len(taken) > 100


def test_unknown_size_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="base, small, large, got 'tiny'"):
        WavLinkConfig.for_size("tiny")


@pytest.mark.parametrize("folder", ["whisper_folder", "bert_folder", "clip_folder"])
def test_config_of_another_model_is_refused(folder, request):
    with pytest.raises(ValueError, match="not of a WavLink model; .*from_audio_text_pretrained"):
        WavLinkConfig.from_pretrained(request.getfixturevalue(folder))


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (CLIPTextConfig(), 77),
        (BertConfig(max_position_embeddings=512), 512),
        (MPNetConfig(max_position_embeddings=514, pad_token_id=1), 512),  # positions start at pad_token_id + 1
        (XLNetConfig(), None),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_text_max_length(config, limit):
    assert text_max_length(config) == limit


def test_a_config_keeps_its_fields_through_saving_and_loading(tmp_path):
    config = WavLinkConfig.for_size("base")
    config.save_pretrained(tmp_path)
    loaded = WavLinkConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict() and loaded.to_diff_dict() == config.to_diff_dict()
    loaded.save_pretrained(tmp_path / "again")
    assert loaded.custom_pipelines and not hasattr(config, "custom_pipelines")
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "config.json").read_text()
