"""Whisper's log-mel of one clip in numpy, with the Fourier transform of any library."""

from collections.abc import Callable

import numpy as np

_FRAMES = 256  # at once, which stay in the processor's cache from step to step
# OpenBLAS divides larger products among threads, which takes longer while the model runs beside.
_PRODUCT = 2**18  # multiplications


class MelFilters:
    """Mel filters, whose products leave out the bins where neighbouring bands are zero.

    Args:
        filters: `[n_fft // 2 + 1, F]`. Each band has one range of bins, and higher bands have higher ones.

    Attributes:
        bands: their number, F.
    """

    def __init__(self, filters: np.ndarray):
        self.bands = filters.shape[1]
        ranges = [np.flatnonzero(band) for band in filters.T]
        ranges = [(int(bins[0]), int(bins[-1]) + 1) if len(bins) else (0, 0) for bins in ranges]
        self._parts, first = [], 0
        for end in range(1, self.bands + 1):
            if end < self.bands and _cost(ranges[first : end + 1]) <= _PRODUCT // _FRAMES:
                continue
            bins = slice(*_span(ranges[first:end]))
            part = np.ascontiguousarray(filters[bins, first:end].T, np.float32)
            self._parts.append((bins, slice(first, end), part))
            first = end

    def apply(self, power: np.ndarray, out: np.ndarray) -> None:
        """Write the mel spectrum `[F, T]` of a power spectrum `[T, n_fft // 2 + 1]` to `out`, both float32."""
        for bins, bands, part in self._parts:
            np.matmul(part, power[:, bins].T, out=out[bands])


def _span(ranges: list[tuple[int, int]]) -> tuple[int, int]:
    return min(start for start, _ in ranges), max(stop for _, stop in ranges)


def _cost(ranges: list[tuple[int, int]]) -> int:
    """Return the multiplications of a frame with bands that share the bins of all."""
    start, stop = _span(ranges)
    return (stop - start) * len(ranges)


def log_mel(
    samples: np.ndarray,
    filters: MelFilters,
    window: np.ndarray,
    hop_length: int,
    rfft: Callable[[np.ndarray], np.ndarray] = np.fft.rfft,
    length: int | None = None,
    frames: int | None = None,
) -> np.ndarray:
    """Compute Whisper's log-mel `[F, length // hop_length]`, float32, normalised by its own maximum.

    It is that of `WhisperFeatureExtractor` up to rounding: 1e-6 with torch's transform, 1e-4 with another one, whose
    rounding shows where a frame has 80 dB less than the loudest one.

    Args:
        samples: float32 `[samples]`, padded to `length` more than half a window.
        filters: of `n_fft`.
        window: float32 `[n_fft]`, of Hann.
        hop_length: samples from one frame to the next.
        rfft: of the last axis, float32 `[T, n_fft] -> [T, n_fft // 2 + 1]`.
        length: number of samples to which zeros pad the clip, default: its own.
        frames: how many of the first frames are returned; all count for the maximum. Default: all.
    """
    windows = _windows(samples, len(window), hop_length, len(samples) if length is None else length)
    mel = np.empty((filters.bands, len(windows)), np.float32)
    windowed = np.empty((min(_FRAMES, len(windows)), len(window)), np.float32)
    power = np.empty((len(windowed), len(window) // 2 + 1), np.float32)
    for start in range(0, len(windows), _FRAMES):
        some = windows[start : start + _FRAMES]
        spectrum = rfft(np.multiply(some, window, out=windowed[: len(some)]))
        magnitudes = np.abs(spectrum, out=power[: len(some)])
        filters.apply(np.square(magnitudes, out=magnitudes), mel[:, start : start + _FRAMES])
    # of a row of equal numbers numpy takes the maximum several times as fast as of a single number
    np.log10(np.maximum(mel, np.full(len(windows), 1e-10, np.float32), out=mel), out=mel)
    loudest, mel = mel.max(), mel[:, :frames]
    mel = np.maximum(mel, np.full(mel.shape[1], loudest - 8, np.float32))
    mel += 4
    mel *= 0.25
    return mel


def _windows(samples: np.ndarray, length: int, hop: int, total: int) -> np.ndarray:
    """Return the windows `[total // hop, length]` of `[samples]`, a view of one copy.

    The copy is padded with zeros to `total` samples, and reflected at both ends.
    """
    half = length // 2
    padded = np.empty(total + 2 * half, np.float32)
    inner = padded[half:-half]
    inner[: len(samples)], inner[len(samples) :] = samples, 0
    padded[:half], padded[-half:] = inner[half:0:-1], inner[-2 : -half - 2 : -1]
    return np.ndarray((total // hop, length), np.float32, padded, strides=(hop * 4, 4))
