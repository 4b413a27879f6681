"""PaSST's log-mel at native length: frames, windows of long clips, padding, saved fields and refused input.

Its numbers are compared with the reference implementation's in tests/model/test_passt_reference.py.
"""

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from modeling_wavlink import WavLinkPasstConfig
from processing import WavLinkPasstFeatureExtractor
from processing.passt_features_wavlink import mel_bank

RATE = 32000


@pytest.fixture(scope="module")
def extractor() -> WavLinkPasstFeatureExtractor:
    return WavLinkPasstFeatureExtractor()


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.1, size=samples).astype(np.float32)


def test_filters_are_kaldis_up_to_rounding():
    """transformers' fp64 filters, whose narrow low bands differ from the fp32 ones in the fourth decimal."""
    options = {"min_frequency": 0.0, "max_frequency": 15000.0, "sampling_rate": RATE, "norm": None}
    expected = mel_filter_bank(513, 128, **options, mel_scale="kaldi", triangularize_in_mel_space=True).T
    found = mel_bank(128, 1024, RATE, 0.0, 15000.0)
    assert found.dtype == torch.float32 and found.shape == (128, 513)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)


def test_a_log_mel_is_the_formula_worked_out_by_hand(extractor):
    """A discrete Fourier transform of one frame in the middle of a clip, in fp64."""
    clip = noise(RATE)
    emphasised = clip[1:].astype(np.float64) - 0.97 * clip[:-1]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(800) / 799)
    frame = 50
    cut = emphasised[frame * 320 - 400 :][:800] * window
    power = np.abs(np.fft.rfft(cut, 1024)) ** 2
    expected = (np.log(mel_bank(128, 1024, RATE, 0.0, 15000.0).double().numpy() @ power + 1e-5) + 4.5) / 5
    found = extractor(clip, sampling_rate=RATE, return_tensors="np")["input_features"][0, :, frame]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    "samples, frames",
    [(1, 16), (4800, 16), (4801, 16), (5120, 16), (5121, 17), (RATE, 100), (319999, 1000), (320000, 1000)],
)
def test_frames_are_a_clips_own(extractor, samples, frames):
    found = extractor(noise(samples), sampling_rate=RATE, return_tensors="np")
    assert found["input_features"].shape == (1, 128, frames) and found["input_features"].dtype == np.float32
    assert found["input_features_mask"].tolist() == [[1] * frames]
    assert np.isfinite(found["input_features"]).all()


@pytest.mark.parametrize(
    "samples, starts", [(320001, [0, 1]), (21 * RATE, [0, 5.5 * RATE, 11 * RATE]), (30 * RATE, [0, 320000, 640000])]
)
def test_windows_cover_a_longer_clip(extractor, samples, starts):
    clip = noise(samples)
    found = extractor(clip, sampling_rate=RATE, return_tensors="np")["input_features"][0]
    cut = [clip[round(start) : round(start) + 320000] for start in starts]
    expected = extractor(cut, sampling_rate=RATE, return_tensors="np")["input_features"]
    np.testing.assert_array_equal(found, np.concatenate([*expected], axis=1))


def test_batch_mates_change_nothing_and_nothing_is_random(extractor):
    clips = [noise(RATE), noise(11 * RATE, 1), noise(3, 2)]
    state = torch.get_rng_state()
    batch = extractor(clips, sampling_rate=RATE, return_tensors="pt")
    assert torch.equal(torch.get_rng_state(), state)
    assert batch["input_features"].shape == (3, 128, 2000)
    for row, mask, clip, frames in zip(*batch.values(), clips, (100, 2000, 16), strict=True):
        alone = extractor(clip, sampling_rate=RATE, return_tensors="pt")["input_features"][0]
        assert torch.equal(row[:, :frames], alone) and not row[:, frames:].any()
        assert mask.tolist() == [1] * frames + [0] * (2000 - frames)


def test_unpadded_clips_are_a_list_and_pad_makes_the_batch_of_them(extractor):
    clips = [noise(RATE), noise(2 * RATE, 1)]
    features = extractor(clips, sampling_rate=RATE, padding=False)["input_features"]
    assert [clip.shape for clip in features] == [(128, 100), (128, 200)]
    padded = extractor.pad([{"input_features": clip} for clip in features])
    batch = extractor(clips, sampling_rate=RATE, return_tensors="np")
    for name, value in batch.items():
        np.testing.assert_array_equal(padded[name], value)


@pytest.mark.parametrize(
    "clip, options, message",
    [
        (noise(9), {"sampling_rate": None}, "sampling_rate=32000"),
        (noise(9), {"sampling_rate": 16000}, r"soxr.resample\(clip, 16000, 32000\)"),
        (noise(9)[None], {}, "average the channels"),
        (np.zeros(9, np.int16), {}, "divide 16-bit samples by 32768"),
        (np.full(9, np.nan, np.float32), {}, "NaN"),
        (np.zeros(0, np.float32), {}, "clip 0 is empty"),
        ([], {}, "no clips"),
        (noise(30 * RATE + 1), {}, "the limit is 960000, 30 s"),
        (noise(9), {"padding": "max_length"}, "padding must be 'longest'"),
    ],
)
def test_bad_input_is_refused(extractor, clip, options, message):
    with pytest.raises(ValueError, match=message):
        extractor(clip, **{"sampling_rate": RATE, **options})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"padding": "max_length"}, "padding must be 'longest' for a PaSST"),
        ({"hop_length": 0}, "hop_length must be a whole number, 1 or more, got 0"),
        ({"sampling_rate": 32000.5}, "sampling_rate must be a whole number"),
        ({"win_length": 1025}, "n_fft must be even and at least win_length=1025, got 1024"),
        ({"frequency_max": 16001}, "at most half the sampling rate, 16000 Hz"),
        ({"frequency_min": 15000}, "must rise"),
        ({"min_frames": 1001}, "min_frames must be 1 to window_frames=1000"),
        ({"chunk_length": 9}, "chunk_length=9 s is shorter than a window of 10 s"),
    ],
)
def test_impossible_sizes_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        WavLinkPasstFeatureExtractor(**fields)


def test_fields_are_saved_and_a_towers_sizes_are_taken_over(tmp_path):
    saved = WavLinkPasstFeatureExtractor(hop_length=160, window_frames=2000, frequency_max=14000.0)
    saved.save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is WavLinkPasstFeatureExtractor and loaded.to_dict() == saved.to_dict()
    config = WavLinkPasstConfig(window_frames=500, patch_size=32, num_mel_bins=64)
    taken = WavLinkPasstFeatureExtractor.from_passt(config, str(tmp_path), chunk_length=7)
    assert (taken.window_frames, taken.min_frames, taken.feature_size) == (500, 32, 64)
    assert (taken.hop_length, taken.frequency_max, taken.chunk_length) == (160, 14000.0, 7)
    assert WavLinkPasstFeatureExtractor.from_passt(WavLinkPasstConfig(window_frames=4000)).chunk_length == 40
