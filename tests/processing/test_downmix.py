"""Channels that cancel each other out keep their sound; all others are averaged, to the last bit."""

import numpy as np
import pytest

from processing.audio import load_audio
from processing.downmix_wavlink import mono_blocks
from processing.windows import stream_windows
from tests.conftest import RATE
from tests.sound_bytes import encoded, pure

TONE = pure(440, seconds=3.3)
NOISE = np.random.default_rng(0).normal(scale=0.1, size=(len(TONE), 6)).astype(np.float32)
SILENT = 0 * TONE
CANCELLING = {
    "inverted": [TONE, -TONE],
    "inverted but for a hundredth": [TONE, -0.99 * TONE],
    "inverted but for a fifth": [TONE, -0.8 * TONE],
    "with a little noise": [TONE + 0.001 * NOISE[:, 0], -TONE + 0.001 * NOISE[:, 1]],
    "the back of 5.1": [SILENT] * 4 + [TONE, -TONE],
    "three of them": [TONE, -TONE / 2, -TONE / 2],
    "two pairs": [TONE, -TONE, NOISE[:, 0], -NOISE[:, 0]],
}


def rms(clip: np.ndarray) -> float:
    return float(np.sqrt(np.mean(clip.astype(np.float64) ** 2)))


@pytest.mark.parametrize("name", CANCELLING)
@pytest.mark.parametrize("rate", [RATE, 44100])
def test_channels_that_cancel_keep_their_sound(name, rate):
    channels = np.stack(CANCELLING[name], 1)
    content = encoded(channels, rate=rate)
    clip = load_audio(content)
    least = np.sqrt((channels.astype(np.float64) ** 2).sum(1).mean()) / channels.shape[1]
    for part in np.array_split(clip, 6):
        assert rms(part) > 0.9 * least
    for window in (10.0, 0.7):
        for part in stream_windows(content, window, window):
            np.testing.assert_array_equal(
                part.samples, clip[round(part.start * RATE) : round(part.end * RATE)], strict=True
            )


def test_channels_that_cancel_after_a_second_keep_their_sound_from_there():
    turned = np.stack([TONE, np.where(np.arange(len(TONE)) < RATE, TONE, -TONE)], 1)
    np.testing.assert_array_equal(load_audio(encoded(turned)), TONE)


@pytest.mark.parametrize("channels", [2, 3, 6])
@pytest.mark.parametrize("samples", [100, RATE, len(TONE)])
def test_other_channels_are_averaged_to_the_last_bit(channels, samples):
    alone, shared = NOISE[:samples, :channels], np.repeat(TONE[:samples, None], channels, 1)
    quiet = shared * np.linspace(1, 0.1, channels, dtype=np.float32)
    for clip in (shared, quiet, shared + alone, 0 * alone, *([alone] if samples >= RATE else [])):
        np.testing.assert_array_equal(load_audio(encoded(clip)), clip.mean(axis=1))


def test_the_end_of_under_a_second_goes_with_the_second_before():
    """Of few samples unrelated channels often nearly cancel."""
    ends = NOISE[:, :2].copy()
    ends[3 * RATE :, 1] = -ends[3 * RATE :, 0]
    np.testing.assert_array_equal(load_audio(encoded(ends)), ends.mean(axis=1))


def test_silence_stays_silence():
    assert not load_audio(encoded(np.zeros((RATE, 2), np.float32))).any()


@pytest.mark.parametrize("length", [1, 999, 16000, 16001, 10**6])
def test_the_length_of_the_blocks_that_come_changes_nothing(length):
    channels = np.stack(CANCELLING["with a little noise"], 1)
    blocks = [channels[start : start + length] for start in range(0, len(channels), length)]
    expected = np.concatenate(list(mono_blocks([channels], RATE)))
    if length == 1:
        blocks, expected = blocks[:5000], np.concatenate(list(mono_blocks([channels[:5000]], RATE)))
    np.testing.assert_array_equal(np.concatenate(list(mono_blocks(blocks, RATE))), expected)
