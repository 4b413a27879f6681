"""A CLAP's processor that gives a clip the same inputs each time."""

from typing import Any

import numpy as np
from transformers import ClapProcessor, PretrainedConfig

from .adapted_processor import AdaptedProcessor, seeded_by


class RepeatableClapProcessor(AdaptedProcessor):
    """A deterministic `ClapProcessor`: the inputs of a clip depend on the clip alone.

    `ClapFeatureExtractor` takes a clip of up to the window (10 s) in full. Of a longer one it takes a crop
    ("rand_trunc"), or three crops beside the clip shrunk to the window ("fusion"), at random positions from numpy's
    global generator. Here each clip is extracted alone, with that generator seeded by the clip's samples and restored
    afterwards. "fusion" also marks a random clip of a batch as longer if none is, which changes its vector: here only
    longer clips are marked.

    Texts give `input_ids` and `attention_mask` `[B_text, L]`, clips `input_features` `[B_audio, C, T, F]` (C = 1, or 4
    with fusion) and `is_longer` bool `[B_audio, 1]`.

    Args:
        processor: of a CLAP, fused or not.
        text_config: of the same CLAP.

    Attributes:
        clips_over_window: number of clips that were longer than the window.
    """

    kind = "CLAP"
    seed = 0
    seeded = True

    def __init__(self, processor: ClapProcessor, text_config: PretrainedConfig):
        # As in RoBERTa, whose positions start after that of padding.
        positions = text_config.max_position_embeddings - text_config.pad_token_id - 1
        limit = min(processor.tokenizer.model_max_length, positions)
        super().__init__(processor.feature_extractor, processor.tokenizer, limit)
        self.clips_over_window = 0

    def note(self) -> str:
        """Describe in one line what becomes of clips and texts."""
        extractor = self.feature_extractor
        window = f"{extractor.max_length_s} s"
        padding = (
            "are repeated as often as they fit, then padded" if extractor.padding == "repeatpad" else "are padded"
        )
        if extractor.truncation == "fusion":
            over = f"the whole shrunk to {window} and three crops, none marked as longer that is not"
        else:
            over = f"one crop of {window}"
        crops = f"placed by the clip's samples and seed {self.seed}, where ClapFeatureExtractor crops at random"
        return f"clips under {window} {padding}; over {window}: {over}, {crops}; texts up to {self.text_limit} tokens"

    def _extract(self, clips: list[np.ndarray]) -> dict[str, Any]:
        inputs = [self._extract_one(clip) for clip in clips]
        return {name: np.concatenate([row[name] for row in inputs]) for name in inputs[0]}

    def _extract_one(self, clip: np.ndarray) -> dict[str, np.ndarray]:
        """Return `input_features` `[1, C, T, F]` and `is_longer` `[1, 1]` of one clip."""
        extractor = self.feature_extractor
        with seeded_by(clip, self.seed):
            inputs = extractor([clip], sampling_rate=extractor.sampling_rate, return_tensors="np")
        self.clips_over_window += len(clip) > extractor.nb_max_samples
        longer = np.array(inputs["is_longer"])
        if extractor.truncation == "fusion":  # the extractor compares frames: one more than hops
            longer[:] = len(clip) // extractor.hop_length > extractor.nb_max_samples // extractor.hop_length
        return {"input_features": inputs["input_features"], "is_longer": longer}
