"""PaSST's log-mel of checked clips, at the clip's own length."""

import math

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, SequenceFeatureExtractor

# The older transformers 5 copy only the files that this one imports itself.
from .audio_inputs_wavlink import LOUDEST as LOUDEST
from .checked_clips_wavlink import WindowedClips
from .downmix_wavlink import mono_blocks as mono_blocks

_PREEMPHASIS = 0.97
_FLOOR = 1e-5  # added to a band's power before its logarithm
_MEAN, _SPREAD = -4.5, 5.0  # of log-mels, fixed
_NEEDED = {"feature_size": 1, "sampling_rate": 1, "hop_length": 1, "win_length": 2, "n_fft": 2, "window_frames": 1}


class WavLinkPasstFeatureExtractor(WindowedClips, SequenceFeatureExtractor):
    """PaSST's log-mel of each clip by itself, as `hear21passt` computes it in evaluation. It is deterministic.

    A clip of up to `window_frames` frames (10 s) keeps its own length: `ceil(samples / hop_length)` frames and at
    least `min_frames`, up to which a shorter one is padded with silence. A longer clip is covered by as few full
    windows as possible, evenly spaced, the first at its start and the last at its end; their frames come one after
    another, and the model averages their vectors.

    Args:
        feature_size (`int`): mel bands.
        sampling_rate, hop_length, win_length, n_fft (`int`): in Hz and samples.
        frequency_min, frequency_max (`float`): lower edge of the lowest and upper edge of the highest band, in Hz.
        window_frames, min_frames (`int`): frames of a full window, and the fewest of a clip: the model's
            `window_frames` and `patch_size`.
        chunk_length (`int`): length of the longest clip, in seconds.
        padding (`str`): `"longest"`, the only choice: clips are padded with masked frames to the longest of the batch.

    Raises:
        ValueError: sizes that do not fit together; when called: clips that are not mono floats `[samples]`, are longer
            than `chunk_length`, or have another sampling rate, or none.
    """

    model_input_names = ["input_features", "input_features_mask"]
    _axes, _time_axis = 2, 1  # of a clip's features, [F, T]
    _tower = "a PaSST tower"

    def __init__(
        self,
        feature_size: int = 128,
        sampling_rate: int = 32000,
        padding_value: float = 0.0,
        hop_length: int = 320,
        win_length: int = 800,
        n_fft: int = 1024,
        frequency_min: float = 0.0,
        frequency_max: float = 15000.0,
        window_frames: int = 1000,
        min_frames: int = 16,
        chunk_length: int = 30,
        padding: str = "longest",
        **kwargs: object,
    ):
        kwargs.pop("auto_map", None)  # from a file; saving writes a new one
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        if padding != "longest":
            raise ValueError(f"padding must be 'longest' for a PaSST tower, got {padding!r}")
        self.hop_length, self.win_length, self.n_fft = hop_length, win_length, n_fft
        self.frequency_min, self.frequency_max = frequency_min, frequency_max
        self.window_frames, self.min_frames = window_frames, min_frames
        self.chunk_length, self.padding = chunk_length, padding
        self._check_sizes()

    def _check_sizes(self) -> None:
        for name, least in _NEEDED.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number, {least} or more, got {value!r}")
        if self.win_length > self.n_fft or self.n_fft % 2:
            raise ValueError(f"n_fft must be even and at least win_length={self.win_length}, got {self.n_fft}")
        if not 0 <= self.frequency_min < self.frequency_max <= self.sampling_rate / 2:
            raise ValueError(
                f"frequency_min={self.frequency_min} and frequency_max={self.frequency_max} must rise and be at most "
                f"half the sampling rate, {self.sampling_rate / 2:g} Hz"
            )
        if not 1 <= self.min_frames <= self.window_frames:
            raise ValueError(f"min_frames must be 1 to window_frames={self.window_frames}, got {self.min_frames}")
        if self.n_samples < self.window_samples:
            raise ValueError(
                f"chunk_length={self.chunk_length} s is shorter than a window of {self.window_seconds:g} s "
                f"(window_frames={self.window_frames} frames): raise it"
            )

    @classmethod
    def from_passt(
        cls, config: PretrainedConfig, source: str | None = None, **kwargs: object
    ) -> "WavLinkPasstFeatureExtractor":
        """Make the extractor of a tower, whose bands, window and patch it takes.

        Args:
            config: the tower's.
            source: folder or Hub id of the tower; without a preprocessor_config.json there, the rest are defaults.
            kwargs: further fields, such as `chunk_length`.

        Raises:
            ValueError: a preprocessor_config.json of another extractor.
        """
        saved: dict = {}
        if source is not None:
            try:
                saved, _ = cls.get_feature_extractor_dict(source)
            except OSError:  # no such file
                saved = {}
        kind = saved.get("feature_extractor_type", cls.__name__)
        if kind != cls.__name__:
            raise ValueError(
                f"{source} has a feature extractor of type {kind!r}, a PaSST's is {cls.__name__}: delete its "
                "preprocessor_config.json, or save a WavLinkPasstFeatureExtractor there"
            )
        sizes = {
            "feature_size": config.num_mel_bins,
            "window_frames": config.window_frames,
            "min_frames": config.patch_size,
        }
        fields = {**saved, **kwargs, **sizes}
        if "chunk_length" not in fields:  # the default, or else one window
            seconds = config.window_frames * fields.get("hop_length", 320) / fields.get("sampling_rate", 32000)
            fields["chunk_length"] = max(30, math.ceil(seconds))
        return cls.from_dict(fields)

    @property
    def n_samples(self) -> int:
        """Samples of the longest clip."""
        return int(self.chunk_length * self.sampling_rate)

    @property
    def window_samples(self) -> int:
        """Samples of a full window."""
        return self.window_frames * self.hop_length

    @property
    def window_seconds(self) -> float:
        """Length of a full window in seconds."""
        return self.window_samples / self.sampling_rate

    @property
    def _longest(self) -> int:
        return -(-self.n_samples // self.window_samples) * self.window_frames

    def _is_own(self, clip: np.ndarray) -> bool:
        return len(clip) == self.feature_size

    def _features(self, clip: np.ndarray) -> np.ndarray:
        """Compute the log-mel of a clip's windows, `[samples] -> [F, T]`."""
        # The STFT reflects half a frame at each end, which must be there after the pre-emphasis.
        least = max((self.min_frames - 1) * self.hop_length + 1, self.n_fft // 2 + 2)
        samples = np.pad(clip, (0, max(0, least - len(clip))))
        bank = mel_bank(self.feature_size, self.n_fft, self.sampling_rate, self.frequency_min, self.frequency_max)
        windows = self._windows(samples, self.window_samples)
        return np.concatenate([self._spectrogram(window, bank) for window in windows], axis=1)

    def _spectrogram(self, samples: np.ndarray, bank: Tensor) -> np.ndarray:
        samples = torch.from_numpy(samples)
        samples = samples[1:] - _PREEMPHASIS * samples[:-1]
        window = torch.hann_window(self.win_length, periodic=False)
        spectrum = torch.stft(samples, self.n_fft, self.hop_length, self.win_length, window, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1)
        return (((bank @ power + _FLOOR).log() - _MEAN) / _SPREAD).numpy()


def mel_bank(bands: int, n_fft: int, sampling_rate: int, lowest: float, highest: float) -> Tensor:
    """Compute Kaldi's mel filters, triangles on the mel scale, `[bands, n_fft // 2 + 1]`, in fp32 as Kaldi does.

    The filters of low bands are narrower than the FFT's bins, so that rounding of the mel scale shows in them: an
    fp64 bank would differ from the one that PaSST was trained with.
    """
    low, high = (1127.0 * math.log(1.0 + frequency / 700.0) for frequency in (lowest, highest))
    step = (high - low) / (bands + 1)
    left, center, right = (low + (torch.arange(bands)[:, None] + offset) * step for offset in (0.0, 1.0, 2.0))
    mel = 1127.0 * (1.0 + sampling_rate / n_fft * torch.arange(n_fft // 2) / 700.0).log()
    filters = torch.minimum((mel - left) / (center - left), (right - mel) / (right - center)).clamp(min=0)
    return torch.nn.functional.pad(filters, (0, 1))  # the bin at half the sampling rate is in no filter


WavLinkPasstFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
