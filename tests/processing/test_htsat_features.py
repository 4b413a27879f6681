"""CLAP's deterministic log-mel: equal to transformers' for clips of one window, windows by rule for longer ones."""

import numpy as np
import pytest
import torch
from transformers import ClapFeatureExtractor

from processing import WavLinkClapFeatureExtractor

RATE = 48000


@pytest.fixture(scope="module")
def extractor() -> WavLinkClapFeatureExtractor:
    return WavLinkClapFeatureExtractor()


@pytest.fixture(scope="module")
def clap() -> ClapFeatureExtractor:
    """As laion/clap-htsat-unfused has it."""
    return ClapFeatureExtractor(truncation="rand_trunc", frequency_min=50)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.1, size=samples).astype(np.float32)


def expected(clap, clip) -> np.ndarray:
    return clap([clip], sampling_rate=RATE, return_tensors="np")["input_features"]


@pytest.mark.parametrize("samples", [1, 700, RATE, 160001, 240000, 10 * RATE - 1, 10 * RATE])
def test_up_to_ten_seconds_it_is_claps_own(extractor, clap, samples):
    clip = noise(samples)
    found = extractor(clip, sampling_rate=RATE, return_tensors="np")
    assert found["input_features"].shape == (1, 1, 1001, 64) and found["input_features"].dtype == np.float32
    np.testing.assert_array_equal(found["input_features"], expected(clap, clip))
    np.testing.assert_array_equal(found["input_features_mask"], [[1]])


@pytest.mark.parametrize("seconds, starts", [(10.5, [0, 0.5]), (20, [0, 10]), (21, [0, 5.5, 11]), (30, [0, 10, 20])])
def test_windows_cover_a_longer_clip(extractor, clap, seconds, starts):
    clip = noise(round(seconds * RATE))
    windows = extractor(clip, sampling_rate=RATE, return_tensors="np")["input_features"][0]
    cut = [clip[round(start * RATE) : round(start * RATE) + 10 * RATE] for start in starts]
    np.testing.assert_array_equal(windows, np.concatenate([expected(clap, part)[0] for part in cut]))


def test_nothing_is_drawn_and_batch_mates_change_nothing(extractor):
    clips = [noise(RATE), noise(11 * RATE, 1), noise(25 * RATE, 2)]
    state = np.random.get_state()[1].copy()
    batch = extractor(clips, sampling_rate=RATE, return_tensors="pt")
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert batch["input_features"].dtype == torch.float32
    assert batch["input_features_mask"].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    for row, clip, count in zip(batch["input_features"], clips, (1, 2, 3), strict=True):
        alone = extractor(clip, sampling_rate=RATE, return_tensors="pt")["input_features"][0]
        assert torch.equal(row[:count], alone) and not row[count:].any()


def test_unpadded_clips_are_a_list(extractor):
    clips = extractor([noise(RATE), noise(11 * RATE)], sampling_rate=RATE, padding=False)["input_features"]
    assert [clip.shape for clip in clips] == [(1, 1001, 64), (2, 1001, 64)]


@pytest.mark.parametrize(
    "clip, options, message",
    [
        (noise(9), {"sampling_rate": None}, "sampling_rate=48000"),
        (noise(9), {"sampling_rate": 16000}, r"soxr.resample\(clip, 16000, 48000\)"),
        (noise(9)[None], {}, "average the channels"),
        (np.zeros((2, 9), np.float32), {}, "average the channels"),
        (np.zeros(9, np.int16), {}, "divide 16-bit samples by 32768"),
        (np.full(9, np.nan, np.float32), {}, "NaN"),
        (np.zeros(0, np.float32), {}, "clip 0 is empty"),
        ([], {}, "no clips"),
        (noise(30 * RATE + 1), {}, "the limit is 1440000, 30 s"),
        (noise(9), {"padding": "max_length"}, "padding must be 'longest'"),
    ],
)
def test_bad_input_is_refused(extractor, clip, options, message):
    with pytest.raises(ValueError, match=message):
        extractor(clip, **{"sampling_rate": RATE, **options})


def test_the_log_mel_of_a_clap_is_taken_over_and_saved(tmp_path):
    clap = ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=32000,
        hop_length=320,
        max_length_s=2,
        fft_window_size=512,
        frequency_min=30,
        frequency_max=9000,
        truncation="rand_trunc",
    )
    WavLinkClapFeatureExtractor.from_clap(clap, chunk_length=5).save_pretrained(tmp_path)
    loaded = WavLinkClapFeatureExtractor.from_pretrained(tmp_path)
    clip = noise(3 * 32000)
    windows = loaded(clip, sampling_rate=32000, return_tensors="np")["input_features"][0]
    parts = [clip[:64000], clip[32000:]]
    np.testing.assert_array_equal(
        windows, clap(parts, sampling_rate=32000, return_tensors="np")["input_features"][:, 0]
    )
    with pytest.raises(ValueError, match="the limit is 160000, 5 s"):
        loaded(noise(160001), sampling_rate=32000)


@pytest.mark.parametrize("options", [{"truncation": "fusion"}, {"truncation": "rand_trunc", "padding": "pad"}])
def test_the_extractor_of_a_fused_or_padded_clap_is_refused(options):
    with pytest.raises(ValueError, match="clap-htsat-unfused"):
        WavLinkClapFeatureExtractor.from_clap(ClapFeatureExtractor(**options))


def test_the_papers_padding_is_refused():
    with pytest.raises(ValueError, match="padding must be 'longest'"):
        WavLinkClapFeatureExtractor(padding="max_length")
