"""Downmix of several channels to one: their mean, unless they cancel each other out.

Channels of opposite phase (a microphone cable soldered the wrong way round, a balanced line recorded as stereo) have a
mean near silence. In each second (or block, see `block_length`) where their sum has less than `CANCELLED` of
the energy that unrelated channels would have, each channel is inverted or not, whichever makes the sum louder, so that
it has at least the energy of all channels. A rest of under a second at the end is mixed as the second before it.
Every other second is the mean, to the last bit.
"""

from collections.abc import Iterable, Iterator

import numpy as np

CANCELLED = 0.03  # of the sum of the channels' energies, -15 dB; equal channels have their number of times as much


def block_length(rate: int, channels: int) -> int:
    """Return how many samples of each channel are decoded and mixed at once: a second, or less at high rates."""
    return min(rate, 2**16, 2**20 // channels)


def mono_blocks(blocks: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Mix blocks of any length, float32 `[samples, channels]` at `rate` Hz, to blocks of float32 `[samples]`."""
    signs = None
    for block in regrouped(blocks, rate):
        channels = block.shape[1]
        if channels == 1:
            yield block[:, 0]
            continue
        mean = mean_of(block)
        if signs is None or len(block) == block_length(rate, channels):  # a full second, or a sound shorter than one
            signs = signs_of(block, mean)
        yield mean if (signs > 0).all() else (block * signs).mean(axis=1)


def mean_of(block: np.ndarray) -> np.ndarray:
    """Return the mean of the channels of a block, `[samples, channels] -> [samples]`, as `block.mean(axis=1)`.

    Of up to 7 channels numpy adds one after another too, but takes many times as long.
    """
    if block.shape[1] > 7:
        return block.mean(axis=1)
    total = block[:, 0].copy()
    for channel in range(1, block.shape[1]):
        total += block[:, channel]
    return np.divide(total, block.shape[1], out=total)


def regrouped(blocks: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Yield the same samples in blocks of `block_length`; the last one may be shorter."""
    kept: list[np.ndarray] = []
    for block in blocks:
        frames = block_length(rate, block.shape[1])
        while (missing := frames - sum(map(len, kept))) <= len(block):
            yield np.concatenate([*kept, block[:missing]]) if kept else block[:missing]
            kept, block = [], block[missing:]
        if len(block):
            kept.append(block)
    if kept:
        yield np.concatenate(kept)


def signs_of(block: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return 1 or -1 for each channel of a block `[samples, channels]`; all 1 unless their mean cancels out.

    Args:
        mean: `[samples]`, over the channels.
    """
    channels = block.shape[1]
    signs = np.ones(channels, np.float32)
    if channels**2 * np.vdot(mean, mean) < CANCELLED * np.vdot(block, block):
        total = np.zeros(len(block), np.float32)
        for channel in range(channels):
            if np.vdot(total, block[:, channel]) < 0:
                signs[channel] = -1
            total += signs[channel] * block[:, channel]
    return signs
