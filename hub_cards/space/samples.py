"""Sounds to try: the twelve real clips, and a recording with some of them at known times."""

from functools import cache

import numpy as np

from processing.audio import load_audio
from wavlink.samples import real_samples

RATE = 16000  # Hz
RECORDING = "Water, with an alarm and a cow"
RECORDING_SECONDS = 24
EVENTS = {"alarm": 6, "cow moo": 15}  # seconds at which they begin
_WATER = "water stream"

_PATHS = {row["label"]: row["path"] for row in real_samples()}
LABELS = tuple(_PATHS)
NAMES = tuple(label.capitalize() for label in LABELS)


def sample(name: str) -> tuple[int, np.ndarray]:
    """Return the rate and int16 `[samples]` of one of `NAMES`, or of `RECORDING`, which has 24 s."""
    clip = _recording() if name == RECORDING else _clip(name.lower())
    return RATE, np.int16(16000 * clip / np.abs(clip).max())


@cache
def _clip(label: str) -> np.ndarray:
    return load_audio(_PATHS[label], RATE)


def _recording() -> np.ndarray:
    """Make faint water from start to end, forwards and backwards in turn, and louder events in it."""
    water = _level(_clip(_WATER))
    length = RECORDING_SECONDS * RATE
    clip = 0.05 * np.tile(np.concatenate([water, water[::-1]]), -(-length // (2 * len(water))))[:length]
    for label, second in EVENTS.items():
        event = _level(_clip(label))
        clip[second * RATE : second * RATE + len(event)] += event
    return clip


def _level(clip: np.ndarray) -> np.ndarray:
    return clip / np.sqrt(np.mean(clip**2))
