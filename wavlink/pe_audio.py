"""PE-Audio of transformers (`PeAudioModel`, or the audio-text part of a `PeAudioVideoModel`), used like a WavLink."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, PeAudioConfig, PeAudioFeatureExtractor, PeAudioModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import cached_file

from .adapted_processor import AdaptedProcessor

_WINDOW_SECONDS = 30  # the model has no limit, but its memory grows with the square of the length
_TEXT_TOKENS = 512  # as PETransform of facebookresearch/perception_models truncates


class PeAudioEmbedder(PeAudioModel):
    """`PeAudioModel` with the methods of a WavLink. Its weights have the names of `PeAudioModel`."""

    # A PeAudioVideoModel holds a PeAudioModel, whose text tower is that of the whole.
    key_mapping = {r"^audio_model\.": ""}
    _keys_to_ignore_on_load_unexpected = [
        r"^(video_model\.|(audio_video|text_audio_video|audio_plus_text|video_plus_text)_)"
    ]

    @classmethod
    def read_config(cls, source: str, **hub: Any) -> PeAudioConfig:
        """Read the config of a PE-Audio, or of the audio-text part of a PE-Audio-Video.

        Args:
            source: folder or Hub id.
            hub: `revision` and `local_files_only`.

        Raises:
            ValueError: a frame-level model, which has no vector of a whole clip.
        """
        config = json.loads(Path(cached_file(source, "config.json", **hub)).read_text(encoding="utf-8"))
        if "PeAudioFrameLevelModel" in (config.get("architectures") or []):
            raise ValueError(
                f"{source} is a frame-level PE-Audio: it gives a vector for every 40 ms and none for a clip; take one "
                "for whole clips, such as facebook/pe-av-base"
            )
        if config["model_type"] == "pe_audio_video":
            audio = (config.get("audio_video_config") or {}).get("audio_config")
            read = PeAudioConfig(text_config=config.get("text_config"), audio_config=audio)
        else:
            read = PeAudioConfig.from_pretrained(source, **hub)
        read.projection_dim = read.text_config.hidden_size
        read.matryoshka_dims = [read.projection_dim]
        return read

    def get_audio_features(self, input_values: Tensor, padding_mask: Tensor) -> BaseModelOutputWithPooling:
        """Embed clips: `pooler_output` `[B, D]`, L2-normalised.

        The codec's convolutions have no mask and reach over padding. So clips of one length share a forward pass,
        without padding.

        Args:
            input_values: `[B, 1, samples]`, padded on the right.
            padding_mask: `[B, samples]`, 1 for samples.
        """
        lengths = padding_mask.sum(1)
        embeds = input_values.new_empty(len(input_values), self.config.projection_dim)
        for length in lengths.unique().tolist():
            rows = lengths == length
            embeds[rows] = self.get_audio_embeds(input_values[rows, :, :length], padding_mask[rows, :length])
        return BaseModelOutputWithPooling(pooler_output=F.normalize(embeds, dim=-1))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutputWithPooling:
        """Embed texts `[B, L]`: `pooler_output` `[B, D]`, L2-normalised."""
        states = self.text_model(input_ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states
        return BaseModelOutputWithPooling(pooler_output=F.normalize(self.text_audio_head(states[-1][:, 0]), dim=-1))


class PeAudioTextProcessor(AdaptedProcessor):
    """The processor of a PE-Audio. Longer files than 30 s are cut into windows.

    Args:
        source: folder or Hub id.
        model: that it belongs to.
        hub: `revision` and `local_files_only`.
    """

    kind = "PE-Audio"

    def __init__(self, source: str, model: PeAudioEmbedder, **hub: Any):
        extractor = PeAudioFeatureExtractor.from_pretrained(source, **hub)
        hop, text = model.config.audio_config.dac_config.hop_length, model.config.text_config
        if extractor.hop_length != hop:
            raise ValueError(f"{source} has an extractor with hop_length={extractor.hop_length}, its model has {hop}")
        tokenizer = AutoTokenizer.from_pretrained(source, config=text, trust_remote_code=False, **hub)
        limit = min(tokenizer.model_max_length, text.max_position_embeddings, _TEXT_TOKENS)
        super().__init__(extractor, tokenizer, limit)
        self.max_samples = _WINDOW_SECONDS * extractor.sampling_rate

    def note(self) -> str:
        """Describe in one line what becomes of clips and texts."""
        return (
            "clips at their own length, only clips of one length in a forward pass, since the codec's convolutions "
            f"reach over padding; over {_WINDOW_SECONDS} s: windows, evenly spaced, their vectors averaged; texts up "
            f"to {self.text_limit} tokens; cosines, where the model's own logits are of vectors not normalised"
        )

    def _extract(self, clips: list[np.ndarray]) -> dict[str, Any]:
        rate = self.feature_extractor.sampling_rate
        inputs = self.feature_extractor(clips, sampling_rate=rate, return_tensors="np")
        return {"input_values": inputs["input_values"], "padding_mask": inputs["padding_mask"]}
