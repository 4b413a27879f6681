"""Building blocks of synthetic sounds: random parameters, tones, noise, and struck or plucked bodies.

Waveforms are `[samples]` at 16 kHz, times in seconds, pitches in Hz.
"""

from collections.abc import Iterable, Sequence

import numpy as np

SAMPLING_RATE = 16000  # Hz
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Draw:
    """Random parameters of a sound; `words` holds the name of every range drawn from, for the captions.

    Args:
        rng: the source of all randomness.
    """

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.words: dict[str, str] = {}

    def between(self, low: float, high: float) -> float:
        """Draw a number, log-uniform, since pitch, speed and level are perceived as ratios."""
        return float(np.exp(self.rng.uniform(np.log(low), np.log(high))))

    def word(self, attribute: str, **ranges: tuple[float, float]) -> float:
        """Draw a number from one of the ranges, e.g. `word("pitch", low=(100, 200), high=(400, 800))` in Hz."""
        name = self.words[attribute] = str(self.rng.choice(list(ranges)))
        return self.between(*ranges[name])

    def count(self, first: int, last: int) -> int:
        """Draw a whole number from `first` to `last`, as the word `number`."""
        number = int(self.rng.integers(first, last + 1))
        self.words["number"] = NUMBERS[number]
        return number


def clock(seconds: float) -> np.ndarray:
    """Return the time of each sample, `[samples]`.

    The length is a multiple of 10 ms, since an FFT of a size with a large prime factor is slow.
    """
    return np.arange(round(100 * seconds) * SAMPLING_RATE // 100) / SAMPLING_RATE


def tone(draw: Draw, t: np.ndarray, hertz: float | np.ndarray, amplitudes: Sequence[float] = (1,)) -> np.ndarray:
    """Synthesise harmonics 1, 2, ... of a pitch that may change with the time t `[samples]`; none is near Nyquist."""
    hertz = np.broadcast_to(hertz, t.shape)
    amplitudes = amplitudes[: int(0.48 * SAMPLING_RATE / hertz.max())]
    turns = draw.rng.random() + np.cumsum(hertz) / SAMPLING_RATE
    # The harmonics are powers of one rotation, so that one complex exponential is enough.
    return np.polyval([*amplitudes[::-1], 0], np.exp(2j * np.pi * turns)).imag


def noise(draw: Draw, samples: int, low: float = 20, high: float = 8000, slope: float = 0) -> np.ndarray:
    """Synthesise noise of RMS 1 from `low` to `high` (Hz), with power in proportion to frequency ** slope."""
    hertz = np.fft.rfftfreq(samples, 1 / SAMPLING_RATE).clip(1)
    gain = hertz ** (slope / 2) / np.sqrt((1 + (low / hertz) ** 8) * (1 + (hertz / high) ** 8))
    spectrum = draw.rng.normal(size=gain.size) + 1j * draw.rng.normal(size=gain.size)
    wave = np.fft.irfft(gain * spectrum, samples)
    return wave / wave.std()


def struck(draw: Draw, seconds: float, hertz: float, ratios: tuple[float, ...], life: float) -> np.ndarray:
    """Synthesise decaying partials at ratios of a pitch; `life` is the decay time of ratio 1, others scale."""
    t = clock(seconds)
    turns = [(ratio, hertz * ratio * t + draw.rng.random()) for ratio in ratios]
    return sum(np.sin(2 * np.pi * turn) * np.exp(-t * ratio / life) / ratio**0.5 for ratio, turn in turns)


def plucked(draw: Draw, seconds: float, hertz: float) -> np.ndarray:
    """Synthesise a string (Karplus and Strong, 1983): a period of noise, then smoothed copies of the last period."""
    period = round(SAMPLING_RATE / hertz)
    spectrum = np.fft.rfft(draw.rng.normal(size=period))
    spectrum[0] = 0
    smoothing = 0.997 * np.cos(np.pi * np.arange(spectrum.size) / period)  # gain of the mean of two neighbours
    passes = np.arange(round(seconds * hertz))[:, None]
    return np.fft.irfft(spectrum * smoothing**passes, period).ravel()  # [periods, period] -> [samples]


def blow(draw: Draw, hertz: float, life: float, mix: float, centre: float) -> np.ndarray:
    """Synthesise a body of falling pitch and a share `mix` of noise around `centre` (Hz), of decay time `life`."""
    t = clock(0.01 + 5 * life)
    body = tone(draw, t, hertz * draw.between(0.9, 1.1) * (1 + np.exp(-t / 0.02)))
    return ((1 - mix) * body + mix * noise(draw, t.size, centre / 2, centre * 2) / 3) * np.exp(-t / life)


def lay(starts: Iterable[float], pieces: Iterable[np.ndarray]) -> np.ndarray:
    """Add waveforms, each at its start time."""
    spans = [(round(start * SAMPLING_RATE), piece) for start, piece in zip(starts, pieces, strict=True)]
    wave = np.zeros(max(begin + piece.size for begin, piece in spans))
    for begin, piece in spans:
        wave[begin : begin + piece.size] += piece
    return wave
