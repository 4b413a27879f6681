"""The audio tower: Whisper's encoder at a clip's own length, with one learned global token beside its frames."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, WhisperConfig
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperEncoder, WhisperEncoderLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import capture_outputs

# The older transformers 5 copy only the files that this one imports itself.
from .compat_wavlink import attention_of, from_config
from .config_checks_wavlink import POOLINGS, check_audio_config, frame_pooling
from .configuration_wavlink import WavLinkAudioConfig
from .passt_configuration_wavlink import WavLinkPasstConfig as WavLinkPasstConfig
from .pooling_wavlink import masked_mean
from .pretrained_wavlink import RECORDED, SavedAlone, given


class WavLinkLastLayer(WhisperEncoderLayer):
    """Whisper's encoder layer for the last states only: queries are those states, keys and values are all states."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, first: int = 0, **kwargs: object
    ) -> Tensor:
        """Compute the layer's states from position `first` on, `[B, L, D] -> [B, L - first, D]`."""
        if first:
            kwargs["key_value_states"] = self.self_attn_layer_norm(hidden_states)
            hidden_states = hidden_states[:, first:]
            # (B, 1, queries or 1, keys); flash attention has (B, keys)
            if attention_mask is not None and attention_mask.dim() == 4 and attention_mask.shape[2] > 1:
                attention_mask = attention_mask[:, :, first:]
        output = super().forward(hidden_states, attention_mask, **kwargs)
        return output[0] if isinstance(output, tuple) else output


