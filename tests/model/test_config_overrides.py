"""Fields of the config that `from_pretrained` is given are checked as those of a new config are."""

import json
import math

import pytest
from transformers import AutoModel

from modeling_wavlink import WavLinkConfig, WavLinkModel

BAD = [
    ("pooling", "nope"),
    ("pooling", None),
    ("pooling", ["token"]),
    ("text_pooling", "nope"),
    ("text_pooling", "eos"),  # this BERT has no end of text
    ("text_pooling", None),
    ("matryoshka_dims", [9999]),
    ("matryoshka_dims", []),
    ("matryoshka_dims", [16, 16]),
    ("matryoshka_dims", [True]),
    ("matryoshka_dims", 16),
    ("matryoshka_dims", "16"),
    ("matryoshka_dims", None),
    ("projection_dim", 0),
    ("projection_dim", 1.5),
    ("loss_type", "nope"),
    ("loss_type", None),
    ("logit_scale_max", -1),
    ("logit_scale_max", "100"),
    ("logit_scale_max", math.nan),
    ("logit_scale_init_value", math.inf),
    ("logit_bias_init_value", None),
    ("initializer_range", -0.1),
    ("label_smoothing", 1.0),
    ("label_smoothing", math.nan),
    ("label_smoothing", "0.1"),
    ("label_smoothing", None),
    ("audio_config", 3),
    ("text_config", None),
    ("frame_pooling", {"audio_config": {"frame_pooling": 1.5}}),
    ("frame_pooling_layer", {"audio_config": {"frame_pooling": 2, "frame_pooling_layer": 9}}),
    ("layers", {"audio_config": {"encoder_layers": 5000}}),
    ("layers", {"text_config": {"num_hidden_layers": 5000}}),
]


@pytest.fixture(scope="module")
def folders(whisper_folder, bert_folder, tmp_path_factory):
    """A WavLink that pools a token, and one that pools the mean."""
    found = {}
    for pooling in ("token", "mean"):
        found[pooling] = tmp_path_factory.mktemp(pooling)
        towers = str(whisper_folder), str(bert_folder)
        WavLinkModel.from_audio_text_pretrained(*towers, pooling=pooling).save_pretrained(found[pooling])
    return found


@pytest.mark.parametrize("load", [WavLinkModel, AutoModel, WavLinkConfig], ids=lambda load: load.__name__)
@pytest.mark.parametrize(("field", "value"), BAD, ids=str)
def test_bad_fields_are_named(field, value, load, folders):
    options = value if isinstance(value, dict) else {field: value}
    with pytest.raises(ValueError, match=field) as raised:
        load.from_pretrained(folders["token"], **options)
    assert "weights" not in str(raised.value)


@pytest.mark.parametrize("load", [WavLinkModel, AutoModel], ids=lambda load: load.__name__)
@pytest.mark.parametrize("field", ["loss_type", "pooling", "text_pooling"])
def test_a_config_changed_after_its_check_is_checked_again(field, load, folders):
    config = WavLinkConfig.from_pretrained(folders["token"])
    setattr(config, field, "nope")
    with pytest.raises(ValueError, match=f"^{field} must be one of .*'nope'"):
        load.from_pretrained(folders["token"], config=config)
    with pytest.raises(ValueError, match=f"^{field} must be one of"):
        WavLinkModel(config)


@pytest.mark.parametrize("load", [WavLinkModel, AutoModel], ids=lambda load: load.__name__)
def test_good_fields_are_taken(load, folders):
    fields = {"label_smoothing": 0.1, "logit_scale_max": 50.0, "pooling": "mean", "matryoshka_dims": [32, 8]}
    model = load.from_pretrained(folders["token"], **fields, audio_config={"frame_pooling": 2})
    assert {name: getattr(model.config, name) for name in fields} == fields
    assert model.audio_model.config.frame_pooling == 2 and model.audio_model.config.encoder_layers == 2
    assert not model.audio_model.global_token.requires_grad  # as with any model that pools the mean


@pytest.mark.parametrize("load", [WavLinkModel, AutoModel], ids=lambda load: load.__name__)
@pytest.mark.parametrize("pooling", ["token", "token_mean"])
def test_a_token_that_never_learned_is_not_pooled(pooling, load, folders):
    with pytest.raises(ValueError, match=f"pooling='{pooling}' needs a trained global token, which .* lacks"):
        load.from_pretrained(folders["mean"], pooling=pooling)
    config = WavLinkConfig.from_pretrained(folders["mean"])
    config.pooling = pooling
    with pytest.raises(ValueError, match="needs a trained global token"):
        load.from_pretrained(folders["mean"], config=config)
    assert load.from_pretrained(folders["mean"], pooling="mean").config.pooling == "mean"


def test_a_saved_config_names_no_folder(folders):
    """Neither that of the towers it was made of nor that of a checkpoint it was loaded from."""
    for folder in folders.values():
        again = folder / "again"
        WavLinkModel.from_pretrained(folder).save_pretrained(again)
        for file in (folder / "config.json", again / "config.json"):
            text = file.read_text()
            assert "_name_or_path" not in text and str(folder.parent) not in text
            assert json.loads(text)["audio_config"]["model_type"] == "whisper"
