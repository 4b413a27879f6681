"""Text and sound in one call: what comes out, whose options are whose, and what loads without this package."""

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
from tests.conftest import RATE, tone, word_level_tokenizer
from tests.processes import run_process

TEXT, SOUND, MASK = {"input_ids", "attention_mask"}, {"input_features"}, {"input_features_mask"}
LONG = "a dog barks " * 20  # 62 tokens with [CLS] and [SEP]; the tower has 32 positions


@pytest.fixture
def warnings(caplog):
    """The messages of a test that has seen no `warning_once` yet."""
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
    ("options", "frames", "tokens"),
    [
        ({}, 100, 4),
        ({"padding": True}, 100, 4),
        ({"padding": "longest"}, 100, 4),
        ({"padding": "max_length"}, 3000, 32),
        ({"padding": "max_length", "max_length": 7}, 3000, 7),
        ({"audio_kwargs": {"padding": "max_length"}}, 3000, 4),
        ({"text_kwargs": {"padding": "max_length", "max_length": 9}}, 100, 9),
        ({"text_kwargs": {"padding": "longest"}, "audio_kwargs": {"padding": "max_length"}}, 3000, 4),
        ({"common_kwargs": {"padding": True}}, 100, 4),
        ({"common_kwargs": {"padding": "max_length"}}, 3000, 32),
        ({"padding": "max_length", "common_kwargs": {"padding": True}}, 3000, 32),
        ({"pad_to_multiple_of": 8}, 104, 8),
    ],
)
def test_options_reach_both_modalities_or_the_one_they_are_given_to(processor, options, frames, tokens):
    options = {**options, "audio_kwargs": {"sampling_rate": RATE, **options.get("audio_kwargs", {})}}
    inputs = processor(text=["a dog", "rain"], audio=tone(), return_tensors="pt", **options)
    assert inputs["input_features"].shape[-1] == frames
    assert ("input_features_mask" in inputs) == (frames < 3000)
    assert inputs["input_ids"].shape == (2, tokens)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "max_length", "audio_kwargs": {"padding": "longest"}},
        {"padding": "max_length", "text_kwargs": {"padding": "do_not_pad"}},
        {"max_length": 5, "text_kwargs": {"max_length": 5}},
        {"return_tensors": "pt", "text_kwargs": {"return_tensors": "np"}},
    ],
)
def test_an_option_given_twice_is_refused(processor, options):
    with pytest.raises(ValueError, match="was given twice: in (text|audio)_kwargs and beside it"):
        processor(text=["a dog"], audio=tone(), sampling_rate=RATE, **options)


@pytest.mark.parametrize("padding", [False, "do_not_pad"])
def test_without_padding_there_are_lists_of_unequal_lengths(processor, padding):
    clips = [tone(440, 0.05), tone(440, 0.03)]
    inputs = processor(text=["a dog", "rain"], audio=clips, sampling_rate=RATE, padding=padding)
    assert [len(ids) for ids in inputs["input_ids"]] == [4, 3] and set(inputs) == TEXT | SOUND
    assert [features.shape for features in inputs["input_features"]] == [(80, 5), (80, 3)]
    with pytest.raises(ValueError, match="padding"):
        processor(text=["a dog", "rain"], padding=padding, return_tensors="pt")


def test_truncation_reaches_the_text(processor):
    by_default = processor(text=LONG, return_tensors="np")["input_ids"]
    for truncation in (True, "longest_first", "only_first"):
        np.testing.assert_array_equal(
            processor(text=LONG, truncation=truncation, return_tensors="np").input_ids, by_default
        )
    for truncation in (False, "do_not_truncate"):
        assert processor(text=LONG, truncation=truncation, return_tensors="np")["input_ids"].shape == (1, 62)


def test_masks_can_be_left_out_where_nothing_is_padded(processor):
    one = processor(text="a dog", audio=tone(), sampling_rate=RATE, return_attention_mask=False, return_tensors="pt")
    assert set(one) == {"input_ids", "input_features"}
    with pytest.raises(ValueError, match="clips that are padded need their input_features_mask"):
        processor(audio=[tone(), tone(300, 0.5)], sampling_rate=RATE, return_attention_mask=False)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sample_rate": RATE, "sampling_rate": RATE}, ["sample_rate"]),
        ({"sampling_rate": RATE, "do_resize": True, "nonsense": 1}, ["do_resize", "nonsense"]),
        ({"audio_kwargs": {"sampling_rate": RATE, "sample_rate": RATE}}, ["sample_rate"]),
        ({"sampling_rate": RATE, "common_kwargs": {"nonsense": 1}}, ["nonsense"]),
        ({"sampling_rate": RATE, "images_kwargs": {"size": 3}}, ["images_kwargs"]),
        ({"sampling_rate": RATE, "images_kwargs": {}, "videos_kwargs": None}, []),
    ],
)
def test_unknown_options_are_warned_about(processor, warnings, options, named):
    processor(text=["a dog"], audio=tone(), **options)
    assert [message.split("`")[1] for message in warnings()] == named


def test_what_a_tokenizer_was_loaded_with_counts_where_the_call_says_nothing(bert_folder):
    load = PreTrainedTokenizerFast.from_pretrained
    padded = WavLinkProcessor(WavLinkFeatureExtractor(), load(bert_folder, padding="max_length", max_length=20))
    assert padded(text=["a dog"], return_tensors="pt")["input_ids"].shape == (1, 20)
    assert padded(text=["a dog"], padding="longest", return_tensors="pt")["input_ids"].shape == (1, 4)
    assert padded(text=LONG, padding=True, return_tensors="pt")["input_ids"].shape == (1, 32)
    listed = WavLinkProcessor(WavLinkFeatureExtractor(), load(bert_folder, padding=False))
    assert [len(ids) for ids in listed(text=["a dog", "rain"])["input_ids"]] == [4, 3]


def test_a_max_length_over_the_towers_limit_is_warned_about(processor, warnings):
    assert processor(text=LONG, max_length=50, return_tensors="pt")["input_ids"].shape == (1, 32)
    assert len(warnings()) == 1 and "limit of 32 tokens" in warnings()[0]


def test_a_tokenizer_without_a_limit_pads_to_the_longest(unlimited):
    processor = WavLinkProcessor(WavLinkFeatureExtractor(), unlimited)
    inputs = processor(text=["a dog", "rain"], padding="max_length", return_tensors="pt")
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
        ({"audios": [0.5]}, "give text, audio or both: `audios` is now called `audio`"),
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


@pytest.mark.slow
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


def test_a_negative_max_length_is_refused(processor):
    with pytest.raises(ValueError, match="max_length must be a number of tokens, got -1"):
        processor(text="a dog", max_length=-1)
