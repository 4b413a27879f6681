"""Log-mels of checked clips: Whisper's at the clip's own length or the paper's 30 s, and CLAP's in windows of 10 s."""

from functools import cache
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import BatchFeature, ClapFeatureExtractor, WhisperFeatureExtractor

# The older transformers 5 copy only the files that this one imports itself.
from .audio_inputs_wavlink import LOUDEST as LOUDEST
from .checked_clips_wavlink import WindowedClips
from .compat_features_wavlink import clap_log_mel, whisper_log_mel
from .downmix_wavlink import mono_blocks as mono_blocks
from .log_mel_wavlink import MelFilters, log_mel
from .whisper_features_wavlink import PADDINGS, WhisperFeatures

_FILTERS: WeakKeyDictionary = WeakKeyDictionary()  # of each extractor: its `mel_filters`, and these as `MelFilters`


class WavLinkFeatureExtractor(WhisperFeatures, WhisperFeatureExtractor):
    """Whisper's log-mel spectrogram of each clip by itself, independent of the other clips of a batch.

    The first frames of a clip are those of `WhisperFeatureExtractor`, which pads to 30 s: at native length only the
    frames after the clip's end are left out.

    Args:
        feature_size (`int`): mel bins.
        padding (`str`): the default of calls. `"longest"` (native length): `ceil(samples / 160)` frames of
            10 ms, padded to the longest clip of the batch, with `input_features_mask`. `"max_length"` (the paper's
            way): 3000 frames and no mask, so that the model attends to the silence too.
        kwargs: as for `WhisperFeatureExtractor`.

    Raises:
        ValueError: an unknown padding; when called: clips that are not mono floats `[samples]`, are longer than 30 s,
            or have another sampling rate, or none.

    Example:

    ```python
    >>> import numpy as np
    >>> from wavlink import WavLinkFeatureExtractor
    >>> extractor = WavLinkFeatureExtractor()
    >>> extractor(np.zeros(16000, dtype=np.float32), sampling_rate=16000, return_tensors="pt").input_features.shape
    torch.Size([1, 80, 100])

    ```
    """

    model_input_names = ["input_features", "input_features_mask"]

    def __init__(self, feature_size: int = 80, padding: str = "longest", **kwargs: object):
        kwargs.pop("auto_map", None)  # from a file; saving writes a new one
        super().__init__(feature_size=feature_size, **kwargs)
        if padding not in PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, got {padding!r}")
        self.padding = padding

    def __call__(
        self,
        raw_speech: object,
        sampling_rate: int | None = None,
        padding: bool | str | None = None,
        return_tensors: str | None = None,
        pad_to_multiple_of: int | None = None,
        truncation: bool | None = None,
        max_length: int | None = None,
        return_attention_mask: bool | None = None,
        device: str | None = None,
        **kwargs: object,
    ) -> BatchFeature:
        """Compute the log-mels of clips.

        Args:
            raw_speech: one mono clip `[samples]` of floats in [-1, 1] (numpy, torch or a list), a file's path or
                bytes, `{"array", "sampling_rate"}`, `{"path", "bytes"}`, a decoder of `datasets`, or a list of these.
            sampling_rate: of bare arrays, in Hz; required with them, and must be this extractor's. Other inputs
                hold their rate, and are resampled.
            padding: `"longest"`, `"max_length"`, or None and True for this checkpoint's own way; False gives a list
                of unpadded spectrograms.
            return_tensors: `"pt"` or `"np"`.
            pad_to_multiple_of: pads a native-length batch to a multiple of this number of *frames*.
            truncation: ignored; it exists for callers that pass it to every modality. A clip over 30 s is always an
                error, since a truncated clip would have another vector.
            max_length: samples that a clip may have, at most 30 s of them; a longer one is an error.
            return_attention_mask: False leaves `input_features_mask` out, where no clip is padded; True returns a
                mask with `"max_length"` too, which is 1 for all frames, silence included.
            device: where log-mels are computed, such as `"cuda"` (default: on the CPU).
            kwargs: ignored with a warning.

        Returns:
            `input_features` `[B, F, T]` float32 and, at native length, `input_features_mask` `[B, T]` int64.

        Raises:
            ValueError: a missing or different sampling rate; a clip that is empty, not mono, not floating point, not
                finite, far louder than [-1, 1], or longer than 30 s; a file that cannot be read.
        """
        self._warn_of_unknown(kwargs)
        options = (padding, pad_to_multiple_of, max_length, return_attention_mask, device)
        features = self._features_of(raw_speech, sampling_rate, *options)
        return BatchFeature(features, tensor_type=return_tensors)

    def _spectrogram(self, clip: np.ndarray, length: int, frames: int, device: str, exact: bool) -> np.ndarray:
        if exact or self.dither or torch.device(device).type != "cpu":
            return whisper_log_mel(self, np.pad(clip, (0, length - len(clip))), device)[:, :frames]
        return log_mel(clip, _filters(self), _window(self.n_fft), self.hop_length, _rfft, length, frames)


