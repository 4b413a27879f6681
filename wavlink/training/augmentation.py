"""Augmentation of log-mels in training (`Recipe.spec_augment`, `Recipe.equalization`)."""

import numpy as np
import torch
from torch import Tensor

_DB = 40.0  # decibels of a unit of Whisper's log-mel, which is (log10(power) + 4) / 4
_POINTS = 6  # of a gain curve, from the lowest band to the highest
_TIME, _BANDS = 0.1, 0.15  # the most of a clip that a mask covers


def augment(
    batch: dict[str, Tensor], generator: np.random.Generator, spec_augment: bool, equalization: float
) -> dict[str, Tensor]:
    """Return a batch with its clips' log-mels changed at random; padding stays as it is.

    Args:
        batch: with Whisper's `input_features` `[B, F, T]` and `input_features_mask` `[B, T]`.
        generator: of all random numbers.
        spec_augment: whether one stretch of at most 10 % of a clip's frames and one band of at most 15 % of its
            frequencies become the clip's mean (SpecAugment, arXiv 1904.08779).
        equalization: standard deviation in dB of a gain that is drawn at six frequencies, and is linear between them.
    """
    features = batch["input_features"].clone()
    frames = batch["input_features_mask"].sum(1).tolist()
    for clip, length in zip(features, frames, strict=True):
        if equalization:
            clip[:, :length] += _gains(len(clip), equalization, generator).to(clip)[:, None]
        if spec_augment:
            mean = clip[:, :length].mean()
            first, last = _stretch(length, _TIME, generator)
            clip[:, first:last] = mean
            first, last = _stretch(len(clip), _BANDS, generator)
            clip[first:last, :length] = mean
    return {**batch, "input_features": features}


def _gains(bands: int, equalization: float, generator: np.random.Generator) -> Tensor:
    """Draw a gain for each band, in units of the log-mel."""
    drawn = generator.normal(0.0, equalization / _DB, _POINTS)
    return torch.from_numpy(np.interp(np.linspace(0, _POINTS - 1, bands), np.arange(_POINTS), drawn))


def _stretch(length: int, share: float, generator: np.random.Generator) -> tuple[int, int]:
    """Draw the bounds of a stretch of at most `share` of `length`."""
    width = generator.integers(int(share * length) + 1)
    first = generator.integers(length - width + 1)
    return first, first + width
