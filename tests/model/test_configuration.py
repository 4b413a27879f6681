"""WavLinkConfig: what it keeps through a save, the paper's three sizes, and what it refuses."""

import math

import pytest
import torch
from transformers import BertConfig, CLIPTextConfig, MPNetConfig, WhisperConfig

from modeling_wavlink import WavLinkConfig, WavLinkModel
from modeling_wavlink.configuration_wavlink import nested_dims, text_max_length

TOWERS = [
    {"model_type": "clip_text_model", "hidden_size": 24},
    {"model_type": "modernbert", "hidden_size": 48},
    {"model_type": "bert", "hidden_size": 36},
]


@pytest.mark.parametrize("text_config", TOWERS, ids=lambda config: config["model_type"])
def test_round_trip(text_config, tmp_path):
    config = WavLinkConfig(
        audio_config=WhisperConfig(d_model=40, encoder_layers=3),
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
