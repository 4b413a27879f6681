"""Text and sound in one call: what comes out, whose options are whose, and what a stranger who loads it gets."""

import logging
import os
import sys

import numpy as np
import pytest
import torch
from transformers import AutoConfig, BertConfig, PreTrainedTokenizerFast, WhisperFeatureExtractor
from transformers.utils.logging import warning_once

from modeling_wavlink.configuration_wavlink import _POSITIONS_START_AFTER_PADDING, text_max_length
from processing import WavLinkFeatureExtractor, WavLinkProcessor

from .conftest import RATE, tone, word_level_tokenizer
from .processes import run_process

TEXT, SOUND, MASK = {"input_ids", "attention_mask"}, {"input_features"}, {"input_features_mask"}
LONG = "a dog barks " * 20  # 62 tokens with [CLS] and [SEP]; the tower has 32 positions


@pytest.fixture
def warnings(caplog):
    """The messages of a test that has heard no `warning_once` yet."""
    warning_once.cache_clear()
    caplog.set_level(logging.WARNING, logger="processing.processing_wavlink")
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("processing")]


@pytest.fixture(scope="module")
def unlimited() -> PreTrainedTokenizerFast:
    """A tokenizer that was saved without a limit."""
    tokenizer = word_level_tokenizer("[CLS]", "[SEP]", "[PAD]")
    tokenizer.model_max_length = int(1e30)
    return tokenizer


def test_text_alone(processor):
    inputs = processor(text=["a dog", "the cat meows"], return_tensors="pt")
    assert set(inputs) == TEXT
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert processor.tokenizer.decode(inputs["input_ids"][0]) == "[CLS] a dog [SEP] [PAD]"


def test_one_sentence_is_a_batch_of_one(processor):
    assert torch.equal(
        processor(text="a dog", return_tensors="pt")["input_ids"],
        processor(text=["a dog"], return_tensors="pt")["input_ids"],
    )


