"""Synthetic sounds to try: a bell, a siren, rain, a clock, and a recording with some of them at known times."""

import numpy as np

RATE = 16000  # Hz
RECORDING = "Faint rain, a bell and a siren"


def _times(seconds: float) -> np.ndarray:
    return np.arange(round(seconds * RATE)) / RATE  # [samples], in seconds


def _bell() -> np.ndarray:
    t = _times(3)
    partials = (0.5, 1, 1.2, 1.5, 2, 2.67, 4)
    return sum(np.sin(2 * np.pi * 330 * x * t) * np.exp(-1.1 * t * x) / x**0.5 for x in partials)


def _siren() -> np.ndarray:
    t = _times(4)
    hertz = 900 + 350 * np.sin(2 * np.pi * 0.4 * t)
    turns = np.cumsum(hertz) / RATE
    return sum(np.sin(2 * np.pi * n * turns) / n for n in (1, 2, 3))


def _rain() -> np.ndarray:
    rng = np.random.default_rng(0)
    drops = rng.normal(size=4 * RATE) * (rng.random(4 * RATE) < 0.02)
    return np.diff(rng.normal(size=4 * RATE) * 0.3 + np.convolve(drops, np.exp(-np.arange(40) / 6), "same"), prepend=0)


def _ticks() -> np.ndarray:
    rng, clip = np.random.default_rng(0), np.zeros(4 * RATE)
    tick = rng.normal(size=800) * np.exp(-np.arange(800) / 60)
    for start in range(RATE // 4, len(clip) - 800, RATE // 2):
        clip[start : start + 800] += tick
    return clip


_MAKERS = {"Church bell": _bell, "Siren": _siren, "Rain": _rain, "Ticking clock": _ticks}
NAMES = tuple(_MAKERS)


def sample(name: str) -> tuple[int, np.ndarray]:
    """Return the rate and int16 `[samples]` of one of `NAMES`, or of `RECORDING`, which has 24 s."""
    clip = _recording() if name == RECORDING else _MAKERS[name]()
    return RATE, np.int16(16000 * clip / np.abs(clip).max())


def _recording() -> np.ndarray:
    """Make faint rain from start to end, a bell from 6 to 9 s and a siren from 15 to 19 s."""
    clip = 0.003 * np.tile(_level(_rain()), 6)
    for second, event in ((6, _bell()), (15, _siren())):
        clip[second * RATE : second * RATE + len(event)] += _level(event)
    return clip


def _level(clip: np.ndarray) -> np.ndarray:
    return clip / np.sqrt(np.mean(clip**2))
