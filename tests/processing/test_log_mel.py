"""The log-mel in numpy equals Whisper's, in the log-mel and in the vector, whichever library transforms."""

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from processing import WavLinkFeatureExtractor
from processing.log_mel_wavlink import MelFilters, log_mel
from tests.conftest import RATE, tone

RNG = np.random.default_rng(0)
WINDOW = torch.hann_window(400).numpy()
CLIPS = {
    "noise": RNG.normal(scale=0.1, size=3 * RATE).astype(np.float32),
    "tone": tone(440, 2.0),
    "noise of under a block of frames": RNG.normal(scale=0.1, size=RATE).astype(np.float32),
    "quiet noise": RNG.normal(scale=1e-4, size=RATE + 77).astype(np.float32),
    "tone after silence": np.concatenate([np.zeros(RATE, np.float32), tone(2000, 1.3)]),
    "silence": np.zeros(RATE, np.float32),
    "201 samples": RNG.normal(scale=0.1, size=201).astype(np.float32),
}
TRANSFORMS = {
    "torch": (lambda frames: torch.fft.rfft(torch.from_numpy(frames)).numpy(), 1e-6),
    "numpy": (np.fft.rfft, 1e-4),
}


def whisper(clip: np.ndarray, mel_bins: int = 80) -> np.ndarray:
    extractor = WhisperFeatureExtractor(feature_size=mel_bins)
    inputs = extractor(clip, sampling_rate=RATE, padding="do_not_pad", return_tensors="np")
    return inputs["input_features"][0]


@pytest.mark.parametrize("mel_bins", [80, 128])
@pytest.mark.parametrize(("rfft", "tolerance"), TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_equals_whispers(clip, rfft, tolerance, mel_bins):
    filters = MelFilters(WavLinkFeatureExtractor(mel_bins).mel_filters)
    kept = clip.copy()
    features = log_mel(clip, filters, WINDOW, 160, rfft)
    expected = whisper(clip, mel_bins)[:, : len(clip) // 160]
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=tolerance, rtol=0)
    np.testing.assert_array_equal(clip, kept)


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
@torch.inference_mode()
def test_vectors_equal_those_of_whispers_log_mels(clip, model):
    extractor, count = WavLinkFeatureExtractor(), -(-len(clip) // 160)
    padded = np.pad(clip, (0, (count + 2) * 160 - len(clip)))
    in_numpy = log_mel(padded, MelFilters(extractor.mel_filters), WINDOW, 160)
    own = extractor(clip, sampling_rate=RATE, return_tensors="np")["input_features"][0]
    features = [torch.from_numpy(np.array(each[None, :, :count])) for each in (whisper(padded), in_numpy, own)]
    expected, *found = (model.get_audio_features(each).pooler_output for each in features)
    for vectors in found:
        torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)


def test_dither_is_whispers():
    extractor, clip = WavLinkFeatureExtractor(dither=1e-3), np.zeros(RATE, np.float32)
    first, second = (extractor(clip, sampling_rate=RATE, return_tensors="np")["input_features"] for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_length_and_frames_equal_padding_before_and_cutting_after(clip):
    filters, length, frames = MelFilters(WavLinkFeatureExtractor().mel_filters), len(clip) + 777, len(clip) // 160
    expected = log_mel(np.pad(clip, (0, 777)), filters, WINDOW, 160)[:, :frames]
    features = log_mel(clip, filters, WINDOW, 160, length=length, frames=frames)
    np.testing.assert_array_equal(features, expected)
    assert features.flags.c_contiguous
