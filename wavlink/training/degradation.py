"""Log-mels of sounds as people record them (`Recipe.degraded_share`): level, noise, bandwidth, rooms and speed.

All changes are of the power spectra behind Whisper's log-mels, `10 ** (4 * x - 4)`, so they cost no decoding.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.audio_utils import hertz_to_mel, mel_filter_bank, mel_to_hertz

_LEAST = 1e-10  # power that Whisper's log-mel tells from none
_RANGE = 1e-8  # of a clip's largest power: what is below is raised to it
_HIGHEST = 8000.0  # Hz
_FRAME = 0.01  # seconds
# Each change's probability in a degraded clip, and its range, drawn uniformly.
_SPEED, _SPEEDS = 0.4, (-0.18, 0.18)  # log of the factor
_CUT, _LOST = 0.25, 0.25  # the most of the start and of the end that is cut off
_ROOM, _DECAYS, _DIRECT = 0.35, (0.2, 1.6), (-5.0, 12.0)  # seconds to -60 dB; dB of the direct sound above the room's
_LOW_PASS, _HIGH_PASS = 0.35, 0.15
_LOW_CUTS, _HIGH_CUTS = (7.3, 8.9), (4.0, 6.2)  # log of Hz
_NOISE, _NOISES, _TILTS = 0.5, (-2.0, 35.0), (-6.0, 1.0)  # dB of the clip above the noise; dB an octave
_OTHER = 0.3  # of noises that are another clip of the batch
_LEVEL, _LEVELS = 0.6, (-45.0, 20.0)  # dB
_SLOPES = (40.0, 240.0)  # dB an octave of a filter


def degrade(batch: dict[str, Tensor], generator: np.random.Generator, share: float) -> dict[str, Tensor]:
    """Return a batch in which a share of the clips sounds as if recorded under other conditions.

    Args:
        batch: with Whisper's `input_features` `[B, F, T]` and `input_features_mask` `[B, T]`; a clip whose speed
            changes has another number of frames, at most T.
        generator: of all random numbers.
        share: of clips that are changed; with 0 no random number is drawn.
    """
    if not share:
        return batch
    before = batch["input_features"]
    features, mask = torch.zeros_like(before), torch.zeros_like(batch["input_features_mask"])
    frames = batch["input_features_mask"].sum(1).tolist()
    bands = _bands(before.shape[1])
    for row, length in enumerate(frames):
        clip = before[row, :, :length]
        if generator.random() < share:
            other = int(generator.integers(len(frames)))
            noise = before[other, :, : frames[other]] if other != row else None
            clip = _degraded(clip, noise, before.shape[2], bands, generator)
        features[row, :, : clip.shape[1]] = clip
        mask[row, : clip.shape[1]] = 1
    return {**batch, "input_features": features, "input_features_mask": mask}


@dataclass(frozen=True)
class _Bands:
    """Whisper's mel bands, each `[F]`: their middles and widths in Hz, and the independent bins that each sums."""

    middles: Tensor
    widths: Tensor
    bins: Tensor


@lru_cache
def _bands(number: int) -> _Bands:
    filters = mel_filter_bank(201, number, 0.0, _HIGHEST, 16000, norm="slaney", mel_scale="slaney")
    edges = mel_to_hertz(np.linspace(0, hertz_to_mel(_HIGHEST, "slaney"), number + 2), "slaney")
    bins = filters.sum(0) ** 2 / np.maximum((filters**2).sum(0), 1e-30)
    middles, widths, bins = (torch.from_numpy(x).float() for x in (edges[1:-1], (edges[2:] - edges[:-2]) / 2, bins))
    return _Bands(middles, widths, bins.clamp(min=1))


