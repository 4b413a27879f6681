"""Base of the feature extractors: clips are read and checked before a log-mel is computed, and padded after it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from .audio_inputs_wavlink import LOUDEST, as_list, is_source, load_source, to_numpy

if TYPE_CHECKING:
    from transformers import BatchFeature


class CheckedClips:
    """Mixin of a `SequenceFeatureExtractor` that checks clips.

    A subclass defines `_axes` (number of axes of a clip's features), `_time_axis`, `_longest` (the limit along that
    axis), `_is_own` and `_resolve_padding`.
    """

    def save_pretrained(self, save_directory: str, *args: object, **kwargs: object) -> list[str]:
        """Save as transformers does, but keep the file's `auto_map` off this object."""
        files = super().save_pretrained(save_directory, *args, **kwargs)
        vars(self).pop("auto_map", None)
        return files

    def _clips(self, audio, sampling_rate: int | None, max_length: int | None) -> list[np.ndarray]:
        """Return the checked samples of each clip. Bare arrays have `sampling_rate`; other inputs are resampled."""
        clips, limit = as_list(audio), min(max_length or self.n_samples, self.n_samples)
        if not all(map(is_source, clips)):
            self._check_sampling_rate(sampling_rate)
        return [
            self._check_clip(
                load_source(clip, self.sampling_rate) if is_source(clip) else to_numpy(clip), number, limit
            )
            for number, clip in enumerate(clips)
        ]

    def pad(
        self,
        processed_features: object,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> "BatchFeature":
        """Pad the features of clips, computed one by one, to the batch that the processor makes of the same clips.

        Args:
            processed_features: a list of `{"input_features": ...}`, as a collator gets it, or one dict of lists. Each
                clip has the features of `__call__` with or without their axis of length 1 in front; where it comes
                with its `input_features_mask`, only what that marks is the clip's. Features that are not this
                extractor's (in time first, `[T, F]`) are padded as `SequenceFeatureExtractor.pad` does it.
            padding: `"longest"`, `"max_length"`, True for this checkpoint's own way, or False for a list.
            max_length: of `padding="max_length"`, to how many frames (windows for HTS-AT); default: the longest clip
                that the model takes.
            truncation: ignored, as by `__call__`: features over `max_length` are an error.
            pad_to_multiple_of: frames (windows).
            return_attention_mask: see `__call__`.
            return_tensors: `"pt"` or `"np"`; default: the type of the input.

        Returns:
            `input_features` and `input_features_mask` as of `__call__`, and the clips' other fields.

        Raises:
            ValueError: no clips, or one that does not fit; features that were not computed for a checkpoint whose own
                way is `"max_length"`.
        """
        columns = _columns(processed_features)
        if not columns or not len(next(iter(columns.values()))):
            raise ValueError("no clips: give a list of at least one {'input_features': ...}")
        clips = self._computed(columns.get("input_features", ()), columns.pop("input_features_mask", None))
        if clips is None:
            options = (padding, max_length, truncation, pad_to_multiple_of, return_attention_mask, return_tensors)
            return super().pad(processed_features, *options)
        if return_tensors is None:
            return_tensors = "pt" if hasattr(columns["input_features"][0], "detach") else "np"
        way = self._resolve_padding(padding)
        if way is False:
            return _batch_feature({**columns, "input_features": clips})
        with_silence = way == self.padding == "max_length"  # the model attends to padding that `__call__` computed
        longest = max(clip.shape[self._time_axis] for clip in clips)
        length = (max_length or self._longest) if way == "max_length" else longest
        if longest > length or (with_silence and {clip.shape[self._time_axis] for clip in clips} != {self._longest}):
            raise ValueError(
                f"features of up to {longest} frames do not make a batch of "
                f"{self._longest if with_silence else length}: "
                "compute them with this extractor's own padding, or give a longer max_length"
            )
        if with_silence and return_attention_mask is None:
            return_attention_mask = False
        length = self._multiple(length, pad_to_multiple_of)
        return _batch_feature(columns | self._batch(clips, length, return_attention_mask), return_tensors)

    def _computed(self, features, masks) -> list[np.ndarray] | None:
        """Return each clip's features without padding, None where they are not features of `__call__`."""
        if getattr(features, "ndim", None) == self._axes and self._is_own(features):
            features = [features]  # one clip
        clips = [to_numpy(clip) for clip in features]
        clips = [clip[0] if clip.ndim == self._axes + 1 and len(clip) == 1 else clip for clip in clips]
        if not all(clip.ndim == self._axes and self._is_own(clip) for clip in clips):
            return None
        if masks is not None:
            counts = [int(to_numpy(mask).sum()) for mask in masks]
            clips = [np.take(clip, range(n), axis=self._time_axis) for clip, n in zip(clips, counts, strict=True)]
        return [clip.astype(np.float32) for clip in clips]  # never the caller's own memory

    def _batch(self, clips: list[np.ndarray], length: int, return_attention_mask: bool | None) -> dict:
        """Pad clips with zeros to `length` along the axis of time, and make the mask.

        Without a mask the model attends to the padding, so it is left out only where there is no padding.
        """
        counts = np.array([clip.shape[self._time_axis] for clip in clips])
        if return_attention_mask is False and counts.min() < length:
            raise ValueError(
                "clips that are padded need their input_features_mask: leave return_attention_mask out, or give clips "
                "of one length"
            )
        shape, axis = clips[0].shape, self._time_axis
        if len(clips) == 1 and counts[0] == length:
            features = np.ascontiguousarray(clips[0])[None]
        else:
            features = np.zeros((len(clips), *shape[:axis], length, *shape[axis + 1 :]), dtype=clips[0].dtype)
            for row, clip, count in zip(features, clips, counts, strict=True):
                row.swapaxes(0, axis)[:count] = clip.swapaxes(0, axis)
        batch = {"input_features": features}
        if return_attention_mask is not False:
            batch["input_features_mask"] = (np.arange(length) < counts[:, None]).astype(np.int64)
        return batch

    def _multiple(self, length: int, multiple: int | None) -> int:
        return min(-(-length // multiple) * multiple, max(self._longest, length)) if multiple else length

    def _warn_of_unknown(self, options: dict) -> None:
        from transformers.utils import logging

        logger = logging.get_logger(__name__)
        for name in options:
            logger.warning_once(
                f"Keyword argument `{name}` is not a valid argument for {type(self).__name__} and will be ignored."
            )

    def _check_sampling_rate(self, sampling_rate: int | None) -> None:
        if sampling_rate is None:
            raise ValueError(
                f"sampling_rate is missing: say the clips' rate in Hz, sampling_rate={self.sampling_rate} if they "
                "have this model's"
            )
        if sampling_rate != self.sampling_rate:
            raise ValueError(
                f"the clips have {sampling_rate} Hz but this model takes {self.sampling_rate} Hz: resample them, for "
                f"example with soxr.resample(clip, {sampling_rate}, {self.sampling_rate})"
            )

    def _check_clip(self, clip: np.ndarray, number: int, limit: int) -> np.ndarray:
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
        if not max(-clip.min(), clip.max()) <= LOUDEST:  # so also of NaN, which both return
            if not np.isfinite(clip).all():
                raise ValueError(f"clip {number} holds NaN or infinite samples")
            raise ValueError(
                f"clip {number} holds samples beyond {LOUDEST:g}, not in [-1, 1]: divide 16-bit samples by 32768"
            )
        if len(clip) > limit:
            raise ValueError(
                f"clip {number} has {len(clip)} samples, {len(clip) / self.sampling_rate:.2f} s, the limit is "
                f"{limit}, {limit / self.sampling_rate:g} s: cut it into windows and embed each"
            )
        return clip


class WindowedClips(CheckedClips):
    """Mixin of a feature extractor that covers a clip with as few full windows as possible, deterministically.

    The windows are evenly spaced, the first at the clip's start and the last at its end. A subclass defines what
    `CheckedClips` asks for but `_resolve_padding`, and `_tower` (its name in errors) and `_features`, those of a clip.
    """

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
        **kwargs: object,
    ) -> "BatchFeature":
        """Compute the log-mels of clips.

        Args:
            raw_speech, sampling_rate, max_length, return_attention_mask, kwargs: as for `WavLinkFeatureExtractor`.
            padding: `"longest"`, None and True are the same; False gives a list of unpadded clips.
            return_tensors: `"pt"` or `"np"`.
            pad_to_multiple_of: in frames (windows for HTS-AT).
            truncation: ignored, as by `WavLinkFeatureExtractor`: a clip over the limit is an error.

        Returns:
            `input_features` float32 and `input_features_mask` int64. PaSST's are `[B, F, T]` and `[B, T]`, with the
            frames of a clip's windows one after another; HTS-AT's `[B, W, T, F]` and `[B, W]`, W windows of T frames
            (1001 for 10 s).

        Raises:
            ValueError: as for `WavLinkFeatureExtractor`.
        """
        self._warn_of_unknown(kwargs)
        padding = self._resolve_padding(padding)
        features = [self._features(clip) for clip in self._clips(raw_speech, sampling_rate, max_length)]
        if padding is False:
            return _batch_feature({"input_features": features}, return_tensors)
        length = self._multiple(max(clip.shape[self._time_axis] for clip in features), pad_to_multiple_of)
        return _batch_feature(self._batch(features, length, return_attention_mask), return_tensors)

    def _resolve_padding(self, padding: bool | str | None) -> str | bool:
        if padding not in (None, True, "longest", False, "do_not_pad"):
            raise ValueError(f"padding must be 'longest', True or False for {self._tower}, got {padding!r}")
        return False if padding in (False, "do_not_pad") else "longest"

    @staticmethod
    def _windows(samples: np.ndarray, window: int) -> list[np.ndarray]:
        """Return the windows of `window` samples that cover `[samples]`; one shorter window of a shorter clip."""
        count = -(-len(samples) // window)
        starts = [number * (len(samples) - window) // max(count - 1, 1) for number in range(count)]
        return [samples[start : start + window] for start in starts]


def _columns(features) -> dict[str, list]:
    """Return a list of dicts as a dict of lists, one dict as a copy."""
    if isinstance(features, (list, tuple)) and features and isinstance(features[0], Mapping):
        return {name: [clip[name] for clip in features] for name in features[0]}
    return dict(features) if isinstance(features, Mapping) else {}


def _batch_feature(features: dict, return_tensors: str | None = None) -> "BatchFeature":
    from transformers import BatchFeature  # which a subclass without transformers does not need

    return BatchFeature(features, tensor_type=return_tensors)
