"""Log-mels of checked clips: Whisper's at the clip's own length or the paper's 30 s, and CLAP's in windows of 10 s."""

import numpy as np
import torch
from transformers import BatchFeature, ClapFeatureExtractor, WhisperFeatureExtractor

from .compat_features_wavlink import clap_log_mel, whisper_log_mel

PADDINGS = ("longest", "max_length")
LOUDEST = 32.0  # 30 dB over full scale; only integers taken for floats are louder


class _CheckedClips:
    """What is refused before a log-mel is computed."""

    def _check_sampling_rate(self, sampling_rate: int | None) -> None:
        if sampling_rate is None:
            raise ValueError(
                f"sampling_rate is missing: say the clips' rate in Hz, sampling_rate={self.sampling_rate} if they "
                "have this model's"
            )
        if sampling_rate != self.sampling_rate:
            raise ValueError(
                f"the clips have {sampling_rate} Hz but this model hears {self.sampling_rate} Hz: resample them, for "
                f"example with soxr.resample(clip, {sampling_rate}, {self.sampling_rate})"
            )

    def _check_clip(self, clip, number: int) -> np.ndarray:
        if isinstance(clip, torch.Tensor):
            clip = clip.detach().cpu()
            clip = clip.float() if clip.dtype == torch.bfloat16 else clip  # numpy has no bfloat16
        clip = np.asarray(clip)
        if clip.ndim != 1:
            raise ValueError(
                f"clip {number} has shape {list(clip.shape)}, a mono clip is [samples]: average the channels of "
                "stereo, and give several clips as a list"
            )
        if not len(clip):
            raise ValueError(f"clip {number} is empty")
        if not np.issubdtype(clip.dtype, np.floating):
            raise ValueError(
                f"clip {number} holds {clip.dtype}, not floats in [-1, 1]: divide 16-bit samples by 32768"
            )
        clip = clip.astype(np.float32, copy=False)
        if not np.isfinite(clip).all():
            raise ValueError(f"clip {number} holds NaN or infinite samples")
        if max(clip.max(), -clip.min()) > LOUDEST:
            raise ValueError(
                f"clip {number} holds samples beyond {LOUDEST:g}, not in [-1, 1]: divide 16-bit samples by 32768"
            )
        if len(clip) > self.n_samples:
            raise ValueError(
                f"clip {number} has {len(clip)} samples, {len(clip) / self.sampling_rate:.2f} s, the limit is "
                f"{self.n_samples}, {self.chunk_length} s: cut it into windows and embed each"
            )
        return clip


