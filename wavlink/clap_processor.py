"""A CLAP's processor that gives a clip the same inputs each time."""

import zlib
from collections.abc import Sequence

import numpy as np
from transformers import BatchFeature, ClapProcessor, PretrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)


class RepeatableClapProcessor:
    """A deterministic `ClapProcessor`: the inputs of a clip depend on the clip alone.

    `ClapFeatureExtractor` takes a clip of up to the window (10 s) in full. Of a longer one it takes a crop
    ("rand_trunc"), or three crops beside the clip shrunk to the window ("fusion"), at random positions from numpy's
    global generator. Here each clip is extracted alone, with that generator seeded by the clip's samples and restored
    afterwards. "fusion" also marks a random clip of a batch as longer if none is, which changes its vector: here only
    longer clips are marked.

    Args:
        processor: of a CLAP, fused or not.
        text_config: of the same CLAP.

    Attributes:
        clips_over_window: number of clips that were longer than the window.
        texts_truncated: number of texts that were truncated.
    """

    seed = 0

    def __init__(self, processor: ClapProcessor, text_config: PretrainedConfig):
        self.feature_extractor = processor.feature_extractor
        self.tokenizer = processor.tokenizer
        # As in RoBERTa, whose positions start after that of padding.
        positions = text_config.max_position_embeddings - text_config.pad_token_id - 1
        self.text_limit = min(self.tokenizer.model_max_length, positions)
        self.clips_over_window = 0
        self.texts_truncated = 0

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        audio: np.ndarray | Sequence[np.ndarray] | None = None,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Compute a CLAP's inputs.

        Args:
            text: a sentence or a list; padded to the longest, and truncated, with one warning, to the tower's limit.
            audio: one mono clip `[samples]` of floats in [-1, 1] or a list.
            sampling_rate: of the clips, in Hz; required with audio.
            return_tensors: `"pt"` or `"np"`.

        Returns:
            `input_ids`, `attention_mask` `[B_text, L]` and/or `input_features` `[B_audio, C, T, F]` (C = 1, or 4 with
            fusion) and `is_longer` bool `[B_audio, 1]`.

        Raises:
            ValueError: neither text nor audio, another sampling rate, or a clip that is empty, not mono or not finite.
        """
        if text is None and audio is None:
            raise ValueError("give text, audio or both")
        data = {}
        if text is not None:
            data |= self._tokenize([text] if isinstance(text, str) else list(text))
        if audio is not None:
            data |= self._extract_all([audio] if isinstance(audio, np.ndarray) else list(audio), sampling_rate)
        return BatchFeature(data, tensor_type=return_tensors)

    def _tokenize(self, texts: list[str]) -> dict:
        lengths = [len(ids) for ids in self.tokenizer(texts, verbose=False)["input_ids"]]
        over = sum(length > self.text_limit for length in lengths)
        if over:
            logger.warning_once(f"texts over CLAP's limit of {self.text_limit} tokens are truncated (shown once)")
        self.texts_truncated += over
        return dict(self.tokenizer(texts, padding=True, truncation=True, max_length=self.text_limit))

    def _extract_all(self, clips: list[np.ndarray], sampling_rate: int | None) -> dict[str, np.ndarray]:
        if sampling_rate != self.feature_extractor.sampling_rate:
            raise ValueError(
                f"the clips have sampling_rate={sampling_rate} but this CLAP takes "
                f"{self.feature_extractor.sampling_rate} Hz: resample them, and give their rate"
            )
        if not clips:
            raise ValueError("no clips: give one clip, or a list of at least one")
        inputs = [self._extract(np.asarray(clip), number) for number, clip in enumerate(clips)]
        return {name: np.concatenate([row[name] for row in inputs]) for name in inputs[0]}

    def _extract(self, clip: np.ndarray, number: int) -> dict[str, np.ndarray]:
        """Return `input_features` `[1, C, T, F]` and `is_longer` `[1, 1]` of one clip."""
        refuse_other_samples(clip, number)
        extractor = self.feature_extractor
        state = np.random.get_state()
        np.random.seed([self.seed, zlib.crc32(clip.tobytes())])
        try:
            inputs = extractor([clip], sampling_rate=extractor.sampling_rate, return_tensors="np")
        finally:
            np.random.set_state(state)
        self.clips_over_window += len(clip) > extractor.nb_max_samples
        longer = np.array(inputs["is_longer"])
        if extractor.truncation == "fusion":  # the extractor compares frames: one more than hops
            longer[:] = len(clip) // extractor.hop_length > extractor.nb_max_samples // extractor.hop_length
        return {"input_features": inputs["input_features"], "is_longer": longer}


def refuse_other_samples(clip: np.ndarray, index: int) -> None:
    """Raise a ValueError unless a clip is mono `[samples]` of finite floats and not empty."""
    if clip.ndim != 1 or not len(clip) or clip.dtype.kind != "f" or not np.isfinite(clip).all():
        raise ValueError(
            f"clip {index} must be mono, [samples], of finite floats in [-1, 1] and not empty, got "
            f"{list(clip.shape)} of {clip.dtype}"
        )
