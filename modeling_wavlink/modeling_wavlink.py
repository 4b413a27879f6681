"""WavLink: a Whisper encoder with one learned global token (or, for comparison, CLAP's HTS-AT) beside a text encoder,
in one space (arXiv 2601.15118)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging

from .clap_audio_wavlink import WavLinkClapAudioModel
from .compat_wavlink import from_config
from .configuration_wavlink import AUDIO_TOWERS, WavLinkConfig, check_text_config, text_max_length
from .losses_wavlink import contrastive_loss, truncate_embeddings
from .pipeline_wavlink import WavLinkZeroShotAudioClassificationPipeline as WavLinkZeroShotAudioClassificationPipeline
from .pretrained_wavlink import (
    RECORDED,
    CheckedWeights,
    end_of_text,
    given,
    load_htsat,
    load_text_tower,
    load_whisper_encoder,
    sentence_transformers_pooling,
)
from .processes_wavlink import gather as gather  # the older transformers 5 bring along only what this file imports
from .whisper_audio_wavlink import WavLinkAudioModel, masked_mean

logger = logging.get_logger(__name__)

# Options of `from_pretrained` that say where a file is.
_OF_FILES = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


@dataclass
class WavLinkOutput(ModelOutput):
    """
    Args:
        loss: `[]`, with `return_loss` and as many clips as texts, or a `text_owner`.
        logits_per_audio: `[B_audio, B_text]`, scaled cosines (plus the bias) of the full vectors.
        logits_per_text: its transpose.
        audio_embeds: `[B_audio, projection_dim]`, L2-normalised.
        text_embeds: `[B_text, projection_dim]`, L2-normalised.
        audio_model_output, text_model_output: what the towers gave, before projection.
    """

    loss: Tensor | None = None
    logits_per_audio: Tensor | None = None
    logits_per_text: Tensor | None = None
    audio_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    audio_model_output: BaseModelOutputWithPooling | None = None
    text_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self):
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


def _refuse_untrained_token(pooling: str, source, **options) -> None:
    """A checkpoint that pools the mean has a global token, but one that has never learned."""
    if source is None or pooling == "mean":
        return
    saved, _ = WavLinkConfig.get_config_dict(source, **options)
    if saved.get("pooling") == "mean":
        raise ValueError(
            f"pooling={pooling!r} needs a trained global token, which {source} lacks: it was trained with "
            "pooling='mean', so leave pooling out"
        )


class WavLinkModel(CheckedWeights, PreTrainedModel):
    """Audio tower and text tower with one shared space, and the contrastive loss over its nested dims.

    With a Whisper, `torch.compile` (with `dynamic=True` one graph for all batches) and `torch.export` (dynamic batch
    and length) work. Export with at least 3 mel frames (one position after the convolutions is a case of its own to
    `torch.export`) and with `return_loss=False`, which keeps the numbers of clips and texts independent.

    `get_audio_features` and `get_text_features` give `pooler_output` `[B, projection_dim]`, L2-normalised. Calling the
    model gives a `WavLinkOutput` with the logits of all pairs, and with `return_loss=True` the loss.

    Args:
        config: of the towers and the shared space. New weights are random: `from_pretrained` loads a WavLink,
            `from_audio_text_pretrained` starts from two pretrained towers.

    Raises:
        ValueError: a config whose parts do not fit together.

    Example:

    ```python
    >>> import torch
    >>> from wavlink import WavLinkModel, WavLinkProcessor, load_audio
    >>> model = WavLinkModel.from_pretrained(model_folder)
    >>> processor = WavLinkProcessor.from_pretrained(model_folder)
    >>> samples = load_audio(sounds_folder / "low.wav")
    >>> inputs = processor(audio=samples, text=["a dog barks"], sampling_rate=16000, return_tensors="pt")
    >>> with torch.no_grad():
    ...     output = model(**inputs)
    >>> output.audio_embeds.shape, output.logits_per_audio.shape
    (torch.Size([1, 32]), torch.Size([1, 1]))

    ```
    """

    config: WavLinkConfig
    config_class = WavLinkConfig
    main_input_name = "input_ids"  # the first argument of `forward`, as transformers has it
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the whole batch, never over accumulated pieces
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: WavLinkConfig):
        config.check()
        super().__init__(config)
        dtype = torch.get_default_dtype()  # what from_pretrained was asked for; the towers' configs may say another
        htsat = config.audio_config.model_type == "clap_audio_model"
        tower = WavLinkClapAudioModel if htsat else WavLinkAudioModel
        self.audio_model = from_config(tower, config.audio_config, dtype=dtype)
        self.supports_gradient_checkpointing = tower.supports_gradient_checkpointing
        self.text_model = AutoModel.from_config(config.text_config, trust_remote_code=False, dtype=dtype)
        if hasattr(self.text_model, "pooler"):  # BERT's has weights that no text pooling of ours uses
            self.text_model.pooler = None
        self.audio_projection = nn.Linear(config.audio_config.hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.logit_bias = nn.Parameter(torch.tensor(float(config.logit_bias_init_value)))
        self.post_init()
        self.freeze_constants()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, WavLinkModel):
            init.normal_(module.audio_projection.weight, std=self.config.initializer_range)
            init.normal_(module.text_projection.weight, std=self.config.initializer_range)
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            init.constant_(module.logit_bias, self.config.logit_bias_init_value)

    def freeze_constants(self):
        """Whisper's positions are fixed sinusoids, the mean of frames has no token, and a constant moves no softmax,
        so that only SigLIP's bias learns."""
        if isinstance(self.audio_model, WavLinkAudioModel):
            self.audio_model.encoder.embed_positions.requires_grad_(False)
            self.audio_model.global_token.requires_grad_(self.config.pooling != "mean")
        self.logit_bias.requires_grad_(self.config.loss_type == "sigmoid")

    def get_input_embeddings(self) -> nn.Module:
        """The text tower's, for libraries that treat token embeddings apart (FSDP2 in Accelerate, PEFT)."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """As transformers', but of safetensors alone, and weights that are missing or unexpected are an error, never
        a random start. Fields of `WavLinkConfig` given here are checked, and refused where they need other weights."""
        options = {name: kwargs[name] for name in _OF_FILES if name in kwargs}
        if hasattr(kwargs.get("config"), "check"):
            kwargs["config"].check()
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        if {"pooling", "config"} & kwargs.keys():
            _refuse_untrained_token(model.config.pooling, pretrained_model_name_or_path, **options)
        model.freeze_constants()
        return (model, info) if output_loading_info else model

    @classmethod
    def config_from_audio_text(
        cls, audio: str, text: str, frame_pooling: int = 1, frame_pooling_layer: int | list[int] = 1, **config
    ) -> WavLinkConfig:
        """The config of `from_audio_text_pretrained` with the same arguments, from the towers' configs alone."""
        audio_config = AutoConfig.from_pretrained(audio, trust_remote_code=False)
        if audio_config.model_type == "clap":
            audio_config = audio_config.audio_config
        if frame_pooling != 1:
            audio_config.frame_pooling, audio_config.frame_pooling_layer = frame_pooling, frame_pooling_layer
        if audio_config.model_type not in AUDIO_TOWERS:
            raise ValueError(
                f"{audio} is a {audio_config.model_type!r} model; the audio tower must be a Whisper or a CLAP"
            )
        text_config = AutoConfig.from_pretrained(text, trust_remote_code=False)
        if text_config.model_type == "clip":  # its two halves may each say another projection_dim, which it ignores
            text_config.text_config.projection_dim = text_config.projection_dim
            text_config = text_config.text_config
        check_text_config(text_config)
        clip_text = text_config.model_type == "clip_text_model"
        config.setdefault("projection_dim", text_config.projection_dim if clip_text else text_config.hidden_size)
        if not clip_text and config.get("text_pooling") is None:
            config["text_pooling"] = sentence_transformers_pooling(text)
        return WavLinkConfig(audio_config=audio_config, text_config=text_config, **config)

    @classmethod
    def from_audio_text_pretrained(cls, audio: str, text: str, **config) -> "WavLinkModel":
        """Builds a WavLink from two pretrained towers; only the global token, new projections, scale and bias are new.

        Args:
            audio: Hub id or folder of a Whisper, whole or encoder only (the decoder is left out), or of a CLAP
                without fusion, whole or its audio half (its text tower and projections are left out).
            text: Hub id or folder of a CLIP (whole or its text half; its text projection is kept), a ModernBERT or
                a BERT-like encoder. The pooling of a sentence-transformers folder is kept.
            config: fields of `WavLinkConfig`, and `frame_pooling` and `frame_pooling_layer` of its audio config.
                `projection_dim` defaults to CLIP's or the text tower's width.
        """
        model = cls(cls.config_from_audio_text(audio, text, **config))
        audio_config = model.config.audio_config
        if audio_config.model_type == "whisper":
            model.audio_model.encoder.load_state_dict(load_whisper_encoder(audio).state_dict())
        else:
            model.audio_model.load_state_dict(load_htsat(audio, audio_config).state_dict())
        tower, projection = load_text_tower(text, model.config.text_config)
        model.text_model.load_state_dict(tower.state_dict())
        if projection is not None and projection.shape == model.text_projection.weight.shape:
            model.text_projection.weight.data.copy_(projection)
        elif projection is not None:
            logger.warning(
                f"the text projection of {text} has {len(projection)} dims, not projection_dim="
                f"{model.config.projection_dim}, so it starts from new random weights"
            )
        return model

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: Tensor,
        input_features_mask: Tensor | None = None,
        output_frames: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_features: log-mel `[B, F, T]`, 10 ms a frame, T at most 3000 (30 s); of HTS-AT `[B, W, T, F]`.
            input_features_mask: `[B, T]`, 1 for the clip's own frames; of HTS-AT `[B, W]`, for its own windows.
            output_frames: True gives a Whisper's frames too, for which its last layer has all its work to do.
            kwargs: `output_hidden_states`, `output_attentions` and `return_dict`.

        Returns:
            `pooler_output` `[B, projection_dim]`, L2-normalised. With `output_frames` also `last_hidden_state`, see
            `WavLinkAudioModel`; HTS-AT always gives its patches, `[B, W * P, D]`.
        """
        options = {name: value for name, value in given(kwargs).items() if name in RECORDED}
        if isinstance(self.audio_model, WavLinkAudioModel):
            options |= {"pooling": self.config.pooling, "output_frames": output_frames}
        output = self.audio_model(input_features, input_features_mask, return_dict=True, **options)
        output["pooler_output"] = self._embed(self.audio_projection, output.pooler_output)
        return output

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_ids: `[B, L]`; more tokens than the tower has positions are refused (the processor truncates).
            attention_mask: `[B, L]`, 1 for tokens.
            token_type_ids: `[B, L]`, for towers whose tokenizer gives them (BERT's).
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and what else the tower takes.

        Returns:
            `pooler_output` `[B, projection_dim]`, L2-normalised, and `last_hidden_state` `[B, L, D]`.
        """
        limit = text_max_length(self.config.text_config)
        if limit is not None and input_ids.shape[-1] > limit:
            raise ValueError(
                f"a text of {input_ids.shape[-1]} tokens is over the text tower's limit of {limit}: shorten it, or "
                f"tokenize with truncation=True, max_length={limit} (WavLinkProcessor does)"
            )
        options = given(kwargs) | {"return_dict": True}
        if token_type_ids is not None:
            options["token_type_ids"] = token_type_ids
        output = self.text_model(input_ids=input_ids, attention_mask=attention_mask, **options)
        pooled = self._pool_text(output.last_hidden_state, input_ids, attention_mask)
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state,
            pooler_output=self._embed(self.text_projection, pooled),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def truncate_embeddings(self, embeds: Tensor, dim: int) -> Tensor:
        """The first `dim` channels of `[..., projection_dim]`, L2-normalised again; `dim` must be a trained one."""
        trained = sorted({*self.config.matryoshka_dims, self.config.projection_dim})
        if dim not in trained:
            raise ValueError(f"dim must be one of the nested dims this model was trained with, {trained}, got {dim}")
        return truncate_embeddings(embeds, dim)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        caption_ids: Tensor | None = None,
        return_loss: bool | None = None,
        text_owner: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> WavLinkOutput:
        """
        Args:
            input_ids, attention_mask, token_type_ids: `[B_text, L]`.
            input_features, input_features_mask: `[B_audio, F, T]` and `[B_audio, T]`, see `get_audio_features`.
            caption_ids: `[B, K]`, see `losses_wavlink.false_negatives`: clips that share a caption are then no
                negatives of each other.
            return_loss: by default a loss wherever there are as many clips as texts, or a `text_owner`; True refuses
                unequal counts without one.
            text_owner: `[B_text]` int64, the clip each text belongs to where clips have several, at least one each.
            kwargs: `output_hidden_states` and `output_attentions`, which the towers' outputs then hold; `return_dict`.

        In training the negatives of all processes are in the loss, with gradients.
        """
        if input_ids is None or input_features is None:
            raise ValueError("give both input_ids and input_features, or call get_text_features or get_audio_features")
        # Counts are compared only for a loss, so that torch.export can keep them independent without one.
        owned = text_owner is not None
        with_loss = return_loss is not False and (owned or input_ids.shape[0] == input_features.shape[0])
        if return_loss and not with_loss:
            raise ValueError(
                f"return_loss=True needs one text per clip, got {len(input_features)} clips and {len(input_ids)} texts"
                "; where clips have several, give text_owner, the row of each text's clip"
            )
        kwargs["return_dict"] = True
        audio = self.get_audio_features(input_features, input_features_mask, **kwargs)
        text = self.get_text_features(input_ids, attention_mask, token_type_ids, **kwargs)
        audio_embeds, text_embeds = audio.pooler_output, text.pooler_output
        logits_per_audio = self.scale.to(audio_embeds.dtype) * audio_embeds @ text_embeds.T + self.logit_bias
        return WavLinkOutput(
            loss=self.loss(audio_embeds, text_embeds, caption_ids, text_owner=text_owner) if with_loss else None,
            logits_per_audio=logits_per_audio,
            logits_per_text=logits_per_audio.T,
            audio_embeds=audio_embeds,
            text_embeds=text_embeds,
            audio_model_output=audio,
            text_model_output=text,
        )

    @property
    def scale(self) -> Tensor:
        """The factor of the logits, at most `logit_scale_max`."""
        return self._clamp_scale(self.logit_scale)

    def _clamp_scale(self, logit_scale: Tensor) -> Tensor:
        """The clamp passes gradients, so that it is no trap."""
        clamped = logit_scale.detach().exp().clamp(max=self.config.logit_scale_max)
        return clamped * (logit_scale - logit_scale.detach()).exp()

    def loss(
        self,
        audio_embeds: Tensor,
        text_embeds: Tensor,
        caption_ids: Tensor | None = None,
        logit_scale: Tensor | None = None,
        logit_bias: Tensor | None = None,
        text_owner: Tensor | None = None,
    ) -> Tensor:
        """The training objective of `[B, projection_dim]` clips and texts, pairs unless `text_owner` says otherwise,
        in fp32 whatever the autocast; `logit_scale` (a log) and `logit_bias` default to the model's own."""
        logit_scale = self.logit_scale if logit_scale is None else logit_scale
        logit_bias = self.logit_bias if logit_bias is None else logit_bias
        with torch.autocast(audio_embeds.device.type, enabled=False):
            return contrastive_loss(
                audio_embeds.float(),
                text_embeds.float(),
                self._clamp_scale(logit_scale.float()),
                logit_bias.float(),
                self.config.loss_type,
                self.config.matryoshka_dims,
                caption_ids,
                gather_negatives=self.training,
                text_owner=text_owner,
                label_smoothing=self.config.label_smoothing,
            )

    def _embed(self, projection: nn.Linear, pooled: Tensor) -> Tensor:
        # The scale has the model's dtype, as no library quantises it; a quantised projection stores integers.
        return F.normalize(projection(pooled).float(), dim=-1).to(self.logit_scale.dtype)

    def _pool_text(self, hidden_states: Tensor, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """`[B, L, D] -> [B, D]`: the masked mean, or the state of the first token or of the end of the text."""
        pooling = self.config.text_pooling
        if pooling == "mean":
            return masked_mean(hidden_states, attention_mask)
        if pooling == "cls" and attention_mask is None:
            return hidden_states[:, 0]
        if pooling == "cls":
            positions = attention_mask.int().argmax(-1)  # padding may be on the left
        else:
            positions = end_of_text(input_ids, attention_mask, self.config.text_config)
        return hidden_states[torch.arange(hidden_states.shape[0], device=hidden_states.device), positions]


WavLinkModel.register_for_auto_class("AutoModel")