def test_sound_alone_has_no_attention_mask(processor):
    inputs = processor(audio=[tone(440, 0.05), tone(440, 0.03)], sampling_rate=RATE, return_tensors="pt")
    assert set(inputs) == SOUND | MASK
    assert inputs["input_features"].shape == (2, 80, 5)
    assert inputs["input_features_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def test_text_and_sound_may_differ_in_number(processor):
    inputs = processor(text=["a dog", "the cat", "rain"], audio=tone(), sampling_rate=RATE, return_tensors="pt")
    assert set(inputs) == TEXT | SOUND | MASK
    assert len(inputs["input_ids"]) == 3 and len(inputs["input_features"]) == 1


@pytest.mark.parametrize("return_tensors", [None, "np"])
def test_what_is_returned_without_torch(processor, return_tensors):
    inputs = processor(text=["a dog"], audio=tone(), sampling_rate=RATE, return_tensors=return_tensors)
    assert isinstance(inputs["input_ids"], list if return_tensors is None else np.ndarray)
    assert isinstance(inputs["input_features"], np.ndarray)


@pytest.mark.parametrize(
    ("options", "frames"),
    [
        ({}, 100),
        ({"padding": True}, 100),
        ({"padding": "longest"}, 100),
        ({"padding": "max_length"}, 3000),
        ({"audio_kwargs": {"padding": "max_length"}}, 3000),
        ({"padding": "max_length", "audio_kwargs": {"padding": "longest"}}, 100),
        ({"common_kwargs": {"padding": True}}, 100),
        ({"padding": "max_length", "common_kwargs": {"padding": True}}, 3000),
    ],
)
def test_padding_is_the_sounds_and_texts_go_to_the_longest(processor, options, frames):
    options = {**options, "audio_kwargs": {"sampling_rate": RATE, **options.get("audio_kwargs", {})}}
    inputs = processor(text=["a dog", "rain"], audio=tone(), return_tensors="pt", **options)
    assert inputs["input_features"].shape[-1] == frames
    assert ("input_features_mask" in inputs) == (frames == 100)
    assert inputs["input_ids"].shape == (2, 4)


def test_a_processor_of_the_papers_way_pads_to_30_s_by_itself(processor):
    paper = WavLinkProcessor(WavLinkFeatureExtractor(padding="max_length"), processor.tokenizer)
    assert paper(audio=tone(), sampling_rate=RATE)["input_features"].shape == (1, 80, 3000)


def test_options_as_sentence_transformers_hands_them_on(processor):
    by_modality = {
        "text_kwargs": {"padding": True, "truncation": "longest_first", "max_length": 5},
        "images_kwargs": {},
        "audio_kwargs": {"padding": True, "sampling_rate": RATE},
        "videos_kwargs": {},
        "common_kwargs": {"return_tensors": "pt"},
    }
    inputs = processor(text=[LONG, "rain"], audio=[tone()], **by_modality)
    assert inputs["input_features"].shape == (1, 80, 100)
    assert processor.tokenizer.batch_decode(inputs["input_ids"]) == [
        "[CLS] a dog barks [SEP]",
        "[CLS] rain [SEP] [PAD] [PAD]",
    ]


def test_options_of_the_tokenizer_go_through(processor):
    inputs = processor(text=["a dog"], add_special_tokens=False, text_kwargs={"padding": "max_length"})
    assert len(inputs["input_ids"][0]) == 32 and sum(inputs["attention_mask"][0]) == 2


def test_bare_arrays_by_modality_are_taken_at_the_models_rate_with_one_warning(processor, warnings):
    given = {"audio": [tone()], "audio_kwargs": {"padding": True}, "common_kwargs": {"return_tensors": "pt"}}
    inputs = [processor(**given), processor(**given)][-1]
    expected = processor(audio=[tone()], sampling_rate=RATE, return_tensors="pt")
    assert torch.equal(inputs["input_features"], expected["input_features"])
    assert len(warnings()) == 1 and "16000 Hz is assumed" in warnings()[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampling_rate": 44100},
        {"audio_kwargs": {"sampling_rate": 44100}},
        {"sampling_rate": 44100, "audio_kwargs": {}},
    ],
)
def test_a_missing_or_wrong_rate_is_refused(processor, options):
    with pytest.raises(ValueError, match="44100 Hz.*16000 Hz" if options else "sampling_rate is missing"):
        processor(audio=tone(), **options)


def test_text_over_the_limit_is_truncated_with_one_warning(processor, warnings):
    for texts in ([LONG, "rain"], [LONG + "the cat"], LONG):
        ids = processor(text=texts, return_tensors="pt")["input_ids"]
        assert ids.shape[1] == 32 and ids[0, -1] == processor.tokenizer.sep_token_id
    assert len(warnings()) == 1 and "limit of 32 tokens" in warnings()[0]


def test_what_fits_or_was_asked_for_is_no_reason_to_warn(processor, warnings):
    assert processor(text="a " * 30, return_tensors="pt")["input_ids"].shape == (1, 32)
    assert processor(text=LONG, max_length=8, return_tensors="pt")["input_ids"].shape == (1, 8)
    padded = processor(text="rain", text_kwargs={"padding": "max_length"}, return_tensors="pt")
    assert padded["input_ids"].shape == (1, 32)
    assert warnings() == []


def test_max_length_cannot_raise_the_limit_and_truncation_can_be_refused(processor):
    assert processor(text=LONG, max_length=50, return_tensors="pt")["input_ids"].shape == (1, 32)
    assert processor(text=LONG, truncation=False, return_tensors="pt")["input_ids"].shape == (1, 62)


