"""Changes of sounds as people have them: level, bandwidth, compression, rooms, noise, cuts and speed.

Each function takes mono float32 `[samples]` and returns such; what is random comes from a generator that is given.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import soundfile
import soxr

from processing.audio import load_audio, load_column

Change = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]

_FULL_SCALE = 32768  # of 16 bits
_MP3_KBPS = ((32000, 32, 320), (16000, 8, 160), (8000, 8, 64))  # rates in Hz from, and their bit rates: MPEG-1, 2, 2.5
_TINY = 1e-12


def gain(clip: np.ndarray, decibels: float) -> np.ndarray:
    """Amplify a clip as a file of 16 bits keeps it: rounded, and clipped at full scale."""
    steps = np.round(clip.astype(np.float64) * 10 ** (decibels / 20) * _FULL_SCALE)
    return (np.clip(steps, -_FULL_SCALE, _FULL_SCALE - 1) / _FULL_SCALE).astype(np.float32)


def through_rate(clip: np.ndarray, rate: int, lower: int) -> np.ndarray:
    """Resample a clip to `lower` Hz and back, which leaves nothing above half of it; the length stays."""
    back = soxr.resample(soxr.resample(clip, rate, lower), lower, rate)[: len(clip)]
    return np.pad(back, (0, len(clip) - len(back))).astype(np.float32)


def mp3(clip: np.ndarray, rate: int, kbps: float) -> np.ndarray:
    """Encode a clip as MP3 of a constant bit rate, and decode it.

    Raises:
        ValueError: a rate that MP3 has not, or a libsndfile without MP3.
    """
    low, high = next((bounds for least, *bounds in _MP3_KBPS if rate >= least), (0, 0))
    if not low or not soundfile.check_format("MP3", "MPEG_LAYER_III"):
        raise ValueError(
            f"MP3 at {rate} Hz cannot be written here: MP3 has 8 kHz or more, and libsndfile 1.1 writes it"
        )
    file, level = io.BytesIO(), (high - kbps) / (high - low)
    encoded = {"format": "MP3", "bitrate_mode": "CONSTANT", "compression_level": level}
    soundfile.write(file, np.clip(clip, -1, 1), rate, **encoded)
    return load_audio(file.getvalue(), rate)


def impulse_response(rate: int, generator: np.random.Generator, seconds: float, direct: float) -> np.ndarray:
    """Draw the response of a room: the direct sound, then noise that decays by 60 dB in `seconds` (Polack 1988).

    Args:
        direct: energy of the direct sound over that of the rest, in dB.

    Returns:
        fp64 `[1 + seconds * rate]`, of which the first is 1.
    """
    times = np.arange(1, round(seconds * rate) + 1) / rate
    tail = generator.standard_normal(len(times)) * 10 ** (-3 * times / seconds)
    return np.concatenate([[1.0], tail * 10 ** (-direct / 20) / np.linalg.norm(tail)])


def reverberant(
    clip: np.ndarray, rate: int, generator: np.random.Generator, seconds: float, direct: float
) -> np.ndarray:
    """Play a clip in a room (see `impulse_response`) until its sound has decayed; the peak stays the same."""
    response = impulse_response(rate, generator, seconds, direct)
    length = len(clip) + len(response) - 1
    size = 1 << (length - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(clip, size) * np.fft.rfft(response, size), size)[:length]
    return (wet * (np.abs(clip).max() / max(np.abs(wet).max(), _TINY))).astype(np.float32)


def pink_noise(samples: int, generator: np.random.Generator) -> np.ndarray:
    """Draw noise of equal power in each octave, as a room's: fp64 `[samples]`."""
    spectrum = np.fft.rfft(generator.standard_normal(samples))
    spectrum[0] = 0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    return np.fft.irfft(spectrum, samples)


def noisy(clip: np.ndarray, generator: np.random.Generator, decibels: float) -> np.ndarray:
    """Add pink noise at a signal-to-noise ratio, over the whole clip; silence stays silence."""
    noise = pink_noise(len(clip), generator)
    level = np.linalg.norm(clip) / max(np.linalg.norm(noise), _TINY) * 10 ** (-decibels / 20)
    return (clip + level * noise).astype(np.float32)


def cut(clip: np.ndarray, share: float, start: bool) -> np.ndarray:
    """Cut a share of a clip off, at its start or its end; a sample is left."""
    lost = min(int(share * len(clip)), len(clip) - 1)
    return clip[lost:] if start else clip[: len(clip) - lost]


def at_speed(clip: np.ndarray, rate: int, factor: float) -> np.ndarray:
    """Play a clip faster or slower, as a tape: its pitch moves with it."""
    return soxr.resample(clip, rate * factor, rate).astype(np.float32)


SOUND_CHANGES: dict[str, Change] = {
    "gain -40 dB": lambda clip, rate, generator: gain(clip, -40),
    "gain -20 dB": lambda clip, rate, generator: gain(clip, -20),
    "gain +20 dB, clipped": lambda clip, rate, generator: gain(clip, 20),
    "resampled through 8 kHz": lambda clip, rate, generator: through_rate(clip, rate, 8000),
    "MP3 at 32 kb/s": lambda clip, rate, generator: mp3(clip, rate, 32),
    "room, 0.5 s": lambda clip, rate, generator: reverberant(clip, rate, generator, 0.5, 0),
    "hall, 1.5 s": lambda clip, rate, generator: reverberant(clip, rate, generator, 1.5, -5),
    "noise at 20 dB": lambda clip, rate, generator: noisy(clip, generator, 20),
    "noise at 10 dB": lambda clip, rate, generator: noisy(clip, generator, 10),
    "noise at 0 dB": lambda clip, rate, generator: noisy(clip, generator, 0),
    "first quarter cut off": lambda clip, rate, generator: cut(clip, 0.25, start=True),
    "last quarter cut off": lambda clip, rate, generator: cut(clip, 0.25, start=False),
    "speed -10 %": lambda clip, rate, generator: at_speed(clip, rate, 0.9),
    "speed +10 %": lambda clip, rate, generator: at_speed(clip, rate, 1.1),
}


class ChangedSounds:
    """Rows of a split whose clips are changed when they are read: `rows[3]["audio"]`.

    Args:
        rows: with `audio` (see `processing.audio.load_column`).
        numbers: of each row; with the seed they decide what is random.
        change: a name in `SOUND_CHANGES`.
        rate: of the clips, in Hz.
        least: samples of a clip; a shorter one gets silence at its end.
    """

    def __init__(
        self, rows: Sequence[dict], numbers: Sequence[int], change: str, rate: int, seed: int, least: int = 1
    ):
        self.rows, self.numbers, self.rate, self.least = rows, numbers, rate, least
        self.change, self.seed = SOUND_CHANGES[change], seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip = load_column(self.rows[index]["audio"], self.rate)
        changed = self.change(clip, self.rate, np.random.default_rng((self.seed, self.numbers[index])))
        changed = np.pad(changed, (0, max(0, self.least - len(changed))))
        return {"audio": {"array": changed, "sampling_rate": self.rate}}
