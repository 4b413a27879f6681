"""Streaming of a recording of any length in overlapping windows, in the memory of two windows."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .audio import limited, load_column, opened, resampled

MAX_HOURS = 48  # of one recording; a file of 1 MB can hold weeks of silence, all of which would be encoded


@dataclass(frozen=True)
class Window:
    """A part of a recording: `samples` float32 mono `[n]`, from `start` to `end` in seconds of the recording."""

    start: float
    end: float
    samples: np.ndarray


def stream_windows(
    path_or_bytes: str | os.PathLike | bytes, window: float, hop: float, sampling_rate: int = 16000, name: str = ""
) -> Iterator[Window]:
    """Cut a sound file into windows while it is decoded.

    The samples are those of `load_audio`, to the last bit. A clip of at most `window` seconds is one window; in a
    longer one windows begin at 0, hop, 2 hop, ... (each to the nearest sample); the last one is moved back to end with
    the clip. The length in a file's header is not trusted: only decoded samples take memory, and more than `MAX_HOURS`
    of them are an error.

    Args:
        path_or_bytes, sampling_rate, name: as in `load_audio`; other inputs of `load_column` are held in memory.
        window: in seconds.
        hop: in seconds, from one window's start to the next one's; at most `window`, so that no sample is left out.

    Raises:
        ValueError: a wrong `window` or `hop`, at the call; errors of `load_audio`, while the stream is read.
    """
    check_window(window, hop, sampling_rate)
    return _windows(path_or_bytes, window, hop, sampling_rate, name)


def check_window(window: float, hop: float, sampling_rate: int = 16000) -> None:
    """Check that 0 < hop <= window < inf, in seconds, and that a hop has at least one sample.

    Raises:
        ValueError: it is not so.
    """
    if not 0 < hop <= window < math.inf:
        raise ValueError(
            f"a window of {window} s every {hop} s: give a window over 0 s, and a hop over 0 s and up to it"
        )
    if hop * sampling_rate < 1:
        raise ValueError(f"a hop of {hop} s is no sample at {sampling_rate} Hz: give {1 / sampling_rate} s or more")


def _windows(path_or_bytes, window: float, hop: float, rate: int, name: str) -> Iterator[Window]:
    length = round(window * rate)
    kept, first = np.empty(0, np.float32), 0  # samples since the latest window's start, which is sample `first`
    number, end = 0, 0  # number of the next window; last sample of the latest one
    for piece in _pieces(path_or_bytes, rate, name):
        kept = np.concatenate([kept, piece])
        while (start := round(number * hop * rate)) + length <= first + len(kept):
            kept, first, end = kept[start - first :], start, start + length
            yield Window(start / rate, end / rate, kept[:length].copy())
            number += 1
    total = first + len(kept)
    if total > end:  # the last window, full if the clip is long enough
        yield Window(max(0, total - length) / rate, total / rate, kept[-length:].copy())


def _pieces(path_or_bytes, rate: int, name: str) -> Iterator[np.ndarray]:
    """Yield mono samples `[n]` at `rate`; together they are those of `load_audio`."""
    if not isinstance(path_or_bytes, str | os.PathLike | bytes):
        yield load_column(path_or_bytes, rate)
        return
    with opened(path_or_bytes, name) as sound:
        most = MAX_HOURS * 3600 * sound.samplerate
        blocks = limited(sound, most, f"lasts over {MAX_HOURS} hours: cut it into files of that at most")
        yield from resampled(blocks, sound.samplerate, rate, sound.name)
