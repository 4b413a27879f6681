"""EmbeddingGemma 2 of transformers, its text and audio towers, used like a WavLink."""

from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, EmbeddingGemma2Config, EmbeddingGemma2Model, Gemma4AudioFeatureExtractor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling_wavlink.pooling_wavlink import masked_mean

from .adapted_processor import AdaptedProcessor

# The card of google/embeddinggemma-2 names these; the config does not hold them.
_NESTED_DIMS = (512, 256, 128)
_WINDOW_SECONDS = 30  # Gemma4AudioFeatureExtractor truncates what is longer
_TEXT_TOKENS = 8192  # the context that the card states
_PROCESSOR_TOKENS = ("boa_token", "audio_token", "eoa_token")


class EmbeddingGemma2Embedder(EmbeddingGemma2Model):
    """`EmbeddingGemma2Model` with the methods of a WavLink, without its vision tower.

    As in its SentenceTransformer, a vector is the mean of the last states over all tokens, L2-normalised.
    """

    key_mapping: dict[str, str] | None = None

    @classmethod
    def read_config(cls, source: str, **hub: Any) -> EmbeddingGemma2Config:
        """Read the config, without the vision tower.

        Args:
            source: folder or Hub id.
            hub: `revision` and `local_files_only`.

        Raises:
            ValueError: it has no audio tower.
        """
        config = EmbeddingGemma2Config.from_pretrained(source, **hub)
        if config.audio_config is None:
            raise ValueError(f"{source} is an EmbeddingGemma 2 without an audio tower: take one that has it")
        config.vision_config = None
        config.projection_dim = config.text_config.embedding_dim
        nested = [dim for dim in _NESTED_DIMS if dim < config.projection_dim == 768]
        config.matryoshka_dims = [config.projection_dim, *nested]
        return config

    def get_audio_features(
        self,
        input_features: Tensor,
        input_features_mask: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> BaseModelOutputWithPooling:
        """Embed clips: `pooler_output` `[B, D]`, L2-normalised.

        Args:
            input_features: `[B, frames, mels]`.
            input_features_mask: `[B, frames]`.
            input_ids: `[B, L]`, with a placeholder for each state of the audio tower. Without it the result is that
                of `EmbeddingGemma2Model`, the states to put there, which its `forward` asks for.
            attention_mask: `[B, L]`.
        """
        if input_ids is None:
            return super().get_audio_features(input_features, input_features_mask, **options)
        inputs = {"input_features": input_features, "input_features_mask": input_features_mask}
        return self._mean(input_ids, attention_mask, **inputs)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutputWithPooling:
        """Embed texts `[B, L]`: `pooler_output` `[B, D]`, L2-normalised."""
        return self._mean(input_ids, attention_mask)

    def _mean(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Tensor) -> BaseModelOutputWithPooling:
        states = self(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        return BaseModelOutputWithPooling(pooler_output=F.normalize(masked_mean(states, attention_mask), dim=-1))


class EmbeddingGemma2TextAudioProcessor(AdaptedProcessor):
    """The processor of an EmbeddingGemma 2, for texts and clips alone, without torchvision.

    A clip becomes the text `<boa><audio>...<eoa>` with a placeholder for each 40 ms, as in `EmbeddingGemma2Processor`.

    Args:
        source: folder or Hub id.
        model: that it belongs to.
        hub: `revision` and `local_files_only`.
    """

    kind = "EmbeddingGemma 2"

    def __init__(self, source: str, model: EmbeddingGemma2Embedder, **hub: Any):
        extractor = Gemma4AudioFeatureExtractor.from_pretrained(source, **hub)
        extractor.dither = 0.0  # random noise
        text = model.config.text_config
        tokenizer = AutoTokenizer.from_pretrained(source, config=model.config, trust_remote_code=False, **hub)
        missing = [name for name in _PROCESSOR_TOKENS if not getattr(tokenizer, name, None)]
        if missing:
            raise ValueError(f"the tokenizer of {source} has no {', '.join(missing)}: it takes no audio")
        limit = min(tokenizer.model_max_length, text.max_position_embeddings, _TEXT_TOKENS)
        super().__init__(extractor, tokenizer, limit)
        self.max_samples = _WINDOW_SECONDS * extractor.sampling_rate
        self.min_samples = extractor.frame_length - extractor.frame_length // 2 + 1  # one frame

    def note(self) -> str:
        """Describe in one line what becomes of clips and texts."""
        return (
            f"clips at their own length; over {_WINDOW_SECONDS} s: windows, evenly spaced, their vectors averaged; "
            f"texts up to {self.text_limit} tokens, without a prompt; the vision tower is not loaded"
        )

    def _extract(self, clips: list[np.ndarray]) -> dict[str, Any]:
        extractor, tokenizer = self.feature_extractor, self.tokenizer
        inputs = extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="np")
        # The audio tower halves the frames twice, and keeps the first of each two.
        counts = inputs["input_features_mask"][:, ::2][:, ::2].sum(1)
        texts = [tokenizer.boa_token + tokenizer.audio_token * int(n) + tokenizer.eoa_token for n in counts]
        return {name: inputs[name] for name in ("input_features", "input_features_mask")} | self._pad(texts)
