"""Whisper's log-mel of one clip in numpy, with the Fourier transform of any library."""

from collections.abc import Callable

import numpy as np

# OpenBLAS divides larger products among threads, which takes longer while the model runs beside.
_PRODUCT = 2**18  # multiplications
_PRODUCTS = 32  # in a block of frames, which stays in the processor's cache from step to step


def log_mel(
    samples: np.ndarray,
    filters: np.ndarray,
    window: np.ndarray,
    hop_length: int,
    rfft: Callable[[np.ndarray], np.ndarray] = np.fft.rfft,
) -> np.ndarray:
    """Compute Whisper's log-mel `[F, samples // hop_length]`, float32, normalised by its own maximum.

    It is that of `WhisperFeatureExtractor` up to rounding: 1e-6 with torch's transform, 1e-4 with another one, whose
    rounding shows where a frame has 80 dB less than the loudest one.

    Args:
        samples: float32 `[samples]`.
        filters: float32 `[n_fft // 2 + 1, F]`.
        window: float32 `[n_fft]`, of Hann.
        hop_length: samples from one frame to the next.
        rfft: of the last axis, float32 `[T, n_fft] -> [T, n_fft // 2 + 1]`.
    """
    padded = np.pad(samples, len(window) // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, len(window))[::hop_length][:-1]  # (T, n_fft)
    rows = max(1, _PRODUCT // filters.size)  # of a product
    block = rows * _PRODUCTS
    mel = np.empty((-(-len(frames) // block) * _PRODUCTS, rows, filters.shape[1]), np.float32)
    power = np.zeros((_PRODUCTS, rows, len(filters)), np.float32)
    for start in range(0, len(frames), block):
        spectrum = rfft(frames[start : start + block] * window)
        part = power.reshape(block, -1)[: len(spectrum)]
        np.square(np.abs(spectrum), out=part, casting="same_kind")
        np.matmul(power, filters, out=mel[start // rows :][:_PRODUCTS])
    mel = mel.reshape(-1, filters.shape[1])[: len(frames)]
    np.log10(np.maximum(mel, 1e-10, out=mel), out=mel)
    np.maximum(mel, mel.max() - 8, out=mel)
    mel += 4
    mel /= 4
    return mel.T
