"""Processors of other libraries' models, called like `WavLinkProcessor`, whose results depend on the input alone."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from transformers import BatchFeature
from transformers.utils import logging

from .batching import refuse_other_samples

logger = logging.get_logger(__name__)


class AdaptedProcessor:
    """Calls a model's feature extractor and tokenizer as `WavLinkProcessor` is called.

    Args:
        feature_extractor: of the model, with a `sampling_rate` in Hz.
        tokenizer: of the model.
        text_limit: the most tokens of a text; longer ones are truncated, with one warning.

    Attributes:
        max_samples: the longest clip that the model takes, in samples; a longer file is cut into windows. None: of any
            length.
        min_samples: the shortest clip that the model takes.
        batches: whether the inputs are arrays of a whole batch.
        seeded: whether the extractor draws from numpy's global generator, which is then seeded by each clip.
        texts_truncated: number of texts that were truncated.
    """

    kind = "model"
    max_samples: int | None = None
    min_samples = 1
    batches = True
    seeded = False

    def __init__(self, feature_extractor: Any, tokenizer: Any, text_limit: int):
        self.feature_extractor = feature_extractor
        self.tokenizer = tokenizer
        self.text_limit = text_limit
        self.texts_truncated = 0

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        audio: np.ndarray | Sequence[np.ndarray] | None = None,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Compute the model's inputs.

        Args:
            text: a sentence or a list.
            audio: one mono clip `[samples]` of floats in [-1, 1] or a list.
            sampling_rate: of the clips, in Hz; required with audio.
            return_tensors: `"pt"` or `"np"`.

        Returns:
            The inputs of `get_text_features` and/or of `get_audio_features`.

        Raises:
            ValueError: neither text nor audio, another sampling rate, or a clip that is empty, too short, not mono or
                not finite.
        """
        if text is None and audio is None:
            raise ValueError("give text, audio or both")
        data = {}
        if text is not None:
            data |= self._tokenize([text] if isinstance(text, str) else list(text))
        if audio is not None:
            clips = [audio] if isinstance(audio, np.ndarray) else list(audio)
            data |= self._extract(self._checked(clips, sampling_rate))
        return BatchFeature(data, tensor_type=return_tensors if self.batches else None)

    def note(self) -> str:
        """Describe in one line what becomes of clips and texts, for the record of scores."""
        raise NotImplementedError

    def _tokenize(self, texts: list[str]) -> dict[str, Any]:
        lengths = [len(ids) for ids in self.tokenizer(texts, verbose=False)["input_ids"]]
        over = sum(length > self.text_limit for length in lengths)
        if over:
            logger.warning_once(
                f"texts over {self.kind}'s limit of {self.text_limit} tokens are truncated (shown once)"
            )
        self.texts_truncated += over
        return self._pad(texts, truncation=True, max_length=self.text_limit)

    def _pad(self, texts: list[str], **options: Any) -> dict[str, Any]:
        inputs = self.tokenizer(texts, padding=True, verbose=False, **options)
        return {name: inputs[name] for name in ("input_ids", "attention_mask")}

    def _checked(self, clips: list[np.ndarray], sampling_rate: int | None) -> list[np.ndarray]:
        if sampling_rate != self.feature_extractor.sampling_rate:
            raise ValueError(
                f"the clips have sampling_rate={sampling_rate} but this {self.kind} takes "
                f"{self.feature_extractor.sampling_rate} Hz: resample them, and give their rate"
            )
        if not clips:
            raise ValueError("no clips: give one clip, or a list of at least one")
        clips = [np.asarray(clip) for clip in clips]
        for index, clip in enumerate(clips):
            refuse_other_samples(clip, index)
            if len(clip) < self.min_samples:
                raise ValueError(
                    f"clip {index} has {len(clip)} samples, this {self.kind} takes {self.min_samples} or more"
                )
            if self.max_samples and len(clip) > self.max_samples:
                raise ValueError(
                    f"clip {index} has {len(clip) / sampling_rate:.2f} s, this {self.kind} takes "
                    f"{self.max_samples / sampling_rate:g} s: cut it into windows and embed each"
                )
        return clips

    def _extract(self, clips: list[np.ndarray]) -> dict[str, Any]:
        """Return the inputs of `get_audio_features`."""
        raise NotImplementedError


@contextmanager
def seeded_by(clip: np.ndarray, seed: int) -> Iterator[None]:
    """Seed numpy's global generator by a clip's samples, and restore it afterwards."""
    state = np.random.get_state()
    np.random.seed([seed, zlib.crc32(clip.tobytes())])
    try:
        yield
    finally:
        np.random.set_state(state)