def _degraded(
    clip: Tensor, noise: Tensor | None, longest: int, bands: _Bands, generator: np.random.Generator
) -> Tensor:
    """Return a clip's log-mel `[F, T]` after each change that is drawn, `[F, T']` with `T' <= longest`."""
    if generator.random() < _CUT:
        first, lost = (int(generator.uniform(0, _LOST) * clip.shape[1]) for _ in range(2))
        clip = clip[:, first : clip.shape[1] - lost]
    power = _power(clip)
    if generator.random() < _SPEED:
        power = _resampled(power, float(np.exp(generator.uniform(*_SPEEDS))), longest, bands)
    if generator.random() < _ROOM:
        power = _in_room(power, generator.uniform(*_DECAYS), generator.uniform(*_DIRECT), bands)
    octaves = torch.zeros(len(clip))  # outside the pass band
    if generator.random() < _LOW_PASS:
        octaves += (bands.middles / np.exp(generator.uniform(*_LOW_CUTS))).log2().clamp(min=0)
    if generator.random() < _HIGH_PASS:
        octaves += (np.exp(generator.uniform(*_HIGH_CUTS)) / bands.middles).log2().clamp(min=0)
    power = power * _ratio(-generator.uniform(*_SLOPES) * octaves).to(power)[:, None]
    if generator.random() < _NOISE:
        power = power + _noise(power, noise, bands, generator)
    if generator.random() < _LEVEL:
        power = power * _ratio(generator.uniform(*_LEVELS))
    power = power.clamp(min=_LEAST)
    return (power.clamp(min=float(power.max()) * _RANGE).log10() + 4) / 4


def _power(log_mel: Tensor) -> Tensor:
    return 10 ** (4 * log_mel - 4)


def _ratio(decibels):
    return 10 ** (decibels / 10)


def _resampled(power: Tensor, speed: float, longest: int, bands: _Bands) -> Tensor:
    """Play a clip `speed` times as fast: its time is divided by it, and its frequencies are multiplied."""
    frames = min(max(round(power.shape[1] / speed), 1), longest)
    logs = _between(power.log().T, torch.arange(frames) * speed).T
    sources = hertz_to_mel((bands.middles / speed).numpy(), "slaney") / hertz_to_mel(_HIGHEST, "slaney")
    rows = torch.from_numpy(sources).float() * (len(power) + 1) - 1
    logs = _between(logs, rows)
    logs[rows > len(power)] = np.log(_LEAST)  # frequencies that the clip did not have
    return logs.exp()


def _between(rows: Tensor, positions: Tensor) -> Tensor:
    """Interpolate the rows of `[N, D]` at `positions` `[M]`, -> `[M, D]`."""
    positions = positions.to(rows).clamp(0, len(rows) - 1)
    below = positions.long()
    weight = (positions - below)[:, None]
    return rows[below] * (1 - weight) + rows[(below + 1).clamp(max=len(rows) - 1)] * weight


def _in_room(power: Tensor, decay: float, direct: float, bands: _Bands) -> Tensor:
    """Add the reverberation of a room, in which the highest frequencies decay twice as fast as the lowest."""
    frames = torch.arange(min(power.shape[1], int(decay / _FRAME) + 1))
    seconds = decay / (1 + bands.middles[:, None] / _HIGHEST)
    response = _ratio(-60.0 * frames * _FRAME / seconds).to(power)
    response *= _ratio(-direct) / response.sum(1, keepdim=True)
    response[:, 0] += 1
    padded = F.pad(power[None], (len(frames) - 1, 0))
    return F.conv1d(padded, response.flip(1)[:, None], groups=len(power))[0]


def _noise(power: Tensor, other: Tensor | None, bands: _Bands, generator: np.random.Generator) -> Tensor:
    """Draw noise at a random level below a clip: another clip, or random numbers with a tilted spectrum."""
    if other is not None and generator.random() < _OTHER:
        noise = _power(other)
        noise = noise.repeat(1, -(-power.shape[1] // noise.shape[1]))[:, : power.shape[1]]
    else:
        tilt = _ratio(generator.uniform(*_TILTS) * (bands.middles / 1000).log2())
        shape = bands.bins.numpy()[:, None]
        drawn = generator.gamma(shape, 1 / shape, power.shape)  # of a band's independent bins, each exponential
        noise = torch.from_numpy(drawn).to(power) * tilt.to(power)[:, None]
    widths = bands.widths.to(power)
    loudness = (widths @ power).mean() / (widths @ noise).mean().clamp(min=1e-30)
    return noise * loudness * _ratio(-generator.uniform(*_NOISES))