class WavLinkFeatureExtractor(_CheckedClips, WhisperFeatureExtractor):
    """Whisper's log-mel spectrogram of each clip by itself, so that it never depends on the clip's batch-mates.

    The first frames of a clip are those of `WhisperFeatureExtractor`, which pads to 30 s: at native length only the
    frames after the clip's end are left out.

    Args:
        padding (`str`): what calls that do not say get. `"longest"` (native length): `ceil(samples / 160)` frames of
            10 ms, padded to the longest clip of the batch, with `input_features_mask`. `"max_length"` (the paper's
            way): 3000 frames and no mask, so that the model hears the silence too.
        kwargs: as for `WhisperFeatureExtractor`.

    ```python
    >>> import numpy as np
    >>> from processing import WavLinkFeatureExtractor
    >>> extractor = WavLinkFeatureExtractor()
    >>> extractor(np.zeros(16000, dtype=np.float32), sampling_rate=16000, return_tensors="pt").input_features.shape
    torch.Size([1, 80, 100])
    ```
    """

    model_input_names = ["input_features", "input_features_mask"]

    def __init__(self, feature_size=80, padding="longest", **kwargs):
        super().__init__(feature_size=feature_size, **kwargs)
        if padding not in PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, got {padding!r}")
        self.padding = padding

    def __call__(
        self,
        raw_speech,
        sampling_rate: int | None = None,
        padding: bool | str | None = None,
        return_tensors: str | None = None,
        pad_to_multiple_of: int | None = None,
        truncation: bool | None = None,
    ) -> BatchFeature:
        """
        Args:
            raw_speech: one mono clip `[samples]` of floats in [-1, 1] (numpy, torch or a list), or a list of clips.
            sampling_rate: of the clips, in Hz; required, and must be this extractor's.
            padding: `"longest"`, `"max_length"`, or None and True for this checkpoint's own way; False gives a list
                of unpadded spectrograms.
            return_tensors: `"pt"` or `"np"`.
            pad_to_multiple_of: pads a native-length batch on to a multiple of so many *frames*.
            truncation: taken for the sake of callers that pass it to every modality; a clip over 30 s is an error
                whatever it says, since cutting it would give a vector of something else.

        Returns:
            `input_features` `[B, F, T]` float32 and, at native length, `input_features_mask` `[B, T]` int64.

        Raises:
            ValueError: a missing or different sampling rate; a clip that is empty, not mono, not floating point, not
                finite, far louder than [-1, 1], or longer than 30 s.
        """
        padding = self._resolve_padding(padding)
        self._check_sampling_rate(sampling_rate)
        clips = [self._check_clip(clip, number) for number, clip in enumerate(_as_list(raw_speech))]
        if padding == "max_length":
            batch = {"input_features": [self._log_mel(clip, self.n_samples) for clip in clips]}
        else:
            # Two frames past the end still overlap the clip: they count for its maximum, as in 30 s of padding.
            frames = [-(-len(clip) // self.hop_length) for clip in clips]
            spectrograms = [
                self._log_mel(clip, (count + 2) * self.hop_length)[:, :count]
                for clip, count in zip(clips, frames, strict=True)
            ]
            batch = self._pad(spectrograms, pad_to_multiple_of) if padding else {"input_features": spectrograms}
        if padding:
            batch = {name: np.stack(values) for name, values in batch.items()}
        return BatchFeature(batch, tensor_type=return_tensors)

    def _resolve_padding(self, padding: bool | str | None) -> str | bool:
        if padding is None or padding is True:
            return self.padding
        if padding is False or padding == "do_not_pad":
            return False
        if padding not in PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, True or False, got {padding!r}")
        return padding

    def _log_mel(self, clip: np.ndarray, samples: int) -> np.ndarray:
        """`[F, frames]` of the clip followed by zeros up to `samples`, at most 30 s, normalised by its own maximum."""
        padded = np.zeros(min(samples, self.n_samples), dtype=np.float32)
        padded[: len(clip)] = clip
        return whisper_log_mel(self, padded)

    def _pad(self, spectrograms: list[np.ndarray], multiple: int | None) -> dict[str, list[np.ndarray]]:
        longest = max(spectrogram.shape[1] for spectrogram in spectrograms)
        if multiple:
            longest = min(-(-longest // multiple) * multiple, self.nb_max_frames)
        features, masks = [], []
        for spectrogram in spectrograms:
            frames = spectrogram.shape[1]
            features.append(np.pad(spectrogram, ((0, 0), (0, longest - frames))))
            masks.append((np.arange(longest) < frames).astype(np.int64))
        return {"input_features": features, "input_features_mask": masks}


class WavLinkClapFeatureExtractor(_CheckedClips, ClapFeatureExtractor):
    """CLAP's log-mel in dB, in windows of 10 s, for an HTS-AT tower. Nothing of it is left to chance.

    A clip of at most one window gets what `ClapFeatureExtractor` gives it: repeated as often as it fits whole, then
    zeros ("repeatpad"). A longer one gets as few windows as cover it, evenly placed, the first at its start and the
    last at its end, of which the model averages the vectors; `ClapFeatureExtractor` would hear 10 s at random.

    Args:
        padding (`str`): `"longest"`, the only way: clips are padded with masked windows to the most of the batch.
        chunk_length (`int`): the longest clip, in seconds.
        kwargs: as for `ClapFeatureExtractor`; the defaults are those of `laion/clap-htsat-unfused`.
    """

    model_input_names = ["input_features", "input_features_mask"]

    def __init__(self, feature_size=64, padding="longest", chunk_length=30, frequency_min=50, **kwargs):
        # "rand_trunc" only names the mel filters here (Slaney's): no clip gets as far as being cut.
        kwargs["truncation"] = "rand_trunc"
        super().__init__(feature_size=feature_size, frequency_min=frequency_min, padding="repeatpad", **kwargs)
        if padding != "longest":
            raise ValueError(f"padding must be 'longest' for an HTS-AT tower, whose windows are full, got {padding!r}")
        self.padding = padding
        self.chunk_length = chunk_length

    @classmethod
    def from_clap(cls, extractor: ClapFeatureExtractor, **kwargs) -> "WavLinkClapFeatureExtractor":
        """With the log-mel of a pretrained CLAP.

        Args:
            extractor: of a CLAP without fusion.
            kwargs: fields of this class, such as `chunk_length`.
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
        return self.chunk_length * self.sampling_rate

    def __call__(
        self,
        raw_speech,
        sampling_rate: int | None = None,
        padding: bool | str | None = None,
        return_tensors: str | None = None,
        truncation: bool | None = None,
    ) -> BatchFeature:
        """
        Args:
            raw_speech: one mono clip `[samples]` of floats in [-1, 1] (numpy, torch or a list), or a list of clips.
            sampling_rate: of the clips, in Hz; required, and must be this extractor's.
            padding: `"longest"`, None and True are one; False gives a list of unpadded clips `[W, T, F]`.
            return_tensors: `"pt"` or `"np"`.
            truncation: taken and ignored, as by `WavLinkFeatureExtractor`: a clip over the limit is an error.

        Returns:
            `input_features` `[B, W, T, F]` float32, W windows of T frames (1001 for 10 s), and
            `input_features_mask` `[B, W]` int64.

        Raises:
            ValueError: as for `WavLinkFeatureExtractor`.
        """
        if padding not in (None, True, "longest", False, "do_not_pad"):
            raise ValueError(f"padding must be 'longest', True or False for an HTS-AT tower, got {padding!r}")
        self._check_sampling_rate(sampling_rate)
        clips = [self._check_clip(clip, number) for number, clip in enumerate(_as_list(raw_speech))]
        features = [self._windows(clip) for clip in clips]
        if padding in (False, "do_not_pad"):
            return BatchFeature({"input_features": features}, tensor_type=return_tensors)
        counts = np.array([len(windows) for windows in features])
        most = counts.max()
        padded = [np.pad(windows, ((0, most - len(windows)), (0, 0), (0, 0))) for windows in features]
        mask = (np.arange(most) < counts[:, None]).astype(np.int64)
        batch = {"input_features": np.stack(padded), "input_features_mask": mask}
        return BatchFeature(batch, tensor_type=return_tensors)

    def _windows(self, clip: np.ndarray) -> np.ndarray:
        """`[samples]` to `[W, T, F]`."""
        window = self.nb_max_samples
        count = -(-len(clip) // window)
        starts = [number * (len(clip) - window) // max(count - 1, 1) for number in range(count)]
        windows = [clap_log_mel(self, clip[start : start + window]) for start in starts]
        return np.concatenate(windows).astype(np.float32, copy=False)


def _as_list(raw_speech) -> list:
    """One clip becomes a list of one. A 2-D array is left as it is: it may be a batch, but also stereo."""
    if isinstance(raw_speech, (list, tuple)):
        if not raw_speech:
            raise ValueError("no clips: give one clip, or a list of at least one")
        return [raw_speech] if np.isscalar(raw_speech[0]) else list(raw_speech)
    return [raw_speech]


WavLinkFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
WavLinkClapFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
