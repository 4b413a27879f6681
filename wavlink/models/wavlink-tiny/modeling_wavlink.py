"""WavLink: a Whisper encoder with one learned global token (or, for comparison, CLAP's HTS-AT or PaSST) beside a text
encoder, in one space (arXiv 2601.15118)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

# The older transformers 5 copy only the files that this one imports itself.
from .caption_masks_wavlink import false_negatives as false_negatives
from .clap_audio_wavlink import WavLinkClapAudioModel
from .compat_wavlink import from_config
from .config_checks_wavlink import text_max_length
from .configuration_wavlink import WavLinkConfig
from .loading_wavlink import PretrainedTowers
from .losses_wavlink import contrastive_loss, truncate_embeddings
from .passt_audio_wavlink import WavLinkPasstModel
from .passt_configuration_wavlink import WavLinkPasstConfig as WavLinkPasstConfig
from .pipeline_wavlink import WavLinkZeroShotAudioClassificationPipeline as WavLinkZeroShotAudioClassificationPipeline
from .pooling_wavlink import pool_text
from .pretrained_wavlink import RECORDED, given
from .processes_wavlink import gather as gather
from .whisper_audio_wavlink import WavLinkAudioModel

_AUDIO_MODELS = {"whisper": WavLinkAudioModel, "clap_audio_model": WavLinkClapAudioModel, "passt": WavLinkPasstModel}


@dataclass
class WavLinkOutput(ModelOutput):
    """Output of a `WavLinkModel`.

    Args:
        loss: `[]`, with `return_loss` and as many clips as texts, or a `text_owner`.
        logits_per_audio: `[B_audio, B_text]`, scaled cosines (plus the bias) of the full vectors.
        logits_per_text: its transpose.
        audio_embeds: `[B_audio, projection_dim]`, L2-normalised.
        text_embeds: `[B_text, projection_dim]`, L2-normalised.
        audio_model_output, text_model_output: the towers' outputs, with projected and normalised `pooler_output`.
    """

    loss: Tensor | None = None
    logits_per_audio: Tensor | None = None
    logits_per_text: Tensor | None = None
    audio_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    audio_model_output: BaseModelOutputWithPooling | None = None
    text_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple:
        """Return the fields that are not None, the towers' outputs as tuples."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class WavLinkModel(PretrainedTowers, PreTrainedModel):
    """Audio tower and text tower with one shared space, and the contrastive loss over its nested dims.

    With a Whisper, `torch.compile` (with `dynamic=True` one graph for all batches) and `torch.export` (dynamic batch
    and length) work. Export with at least 3 mel frames (`torch.export` specialises on a single position after the
    convolutions) and with `return_loss=False`, which keeps the numbers of clips and texts independent.

    `get_audio_features` and `get_text_features` return `pooler_output` `[B, projection_dim]`, L2-normalised. Calling
    the model returns a `WavLinkOutput` with the logits of all pairs, and with `return_loss=True` the loss.

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
        dtype = torch.get_default_dtype()  # the dtype given to from_pretrained; the towers' configs may have another
        tower = _AUDIO_MODELS[config.audio_config.model_type]
        self.audio_model = from_config(tower, config.audio_config, dtype=dtype)
        self.supports_gradient_checkpointing = tower.supports_gradient_checkpointing
        self.text_model = AutoModel.from_config(config.text_config, trust_remote_code=False, dtype=dtype)
        if hasattr(self.text_model, "pooler"):  # BERT's has weights that no `text_pooling` uses
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

    def freeze_constants(self) -> None:
        """Freeze the parameters that never learn.

        Whisper's positions are fixed sinusoids, `pooling="mean"` does not use the global token, and only SigLIP's loss
        depends on the bias.
        """
        if isinstance(self.audio_model, WavLinkAudioModel):
            self.audio_model.encoder.embed_positions.requires_grad_(False)
            self.audio_model.global_token.requires_grad_(self.config.pooling != "mean")
        self.logit_bias.requires_grad_(self.config.loss_type == "sigmoid")

    def get_input_embeddings(self) -> nn.Module:
        """Return the text tower's token embeddings, which FSDP2 in Accelerate and PEFT treat separately."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text tower's token embeddings."""
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: Tensor,
        input_features_mask: Tensor | None = None,
        output_frames: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Embed clips.

        Args:
            input_features: log-mel `[B, F, T]`, 10 ms a frame, T at most 3000 (30 s); of HTS-AT `[B, W, T, F]`, of
                PaSST `[B, F, T]` with the frames of its windows one after another.
            input_features_mask: `[B, T]`, 1 for the clip's frames and 0 for padding; of HTS-AT `[B, W]`, its windows.
            output_frames: True returns a Whisper's frames too; its last layer then computes all of them.
            kwargs: `output_hidden_states`, `output_attentions` and `return_dict`.

        Returns:
            `pooler_output` `[B, projection_dim]`, L2-normalised. With `output_frames` also `last_hidden_state`, see
            `WavLinkAudioModel`; HTS-AT and PaSST always return their patches, `[B, W * P, D]`.
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
        """Embed texts.

        Args:
            input_ids: `[B, L]`; more tokens than the tower has positions are refused (the processor truncates).
            attention_mask: `[B, L]`, 1 for tokens.
            token_type_ids: `[B, L]`, for towers whose tokenizer returns them (BERT's).
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and other arguments of the tower.

        Returns:
            `pooler_output` `[B, projection_dim]`, L2-normalised, and `last_hidden_state` `[B, L, D]`.

        Raises:
            ValueError: more tokens than the text tower has positions.
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
        config = self.config
        pooled = pool_text(
            output.last_hidden_state, input_ids, attention_mask, config.text_pooling, config.text_config
        )
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state,
            pooler_output=self._embed(self.text_projection, pooled),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def truncate_embeddings(self, embeds: Tensor, dim: int) -> Tensor:
        """Truncate `[..., projection_dim]` to the first `dim` numbers and L2-normalise them again.

        Raises:
            ValueError: `dim` is not one that the model was trained with.
        """
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
        text_pooled: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> WavLinkOutput:
        """Embed clips and texts, and score all their pairs.

        In training the negatives of all processes are in the loss, with gradients.

        Args:
            input_ids, attention_mask, token_type_ids: `[B_text, L]`.
            input_features, input_features_mask: `[B_audio, F, T]` and `[B_audio, T]`, see `get_audio_features`.
            caption_ids: `[B, K]`, see `false_negatives`: clips that share a caption are then no negatives of each
                other.
            return_loss: by default (None) the loss is computed where there are as many clips as texts, or a
                `text_owner`; True refuses unequal counts without one.
            text_owner: `[B_text]` int64, the clip each text belongs to where clips have several, at least one each.
            text_pooled: `[B_text, D_text]` in place of `input_ids`, the text tower's pooled states, which
                `text_projection` receives: of a tower that does not learn they can be computed once.
            kwargs: `output_hidden_states` and `output_attentions`, which the towers' outputs then hold; `return_dict`.

        Raises:
            ValueError: missing inputs, or numbers of clips and texts for which there is no loss.
        """
        texts = input_ids if text_pooled is None else text_pooled
        if texts is None or input_features is None:
            raise ValueError("give both input_ids and input_features, or call get_text_features or get_audio_features")
        # Counts are compared only for a loss, so that torch.export can keep them independent without one.
        with_loss = return_loss is not False and (text_owner is not None or texts.shape[0] == input_features.shape[0])
        if return_loss and not with_loss:
            raise ValueError(
                f"return_loss=True needs one text per clip, got {len(input_features)} clips and {len(texts)} texts"
                "; where clips have several, give text_owner, the row of each text's clip"
            )
        kwargs["return_dict"] = True
        audio = self.get_audio_features(input_features, input_features_mask, **kwargs)
        if text_pooled is None:
            text = self.get_text_features(input_ids, attention_mask, token_type_ids, **kwargs)
        else:
            text = BaseModelOutputWithPooling(pooler_output=self._embed(self.text_projection, text_pooled))
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
        """Factor of the logits, at most `logit_scale_max`."""
        return self.clamped_scale(self.logit_scale)

    def clamped_scale(self, logit_scale: Tensor) -> Tensor:
        """Return the factor of a *log* scale; beyond the maximum its gradient passes, so that it can come back."""
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
        """Compute the training loss of embedded clips and texts, in fp32 also under autocast.

        Args:
            audio_embeds, text_embeds: `[B, projection_dim]`, pairs row by row without a `text_owner`.
            caption_ids, text_owner: see `forward`.
            logit_scale, logit_bias: the *log* of the scale, and the bias; default: the model's.
        """
        logit_scale = self.logit_scale if logit_scale is None else logit_scale
        logit_bias = self.logit_bias if logit_bias is None else logit_bias
        with torch.autocast(audio_embeds.device.type, enabled=False):
            return contrastive_loss(
                audio_embeds.float(),
                text_embeds.float(),
                self.clamped_scale(logit_scale.float()),
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


WavLinkModel.register_for_auto_class("AutoModel")
