"""The front end without torch: Whisper's log-mel in numpy, and tokens by the tokenizers package alone."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer, WhisperFeatureExtractor

from processing import WavLinkFeatureExtractor, WavLinkProcessor
from processing.fast_tokenizer import FastTokenizer
from processing.log_mel_extractor import LogMelExtractor, mel_filters
from processing.text_inputs_wavlink import TextInputs
from tests.conftest import RATE, tone
from wavlink.backends.standalone import StandaloneProcessor

CLICK = np.zeros(RATE, np.float32)
CLICK[777] = 1
CLIPS = {
    "tone of 0.1 s": tone(440, 0.1),
    "tone of 0.73 s": tone(3000, 0.73, 1),
    "noise of 2.5 s": np.random.default_rng(0).normal(scale=0.2, size=40001).astype(np.float32),
    "silence": np.zeros(8000, np.float32),
    "click": CLICK,
    "one sample": np.full(1, 0.5, np.float32),
    "quiet": 1e-6 * tone(900, 1.0, 2),
    "30 s": tone(200, 30.0, 3),
}
TEXTS = [
    "a dog barks",
    "the loud bell rings . the low cat meows",
    "",
    "rain " * 60,
    "Déjà vu, 狗! <|endoftext|> [SEP]",
]


def pair(padding: str = "longest", bands: int = 80) -> tuple[WavLinkFeatureExtractor, LogMelExtractor]:
    extractor = WavLinkFeatureExtractor(feature_size=bands, padding=padding)
    return extractor, LogMelExtractor(extractor.to_dict())


def assert_same(found: dict, expected) -> None:
    assert found.keys() == dict(expected).keys()
    for name in found:
        assert found[name].dtype == expected[name].dtype and found[name].shape == expected[name].shape
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("bands", [80, 128])
def test_mel_filters_are_whispers(bands):
    expected = WhisperFeatureExtractor(feature_size=bands).mel_filters
    np.testing.assert_allclose(mel_filters(bands, 400, RATE), expected, atol=1e-8)


@pytest.mark.parametrize("padding", ["longest", "max_length"])
@pytest.mark.parametrize("name", CLIPS)
def test_log_mel_of_a_clip_equals_the_extractors(name, padding):
    extractor, alone = pair(padding)
    expected = extractor(CLIPS[name], sampling_rate=RATE, return_tensors="np")
    assert_same(alone(CLIPS[name], sampling_rate=RATE), expected)


def test_log_mels_of_a_padded_batch_equal_the_extractors():
    extractor, alone = pair(bands=128)
    clips = list(CLIPS.values())[:7]
    found = alone(clips, sampling_rate=RATE)
    assert_same(found, extractor(clips, sampling_rate=RATE, return_tensors="np"))
    for row, clip in enumerate(clips):
        frames = found["input_features_mask"][row].sum()
        own = alone(clip, sampling_rate=RATE)["input_features"][0]
        np.testing.assert_array_equal(found["input_features"][row, :, :frames], own)


@pytest.mark.parametrize(
    "arguments",
    [
        (tone(440, 45.0), RATE),
        (np.zeros(0, np.float32), RATE),
        (np.zeros((2, 100), np.float32), RATE),
        (np.zeros(100, np.int16), RATE),
        (np.full(100, np.nan, np.float32), RATE),
        (np.full(100, 1000, np.float32), RATE),
        (tone(), 8000),
        (tone(), None),
        ([], RATE),
    ],
    ids=str,
)
def test_refused_clips_have_the_extractors_errors(arguments):
    extractor, alone = pair()
    with pytest.raises(ValueError) as expected:
        extractor(arguments[0], sampling_rate=arguments[1])
    with pytest.raises(ValueError) as found:
        alone(arguments[0], sampling_rate=arguments[1])
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dither": 0.1}, "needs torch"),
        ({"feature_extractor_type": "WavLinkClapFeatureExtractor"}, "needs torch"),
        ({"hop_length": 0}, "hop_length of the feature extractor must be a whole number"),
        ({"padding": "left"}, "padding must be one of longest, max_length"),
    ],
)
def test_settings_of_another_extractor_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        LogMelExtractor(WavLinkFeatureExtractor().to_dict() | change)


@pytest.fixture(params=["bert", "clip", "modernbert"])
def tokenizers(request) -> tuple:
    folder = request.getfixturevalue(f"{request.param}_folder")
    return AutoTokenizer.from_pretrained(folder), FastTokenizer(folder)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": True},
        {"padding": True, "truncation": "longest_first", "max_length": 7},
        {"padding": "max_length", "truncation": True, "max_length": 20},
        {"padding": "max_length", "truncation": True},
        {"add_special_tokens": False, "return_offsets_mapping": True},
    ],
)
def test_tokens_equal_those_of_transformers(tokenizers, options):
    tokenizer, alone = tokenizers
    expected = tokenizer(TEXTS, **options, verbose=False)
    found = alone(TEXTS, **options)
    for name in found:
        assert found[name] == [[tuple(x) if isinstance(x, list) else x for x in row] for row in expected[name]], name
    assert alone(TEXTS[0], **options)["input_ids"] == found["input_ids"][0] or options.get("padding") is True
    assert (alone.model_max_length, alone.unk_token_id) == (tokenizer.model_max_length, tokenizer.unk_token_id)
    assert alone(TEXTS)["input_ids"] == tokenizer(TEXTS, verbose=False)["input_ids"]  # no limit of an earlier call


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_are_padded_and_truncated_on_the_saved_side(bert_folder, tmp_path, side):
    tokenizer = AutoTokenizer.from_pretrained(bert_folder, padding_side=side, truncation_side=side)
    tokenizer.save_pretrained(tmp_path)
    options = {"padding": True, "truncation": True, "max_length": 5}
    found = FastTokenizer(tmp_path)(TEXTS, **options)
    assert found["input_ids"] == tokenizer(TEXTS, **options)["input_ids"]
    assert found["attention_mask"] == tokenizer(TEXTS, **options)["attention_mask"]


@pytest.mark.parametrize("text", ["bert", "clip"])
@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_processor_makes_the_same_inputs(request, tmp_path, text, padding):
    towers = [str(request.getfixturevalue(f"{name}_folder")) for name in ("whisper", text)]
    processor = WavLinkProcessor.from_audio_text_pretrained(*towers, padding=padding)
    processor.save_pretrained(tmp_path)
    alone = StandaloneProcessor(tmp_path)
    clips = list(CLIPS.values())[:3]
    found = alone(text=TEXTS, audio=clips, sampling_rate=RATE)
    expected = processor(text=TEXTS, audio=clips, sampling_rate=RATE, return_tensors="np")
    assert_same(found, {name: expected[name] for name in found})
    assert isinstance(processor, TextInputs) and isinstance(alone, TextInputs)
    for wrong in ({"text": []}, {"text": ["\ud83d"]}, {"text": [1]}, {}):
        with pytest.raises(ValueError) as refused:
            processor(**wrong)
        with pytest.raises(ValueError) as also:
            alone(**wrong)
        assert str(also.value) == str(refused.value)


def test_a_truncated_text_is_noted_once(bert_folder, whisper_folder, tmp_path, caplog):
    WavLinkProcessor.from_audio_text_pretrained(str(whisper_folder), str(bert_folder)).save_pretrained(tmp_path)
    alone = StandaloneProcessor(tmp_path)
    for _ in range(2):
        assert alone(text=[TEXTS[3]])["input_ids"].shape == (1, 32)
    assert caplog.text.count("over the text tower's limit of 32 tokens are truncated") == 1


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "processor_config.json"])
@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_missing_or_damaged_files_are_named(processor, tmp_path, name, content):
    processor.save_pretrained(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{tmp_path}.*"):
        StandaloneProcessor(tmp_path)


def test_saved_settings_are_read_from_either_file(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())["feature_extractor"]
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
    assert StandaloneProcessor(tmp_path).feature_extractor.n_samples == 480000