def test_a_tokenizer_without_a_limit_truncates_nothing(unlimited, warnings):
    processor = WavLinkProcessor(WavLinkFeatureExtractor(), unlimited)
    assert processor(text=[LONG, "rain"], return_tensors="pt")["input_ids"].shape == (2, 62)
    assert processor(text=LONG, max_length=8, return_tensors="pt")["input_ids"].shape == (1, 8)
    assert warnings() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give text, audio or both"),
        ({"text": []}, "list of at least one string"),
        ({"text": ["a dog", 3]}, "must be a string"),
        ({"text": ["a dog", None]}, "must be a string"),
        ({"text": 3}, "must be a string"),
        ({"text": {"caption": "a dog"}}, "must be a string"),
        ({"text": [["a dog"], ["rain"]]}, "must be a string"),
        ({"audio": [], "sampling_rate": RATE}, "at least one"),
        ({"text": "a dog", "audio": np.zeros((2, 400)), "sampling_rate": RATE}, "average the channels"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_mel_bins_and_padding_of_a_pretrained_whisper(bert_folder, tmp_path):
    WhisperFeatureExtractor(feature_size=128).save_pretrained(tmp_path)
    processor = WavLinkProcessor.from_audio_text_pretrained(str(tmp_path), str(bert_folder), padding="max_length")
    assert processor(audio=tone(), sampling_rate=RATE)["input_features"].shape == (1, 128, 3000)


@pytest.mark.parametrize(("tower", "limit"), [("bert", 32), ("clip", 24), ("modernbert", 32)])
def test_the_limit_of_a_pretrained_text_tower(tower, limit, whisper_folder, request):
    folder = request.getfixturevalue(f"{tower}_folder")
    processor = WavLinkProcessor.from_audio_text_pretrained(str(whisper_folder), str(folder))
    assert processor(text="a " * 99, return_tensors="pt")["input_ids"].shape == (1, limit)


@pytest.mark.parametrize("model_type", ["bert", *_POSITIONS_START_AFTER_PADDING])
def test_the_limit_is_the_towers_where_the_tokenizer_has_none(model_type, unlimited, whisper_folder, tmp_path):
    config = AutoConfig.for_model(model_type, max_position_embeddings=20, pad_token_id=1)
    config.save_pretrained(tmp_path)
    unlimited.save_pretrained(tmp_path)
    processor = WavLinkProcessor.from_audio_text_pretrained(str(whisper_folder), str(tmp_path))
    limit = 20 if model_type == "bert" else 18
    assert processor(text=LONG, return_tensors="pt")["input_ids"].shape == (1, limit)
    assert limit == text_max_length(config)


def test_a_tokenizer_without_a_padding_token_gets_one(whisper_folder, unlimited, tmp_path):
    BertConfig().save_pretrained(tmp_path)
    backend = unlimited.backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]").save_pretrained(tmp_path)
    processor = WavLinkProcessor.from_audio_text_pretrained(str(whisper_folder), str(tmp_path))
    assert processor(text=["a dog", "rain"], return_tensors="pt")["attention_mask"].tolist() == [[1] * 4, [1, 1, 1, 0]]


def test_model_input_names_are_the_models(processor):
    given = processor(text=["a dog"], audio=tone(), sampling_rate=RATE, return_tensors="pt")
    assert set(given) <= set(processor.model_input_names)


LOAD = """
import sys
sys.modules.update({"processing": None, "modeling_wavlink": None})  # as where they are not installed
import numpy as np
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained("saved", trust_remote_code=True)
inputs = processor(text=["a dog"], audio=np.load("clip.npy"), sampling_rate=16000, return_tensors="np")
np.savez("inputs.npz", **inputs)
"""


def test_auto_processor_does_the_same_in_a_clean_process(processor, tmp_path):
    processor = WavLinkProcessor(WavLinkFeatureExtractor(padding="max_length"), processor.tokenizer)
    processor.save_pretrained(tmp_path / "saved")
    np.save(tmp_path / "clip.npy", tone(300, 0.4))
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", LOAD]
    done = run_process(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = processor(text=["a dog"], audio=tone(300, 0.4), sampling_rate=RATE, return_tensors="np")
    loaded = np.load(tmp_path / "inputs.npz")
    assert set(loaded) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(loaded[name], expected[name])
