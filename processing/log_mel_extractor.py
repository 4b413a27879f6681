"""The feature extractor of a WavLink with a Whisper in numpy, without torch and transformers."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from .log_mel_wavlink import MelFilters, log_mel
from .whisper_features_wavlink import PADDINGS, WhisperFeatures

_BREAK, _LOG_STEP = 1000.0, 27 / np.log(6.4)  # Slaney's scale: linear up to 1 kHz, 15 mels of 200 / 3 Hz, then log
_HIGHEST = 8000.0  # Hz, of Whisper's filters


class LogMelExtractor(WhisperFeatures):
    """The features of `WavLinkFeatureExtractor`, as numpy arrays.

    Args:
        settings: of a saved `WavLinkFeatureExtractor`.

    Raises:
        ValueError: settings of another extractor, or of one that draws random numbers.
    """

    def __init__(self, settings: Mapping[str, Any]):
        kind = settings.get("feature_extractor_type", "WavLinkFeatureExtractor")
        if kind not in ("WavLinkFeatureExtractor", "WhisperFeatureExtractor") or settings.get("dither"):
            raise ValueError(f"the feature extractor, a {kind} with dither={settings.get('dither')}, needs torch")
        defaults = {"feature_size": 80, "sampling_rate": 16000, "hop_length": 160, "chunk_length": 30, "n_fft": 400}
        for name, default in defaults.items():
            value = settings.get(name, default)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} of the feature extractor must be a whole number, 1 or more, got {value!r}")
            setattr(self, name, value)
        self.padding = settings.get("padding", "longest")
        if self.padding not in PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, got {self.padding!r}")
        self.n_samples = self.chunk_length * self.sampling_rate
        self.nb_max_frames = self.n_samples // self.hop_length

    def __call__(
        self,
        raw_speech: object,
        sampling_rate: int | None = None,
        padding: bool | str | None = None,
        return_attention_mask: bool | None = None,
    ) -> dict[str, Any]:
        """Compute the log-mels of clips; see `WavLinkFeatureExtractor`."""
        options = {"padding": padding, "return_attention_mask": return_attention_mask}
        return self._features_of(raw_speech, sampling_rate, **options)

    def _spectrogram(self, clip: np.ndarray, length: int, frames: int, device: str, exact: bool) -> np.ndarray:
        filters = _filters(self.feature_size, self.n_fft, self.sampling_rate)
        return log_mel(clip, filters, _hann(self.n_fft), self.hop_length, length=length, frames=frames)


@cache
def _filters(bands: int, n_fft: int, sampling_rate: int) -> MelFilters:
    return MelFilters(mel_filters(bands, n_fft, sampling_rate))


def mel_filters(bands: int, n_fft: int, sampling_rate: int) -> np.ndarray:
    """Return Whisper's triangular filters, `[n_fft // 2 + 1, bands]` fp32, from 0 Hz to 8 kHz.

    They are on Slaney's mel scale, each of area 1 over Hz: Auditory Toolbox, technical report 1998-010, Interval
    Research Corporation.
    """
    top = _BREAK * 3 / 200 + np.log(_HIGHEST / _BREAK) * _LOG_STEP  # 8 kHz in mels
    mels = np.linspace(0, top, bands + 2)
    linear = mels * 200 / 3
    edges = np.where(mels < 15, linear, _BREAK * np.exp((np.maximum(mels, 15) - 15) / _LOG_STEP))  # in Hz
    bins = np.linspace(0, sampling_rate // 2, n_fft // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - bins) / np.diff(edges)[1:]
    return (np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])).astype(np.float32)


@cache
def _hann(length: int) -> np.ndarray:
    """Return the periodic Hann window `[length]` fp32."""
    return np.hanning(length + 1)[:-1].astype(np.float32)
