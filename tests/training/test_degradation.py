"""Degraded log-mels: near those of degraded samples, bounded, the same from the same random numbers."""

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from wavlink.evaluation.robust_sounds import at_speed, impulse_response, through_rate
from wavlink.training import degradation
from wavlink.training.degradation import degrade

RATE = 16000
LENGTHS = (60, 1, 100)


def log_mel(samples):
    inputs = WhisperFeatureExtractor()(samples.astype(np.float32), sampling_rate=RATE, padding="do_not_pad")
    return torch.tensor(np.asarray(inputs["input_features"][0]))


@pytest.fixture(scope="module")
def samples():
    """Two seconds of harmonic tones that rise and fade, above a little noise."""
    generator, times = np.random.default_rng(0), np.arange(2 * RATE) / RATE
    phase = 2 * np.pi * np.cumsum(200 + 150 * times) / RATE
    tones = sum(np.sin(number * phase) / number for number in range(1, 16))
    return tones * np.exp(-2 * (times % 0.5)) * 0.1 + generator.normal(0, 1e-3, len(times))


@pytest.fixture
def only(monkeypatch):
    """Set what may be drawn: nothing but the named changes, which are certain, with ranges of their own."""
    for name in ("CUT", "SPEED", "ROOM", "LOW_PASS", "HIGH_PASS", "NOISE", "OTHER", "LEVEL"):
        monkeypatch.setattr(degradation, f"_{name}", 0.0)

    def allow(**ranges):
        for name, value in ranges.items():
            monkeypatch.setattr(degradation, f"_{name}", value)

    return allow


def degraded(clip, seed=0):
    batch = {"input_features": clip[None], "input_features_mask": torch.ones(1, clip.shape[1]).long()}
    batch = degrade(batch, np.random.default_rng(seed), 1.0)
    return batch["input_features"][0, :, : int(batch["input_features_mask"].sum())]


def decibels_between(one, two):
    frames = min(one.shape[1], two.shape[1])
    return (one[:, :frames] - two[:, :frames]).abs().mean().item() * 40


def reverberant(samples):
    response = impulse_response(RATE, np.random.default_rng(1), 0.5, 0)
    return np.convolve(samples, response)[: len(samples)]


def noisy(samples):
    noise = np.random.default_rng(1).normal(0, 1, len(samples))
    return samples + noise * np.linalg.norm(samples) / np.linalg.norm(noise) / 10**0.5


@pytest.mark.parametrize(
    ("change", "ranges", "share"),
    [
        (lambda x: x * 0.05, {"LEVEL": 1.0, "LEVELS": (-26.02, -26.02)}, 0.001),
        (lambda x: at_speed(x, RATE, 1.1), {"SPEED": 1.0, "SPEEDS": (np.log(1.1), np.log(1.1))}, 0.33),
        (
            lambda x: through_rate(x, RATE, 8000),
            {"LOW_PASS": 1.0, "LOW_CUTS": (np.log(4000),) * 2, "SLOPES": (240.0, 240.0)},
            0.33,
        ),
        (reverberant, {"ROOM": 1.0, "DECAYS": (0.5, 0.5), "DIRECT": (0.0, 0.0)}, 0.67),
        (noisy, {"NOISE": 1.0, "NOISES": (10.0, 10.0), "TILTS": (0.0, 0.0)}, 0.33),
    ],
    ids=["level", "speed", "bandwidth", "room", "noise"],
)
def test_degraded_log_mels_are_near_those_of_degraded_samples(samples, only, change, ranges, share):
    """In decibels from them, at most a share of what the unchanged log-mel is."""
    only(**ranges)
    clip, real = log_mel(samples), log_mel(change(samples))
    distance = decibels_between(degraded(clip), real)
    assert distance < share * decibels_between(clip, real)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(100) < torch.tensor(LENGTHS)[:, None]
    features = torch.randn(3, 80, 100, generator=generator) * 0.3 * mask[:, None]
    return {"input_features": features, "input_features_mask": mask.long(), "input_ids": torch.ones(3, 2)}


def test_clips_stay_in_the_batch_and_in_the_range_of_log_mels(batch):
    lengths = set()
    for seed in range(40):
        after = degrade(batch, np.random.default_rng(seed), 1.0)
        features, mask = after["input_features"], after["input_features_mask"]
        assert features.shape == (3, 80, 100) and features.isfinite().all()
        assert torch.equal(mask, mask.sort(1, descending=True)[0]) and mask.any(1).all()
        assert not (features * (1 - mask[:, None])).any()
        for clip, length in zip(features, mask.sum(1).tolist(), strict=True):
            assert clip[:, :length].max() - clip[:, :length].min() <= 2 + 1e-5
            assert clip[:, :length].min() >= -1.5 - 1e-6
        lengths.add(int(mask[0].sum()))
    assert len(lengths) > 5 and max(lengths) > 60


def test_a_share_of_the_clips_is_changed(batch):
    changed = 0
    for seed in range(200):
        after = degrade(batch, np.random.default_rng(seed), 0.4)["input_features"]
        changed += sum(not torch.equal(*pair) for pair in zip(after, batch["input_features"], strict=True))
    assert 0.25 < changed / 600 < 0.42  # a clip may be drawn, and no change of it


def test_without_a_share_the_augmentations_that_follow_draw_the_same_numbers(batch):
    generator = np.random.default_rng(0)
    assert torch.equal(degrade(batch, generator, 0.0)["input_features"], batch["input_features"])
    assert generator.random() == np.random.default_rng(0).random()


def test_equal_seeds_give_equal_batches_and_the_batch_stays(batch):
    before = batch["input_features"].clone()
    one, two, other = (degrade(batch, np.random.default_rng(seed), 1.0)["input_features"] for seed in (3, 3, 4))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(batch["input_features"], before)
