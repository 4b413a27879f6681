"""Augmented log-mels: bounds of what changes, padding untouched, the same from the same random numbers."""

import numpy as np
import pytest
import torch

from wavlink.training.augmentation import augment

LENGTHS = (60, 7, 100)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(100) < torch.tensor(LENGTHS)[:, None]
    features = torch.randn(3, 80, 100, generator=generator) * mask[:, None]
    return {"input_features": features, "input_features_mask": mask.long(), "input_ids": torch.ones(3, 2)}


def augmented(batch, seed=0, **options):
    options = {"spec_augment": False, "equalization": 0.0} | options
    return augment(batch, np.random.default_rng(seed), **options)["input_features"]


def test_spec_augment_masks_at_most_a_stretch_and_a_band(batch):
    before, changed = batch["input_features"], 0
    for seed in range(20):
        after = augmented(batch, seed, spec_augment=True)
        for clip, old, length in zip(after, before, LENGTHS, strict=True):
            different = clip != old
            columns, rows = different.all(0), different[:, :length].all(1)
            assert columns.sum() <= length // 10 and rows.sum() <= 12
            assert not (different & ~columns & ~rows[:, None]).any()
            assert torch.equal(clip[:, length:], old[:, length:])
            changed += int(different.sum())
    assert changed


def test_equalization_adds_one_smooth_curve_to_all_frames_of_a_clip(batch):
    drawn = []
    for seed in range(50):
        difference = augmented(batch, seed, equalization=1.6) - batch["input_features"]
        for clip, length in zip(difference, LENGTHS, strict=True):
            assert torch.allclose(clip[:, :length], clip[:, :1].expand(-1, length), atol=1e-5)
            assert not clip[:, length:].any()
            drawn.append(clip[0, 0].item())
    assert np.std(drawn) * 40 == pytest.approx(1.6, rel=0.25)  # decibels
    assert len({round(x, 6) for x in drawn}) > 140


def test_equal_seeds_give_equal_features_and_the_batch_stays(batch):
    before = batch["input_features"].clone()
    options = {"spec_augment": True, "equalization": 2.0}
    assert torch.equal(augmented(batch, 3, **options), augmented(batch, 3, **options))
    assert not torch.equal(augmented(batch, 3, **options), augmented(batch, 4, **options))
    assert torch.equal(batch["input_features"], before)


def test_a_very_short_clip_is_augmented():
    batch = {"input_features": torch.zeros(1, 80, 1), "input_features_mask": torch.ones(1, 1).long()}
    assert augmented(batch, spec_augment=True, equalization=1.0).isfinite().all()
