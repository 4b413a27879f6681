"""`feature_extractor.pad`: features of single clips become the batch that the processor makes of their audio."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import BatchFeature, WhisperFeatureExtractor

from processing import WavLinkClapFeatureExtractor, WavLinkFeatureExtractor
from tests.conftest import RATE, tone

CLIPS = [tone(300, 0.5, 1), tone(500, 0.05, 2), tone(700, 1.2345, 3)]
CLAP_RATE = 48000


def long_tone(seconds: float) -> np.ndarray:
    return np.sin(np.arange(int(seconds * CLAP_RATE)) / 9).astype(np.float32)


def equal(found, expected) -> None:
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(expected[name]))


FORMS = {
    "[F, T]": lambda one: {"input_features": one["input_features"][0]},
    "[1, F, T]": lambda one: {"input_features": one["input_features"]},
    "with its mask": lambda one: {name: value[0] for name, value in one.items()},
    "a BatchFeature": lambda one: one,
    "lists, as datasets.map stores them": lambda one: {"input_features": one["input_features"][0].tolist()},
    "float64": lambda one: {"input_features": one["input_features"][0].double()},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_single_clips_make_the_processors_own_batch(processor, form):
    extractor = processor.feature_extractor
    expected = extractor(CLIPS, sampling_rate=RATE, return_tensors="pt")
    features = [form(extractor(clip, sampling_rate=RATE, return_tensors="pt")) for clip in CLIPS]
    batch = extractor.pad(features, return_tensors="pt")
    equal(batch, expected)
    assert batch["input_features"].dtype == torch.float32 and batch["input_features_mask"].dtype == torch.int64
    equal(extractor.pad(features, padding="longest", return_tensors="np"), expected)


def test_a_padded_batch_has_the_vectors_of_the_clips_alone(processor, sharp_model):
    extractor = processor.feature_extractor
    alone = [extractor(clip, sampling_rate=RATE, return_tensors="pt") for clip in CLIPS]
    collate = lambda rows: extractor.pad([{"input_features": x} for x in rows], return_tensors="pt")  # noqa: E731
    (batch,) = DataLoader([one["input_features"][0] for one in alone], batch_size=3, collate_fn=collate)
    with torch.no_grad():
        expected = torch.cat([sharp_model.get_audio_features(**one).pooler_output for one in alone])
        torch.testing.assert_close(sharp_model.get_audio_features(**batch).pooler_output, expected, atol=1e-5, rtol=0)


def test_a_batch_that_was_padded_before_is_padded_anew(processor):
    extractor = processor.feature_extractor
    whole = extractor(CLIPS, sampling_rate=RATE, return_tensors="pt")
    rows = [{name: values[row] for name, values in whole.items()} for row in (0, 1)]
    equal(extractor.pad(rows), extractor(CLIPS[:2], sampling_rate=RATE, return_tensors="pt"))
    equal(extractor.pad(whole), whole)


def test_options_of_pad(processor):
    extractor = processor.feature_extractor
    features = [{"input_features": extractor(clip, sampling_rate=RATE)["input_features"][0]} for clip in CLIPS]
    assert extractor.pad(features, pad_to_multiple_of=16)["input_features"].shape == (3, 80, 128)
    longer = extractor.pad(features, padding="max_length", max_length=200)
    assert longer["input_features"].shape == (3, 80, 200) and longer["input_features_mask"].sum(1).tolist() == [
        50,
        5,
        124,
    ]
    assert extractor.pad(features, padding="max_length")["input_features"].shape == (3, 80, 3000)
    listed = extractor.pad(features, padding=False)
    assert [clip.shape[1] for clip in listed["input_features"]] == [50, 5, 124] and set(listed) == {"input_features"}
    assert set(extractor.pad(features[:1], return_attention_mask=False)) == {"input_features"}
    labelled = extractor.pad([{**one, "labels": [n]} for n, one in enumerate(features)], return_tensors="pt")
    assert labelled["labels"].tolist() == [[0], [1], [2]]
    one = extractor.pad(features[0], return_tensors="pt")
    assert one["input_features"].shape == (1, 80, 50)


def test_what_pad_refuses(processor):
    extractor = processor.feature_extractor
    features = [{"input_features": extractor(clip, sampling_rate=RATE)["input_features"][0]} for clip in CLIPS]
    with pytest.raises(ValueError, match="no clips"):
        extractor.pad([])
    with pytest.raises(ValueError, match="features of up to 124 frames do not make a batch of 100"):
        extractor.pad(features, padding="max_length", max_length=100, truncation=True)
    with pytest.raises(ValueError, match="need their input_features_mask"):
        extractor.pad(features, return_attention_mask=False)
    with pytest.raises(ValueError, match="longest, max_length, True or False"):
        extractor.pad(features, padding="shortest")


def test_the_papers_way_pads_only_what_was_computed_for_it():
    paper = WavLinkFeatureExtractor(padding="max_length")
    expected = paper(CLIPS, sampling_rate=RATE, return_tensors="pt")
    features = [{"input_features": paper(clip, sampling_rate=RATE)["input_features"][0]} for clip in CLIPS]
    equal(paper.pad(features, return_tensors="pt"), expected)
    marked = paper(CLIPS, sampling_rate=RATE, return_attention_mask=True)
    assert marked["input_features_mask"].tolist() == [[1] * 3000] * 3
    native = WavLinkFeatureExtractor()(CLIPS[0], sampling_rate=RATE)
    with pytest.raises(ValueError, match="features of up to 50 frames do not make a batch of 3000"):
        paper.pad([native])


def test_windows_of_clap_are_padded_too():
    extractor = WavLinkClapFeatureExtractor()
    clips = [long_tone(3), long_tone(23)]
    expected = extractor(clips, sampling_rate=CLAP_RATE, return_tensors="pt")
    alone = [extractor(clip, sampling_rate=CLAP_RATE, return_tensors="pt") for clip in clips]
    equal(extractor.pad(alone, return_tensors="pt"), expected)
    equal(extractor.pad([{"input_features": one["input_features"][0]} for one in alone]), expected)


def test_features_that_are_not_this_extractors_are_padded_as_transformers_does():
    """As its own tests have them: `[T, F]`, with `attention_mask` where that is asked for."""
    rows = [np.random.default_rng(n).normal(size=(n, 80)) for n in (7, 12)]
    found = WavLinkFeatureExtractor().pad(BatchFeature({"input_features": rows}), return_attention_mask=True)
    expected = WhisperFeatureExtractor().pad(BatchFeature({"input_features": rows}), return_attention_mask=True)
    equal(found, expected)
    assert found["attention_mask"].sum(1).tolist() == [7, 12]
