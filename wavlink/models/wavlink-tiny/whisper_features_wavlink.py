"""Whisper's log-mels of checked clips, at each clip's own length or padded to 30 s, in numpy."""

import numpy as np

from .checked_clips_wavlink import CheckedClips

PADDINGS = ("longest", "max_length")


class WhisperFeatures(CheckedClips):
    """Mixin of a feature extractor of Whisper's log-mels. Each clip's are independent of the others of a batch.

    A subclass has the settings of `WhisperFeatureExtractor` and `padding`, and defines `_spectrogram`: the first
    `frames` of the log-mel of a clip padded with zeros to `length` samples, at most 30 s, normalised by the maximum of
    all its frames. `exact` asks it for Whisper's own code, where it has that.
    """

    _axes, _time_axis = 2, 1  # of a clip's features, [F, T]

    def _features_of(
        self,
        audio: object,
        sampling_rate: int | None,
        padding: bool | str | None = None,
        pad_to_multiple_of: int | None = None,
        max_length: int | None = None,
        return_attention_mask: bool | None = None,
        device: str | None = None,
    ) -> dict:
        """Return `input_features` and, at native length, `input_features_mask`; see `WavLinkFeatureExtractor`."""
        padding = self._resolve_padding(padding)
        clips = self._clips(audio, sampling_rate, max_length)
        if padding == "max_length":
            spectrograms = [self._log_mel(clip, self.n_samples, self._longest, device) for clip in clips]
            return self._batch(spectrograms, self._longest, return_attention_mask or False)
        # Two frames past the end still overlap the clip: they count for its maximum, as in 30 s of padding.
        frames = [-(-len(clip) // self.hop_length) for clip in clips]
        spectrograms = [
            self._log_mel(clip, (count + 2) * self.hop_length, count, device, exact=False)
            for clip, count in zip(clips, frames, strict=True)
        ]
        if padding is False:
            return {"input_features": spectrograms}
        return self._batch(spectrograms, self._multiple(max(frames), pad_to_multiple_of), return_attention_mask)

    @property
    def _longest(self) -> int:
        return self.nb_max_frames

    def _is_own(self, clip: np.ndarray) -> bool:
        return len(clip) == self.feature_size

    def _resolve_padding(self, padding: bool | str | None) -> str | bool:
        if padding is None or padding is True:
            return self.padding
        if padding is False or padding == "do_not_pad":
            return False
        if padding not in PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, True or False, got {padding!r}")
        return padding

    def _log_mel(
        self, clip: np.ndarray, length: int, frames: int, device: str | None, exact: bool = True
    ) -> np.ndarray:
        """Compute `[F, frames]` of a clip padded with zeros to `length` samples, at most 30 s."""
        return self._spectrogram(clip, min(length, self.n_samples), frames, device or "cpu", exact)