class WavLinkClapFeatureExtractor(WindowedClips, ClapFeatureExtractor):
    """CLAP's log-mel in dB, in windows of 10 s, for an HTS-AT tower. It is deterministic.

    A clip of at most one window has the features of `ClapFeatureExtractor`: the clip is repeated as often as it fits
    completely, then padded with zeros ("repeatpad"). A longer clip is covered by as few windows as possible, evenly
    spaced, the first at its start and the last at its end, and the model averages their vectors;
    `ClapFeatureExtractor` would crop 10 s at random.

    Args:
        padding (`str`): `"longest"`, the only choice: clips are padded with masked windows to the batch's maximum.
        chunk_length (`int`): length of the longest clip, in seconds.
        kwargs: as for `ClapFeatureExtractor`; the defaults are those of `laion/clap-htsat-unfused`.
    """

    model_input_names = ["input_features", "input_features_mask"]
    _axes, _time_axis = 3, 0  # of a clip's features, [W, T, F]
    _tower = "an HTS-AT tower"

    def __init__(
        self,
        feature_size: int = 64,
        padding: str = "longest",
        chunk_length: int = 30,
        frequency_min: float = 50,
        **kwargs: object,
    ):
        # "rand_trunc" only selects the mel filters here (Slaney's): no clip is ever cut.
        kwargs["truncation"] = "rand_trunc"
        kwargs.pop("auto_map", None)  # as above
        super().__init__(feature_size=feature_size, frequency_min=frequency_min, padding="repeatpad", **kwargs)
        if padding != "longest":
            raise ValueError(f"padding must be 'longest' for an HTS-AT tower, whose windows are full, got {padding!r}")
        self.padding = padding
        self.chunk_length = chunk_length

    @classmethod
    def from_clap(cls, extractor: ClapFeatureExtractor, **kwargs: object) -> "WavLinkClapFeatureExtractor":
        """Make an extractor with the log-mel of a pretrained CLAP.

        Args:
            extractor: of a CLAP without fusion.
            kwargs: fields of this class, such as `chunk_length`.

        Raises:
            ValueError: a CLAP with fusion.
        """
        if extractor.truncation != "rand_trunc" or extractor.padding != "repeatpad":
            raise ValueError(
                "the feature extractor must have truncation='rand_trunc' and padding='repeatpad', as those of CLAPs "
                f"without fusion (laion/clap-htsat-unfused), got {extractor.truncation!r} and {extractor.padding!r}"
            )
        names = ("feature_size", "sampling_rate", "hop_length", "max_length_s", "fft_window_size")
        names += ("frequency_min", "frequency_max")
        return cls(**{name: getattr(extractor, name) for name in names}, **kwargs)

    @property
    def n_samples(self) -> int:
        """Samples of the longest clip."""
        return self.chunk_length * self.sampling_rate

    @property
    def _longest(self) -> int:
        return -(-self.n_samples // self.nb_max_samples)

    def _is_own(self, clip: np.ndarray) -> bool:
        return clip.shape[-1] == self.feature_size

    def _features(self, clip: np.ndarray) -> np.ndarray:
        """Compute the windows' log-mels, `[samples] -> [W, T, F]`."""
        windows = [clap_log_mel(self, window) for window in self._windows(clip, self.nb_max_samples)]
        return np.concatenate(windows).astype(np.float32, copy=False)


def _filters(extractor: WavLinkFeatureExtractor) -> MelFilters:
    """Return an extractor's filters, which are kept outside of it, since it saves all its attributes."""
    known, filters = _FILTERS.get(extractor, (None, None))
    if filters is None or known is not extractor.mel_filters:
        filters = MelFilters(extractor.mel_filters)
        _FILTERS[extractor] = extractor.mel_filters, filters
    return filters


@cache
def _window(length: int) -> np.ndarray:
    return torch.hann_window(length).numpy()


def _rfft(frames: np.ndarray) -> np.ndarray:
    return torch.fft.rfft(torch.from_numpy(frames)).numpy()  # several times as fast as numpy's


WavLinkFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
WavLinkClapFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