class WavLinkAudioModel(SavedAlone, PreTrainedModel):
    """Whisper's encoder at the clip's own length, with a learned global token appended to its frames.

    With 3000 mel frames, no mask and `use_global_token=False` it computes what `WhisperEncoder` does, bit for bit.
    With `frame_pooling=n` in its config, every n neighbouring frames become their mean after the first
    `frame_pooling_layer` layers (default 1; with several, after each), so that the later layers have 1/n of the work.
    """

    config: WavLinkAudioConfig
    config_class = WavLinkAudioConfig
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["WhisperEncoderLayer", "WavLinkLastLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _can_record_outputs = {"hidden_states": WhisperEncoderLayer, "attentions": WhisperAttention}

    def __init__(self, config: WhisperConfig):
        check_audio_config(config)
        super().__init__(config)
        self.encoder = from_config(WhisperEncoder, config, dtype=torch.get_default_dtype())
        self.encoder.layers[-1].__class__ = WavLinkLastLayer  # the weights are the same, and drawn only once
        self.global_token = nn.Parameter(torch.empty(1, 1, config.d_model))
        # Read now: an adapter that later replaces one of the convolutions has no stride.
        self.strides = self.encoder.conv1.stride[0], self.encoder.conv2.stride[0]
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, WavLinkAudioModel):
            init.normal_(module.global_token, std=self.config.init_std)

    def get_input_embeddings(self) -> nn.Module:
        """Return the first convolution."""
        return self.encoder.conv1

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the first convolution."""
        self.encoder.conv1 = value

    @can_return_tuple
    def forward(
        self,
        input_features: Tensor,
        input_features_mask: Tensor | None = None,
        use_global_token: bool = True,
        pooling: str = "token",
        output_frames: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode clips.

        Args:
            input_features: log-mel `[B, F, T]`, 10 ms a frame, T at most 3000 (30 s).
            input_features_mask: `[B, T]`, 1 for the clip's frames, 0 for padding; without it all T are attended to.
            use_global_token: False leaves the token out; the pooled output is then None.
            pooling: `"token"`, `"mean"` (the token is left out) or `"token_mean"`, see `WavLinkConfig`.
            output_frames: False leaves `last_hidden_state` None; with `pooling="token"` the last layer then computes
                only the token, which changes it by rounding only.
            kwargs: `output_hidden_states`, `output_attentions` (of eager attention) and `return_dict`.

        Returns:
            `last_hidden_state` `[B, ceil(T / 2), D]`, the frames of 20 ms each (each `frame_pooling=n` leaves an n-th
            of them, n times as long), and `pooler_output` `[B, D]`. `hidden_states` are those of the frames and, last,
            of the token: before the first layer and after each, the last one after the final layer norm.
        """
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        kwargs = given(kwargs)
        with_token = use_global_token and pooling != "mean"
        recorded = any(kwargs.get(name, getattr(self.config, name, False)) for name in RECORDED)
        token_only = with_token and pooling == "token" and not output_frames and not recorded
        hidden_states, mask = self._convolve(input_features, input_features_mask)  # (B, T', D), (B, T')
        pooling = pooling if use_global_token else None
        output = self._encode(hidden_states, mask, pooling, token_only, return_dict=True, **kwargs)
        frames = output.last_hidden_state.shape[1] - int(with_token)
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state[:, :frames] if output_frames else None,
            pooler_output=output.pooler_output,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    @capture_outputs
    def _encode(
        self, hidden_states: Tensor, mask: Tensor | None, pooling: str | None, token_only: bool, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Apply layers and final norm: `[B, T', D]`, `[B, T']` -> `[B, T' + 0 or 1, D]`, or `[B, 1, D]`, the token."""
        with_token = pooling in ("token", "token_mean")
        frames = hidden_states.shape[1]
        token = self.global_token[:, : int(with_token)].expand(hidden_states.shape[0], -1, -1)
        hidden_states, attention_mask = self._join(hidden_states, token, mask)
        factor, pooled_after = frame_pooling(self.config)
        for index, layer in enumerate(self.encoder.layers):
            if factor > 1 and index in pooled_after:
                token = hidden_states[:, frames:]
                hidden_states, mask = _pool_frames(hidden_states[:, :frames], mask, factor)
                frames = hidden_states.shape[1]
                hidden_states, attention_mask = self._join(hidden_states, token, mask)
            last = {"first": frames} if token_only and layer is self.encoder.layers[-1] else {}
            output = layer(hidden_states, attention_mask, **last, **kwargs)
            hidden_states = output[0] if isinstance(output, tuple) else output  # of older transformers 5
        hidden_states = self.encoder.layer_norm(hidden_states)
        pooled = hidden_states[:, -1] if with_token else None
        if pooling in ("mean", "token_mean"):
            mean = masked_mean(hidden_states[:, :frames], mask)
            pooled = mean if pooled is None else pooled + mean
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)

    def _join(self, frames: Tensor, token: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Append the token, `[B, T', D]`, `[B, 0 or 1, D]` -> `[B, T' + 0 or 1, D]`, and make the attention mask."""
        hidden_states = torch.cat([frames, token.to(frames.dtype)], dim=1)
        mask = None if mask is None else F.pad(mask, (0, token.shape[1]), value=1)
        # All queries attend to the same keys. One row of the mask, broadcast, takes a fraction of the memory of all.
        one_row = attention_of(self.config) in ("sdpa", "eager")
        queries = hidden_states[:, :1] if one_row else hidden_states
        return hidden_states, create_bidirectional_mask(self.config, queries, mask, hidden_states)

    @torch.no_grad()
    def start_token(self, input_features: Tensor, input_features_mask: Tensor | None = None) -> None:
        """Set the global token to the mean frame of some clips, as frames enter the layers.

        A pretrained encoder then treats the token like a frame, unlike random noise. Arguments as for `forward`.
        """
        frames, mask = self._convolve(input_features, input_features_mask)
        self.global_token.copy_(masked_mean(frames, mask).mean(0))

    def _convolve(self, input_features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Apply Whisper's two convolutions and positions; past a clip's end both see zeros, as without a batch."""
        encoder = self.encoder
        longest = encoder.max_source_positions * self.strides[0] * self.strides[1]
        if input_features.dim() != 3 or not 1 <= input_features.shape[-1] <= longest:
            raise ValueError(
                f"input_features must be [batch, {encoder.num_mel_bins}, 1 to {longest} frames], "
                f"got {list(input_features.shape)}; one window holds {longest // 100} s"
            )
        # A quantised convolution's weight has another dtype than the model.
        hidden_states = input_features.to(self.global_token.dtype)
        if mask is not None:
            hidden_states = hidden_states * mask[:, None].to(hidden_states.dtype)
        hidden_states = F.gelu(encoder.conv1(hidden_states))
        if mask is not None:
            hidden_states = hidden_states * mask[:, None].to(hidden_states.dtype)
        # torch.export cannot prove the strides of the transpose without its copy.
        hidden_states = F.gelu(encoder.conv2(hidden_states)).transpose(1, 2).contiguous()  # (B, T', D)
        positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        if mask is not None:
            mask = mask[:, self.strides[1] * positions].long()
        hidden_states = hidden_states + encoder.embed_positions(positions)
        return F.dropout(hidden_states, p=encoder.dropout, training=self.training), mask


def _pool_frames(frames: Tensor, mask: Tensor | None, factor: int) -> tuple[Tensor, Tensor | None]:
    """Average neighbouring frames where `mask` `[B, L]` is 1, `[B, L, D] -> [B, ceil(L / factor), D]`, and `mask`."""

    def total(states: Tensor) -> Tensor:  # a view as (groups, factor) has sizes that torch.export cannot prove to fit
        return sum(F.pad(states, (0, 0, 0, offset))[:, offset::factor] for offset in range(factor))

    weights = torch.ones_like(frames[:1, :, :1]) if mask is None else mask[..., None].to(frames.dtype)
    count = total(weights)
    pooled = total(frames * weights) / count.clamp(min=1)
    return pooled, None if mask is None else (count[..., 0] > 0).long()


WavLinkAudioModel.register_for_auto_class("AutoModel")
