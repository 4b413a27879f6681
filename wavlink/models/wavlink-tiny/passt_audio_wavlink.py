"""PaSST's audio tower (arXiv 2110.05069), as a baseline trained with the same recipe."""

import re
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .compat_wavlink import attention_of
from .config_checks_wavlink import check_audio_config
from .configuration_wavlink import one_line
from .passt_configuration_wavlink import WavLinkPasstConfig, patches
from .pretrained_wavlink import SavedAlone, given, refuse_broken_weights, refuse_wrong_weights

# Names in a checkpoint of the reference implementation -> names here; its classifiers are left out.
PASST_NAMES = {r"^net\.": "", r"^blocks\.": "layers."}
NO_PASST = re.compile(r"^(net\.)?(head|head_dist|mel)\.|^device_proxy$")


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[Tensor, Tensor]:
    """Attend, thrice `[N, heads, L, d]` and an additive mask -> `[N, L, heads, d]` and weights `[N, heads, L, L]`."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(-1), p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class WavLinkPasstAttention(nn.Module):
    """Self-attention with one linear map for queries, keys and values."""

    def __init__(self, config: WavLinkPasstConfig):
        super().__init__()
        self.config, self.is_causal = config, False
        self.heads = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: object
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, `[N, L, D] -> [N, L, D]`, and weights where the implementation returns them."""
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, *self.heads)).permute(2, 0, 3, 1, 4)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention_of(self.config), eager_attention_forward)
        options = {"dropout": self.config.attention_probs_dropout_prob if self.training else 0.0, **kwargs}
        states, weights = attend(self, query, key, value, attention_mask, scaling=self.heads[1] ** -0.5, **options)
        return self.proj(states.flatten(2)), weights


class WavLinkPasstMLP(nn.Module):
    """Feed-forward part of a layer."""

    def __init__(self, config: WavLinkPasstConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Compute `[N, L, D] -> [N, L, D]`."""
        return self.dropout(self.fc2(self.dropout(self.activation_fn(self.fc1(hidden_states)))))


class WavLinkPasstLayer(GradientCheckpointingLayer):
    """Layer of a vision transformer, with the layer norms first."""

    def __init__(self, config: WavLinkPasstConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = WavLinkPasstAttention(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = WavLinkPasstMLP(config)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: object) -> Tensor:
        """Compute `[N, L, D] -> [N, L, D]`."""
        attended, _ = self.attn(self.norm1(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.mlp(self.norm2(hidden_states))


class WavLinkPasstModel(SavedAlone, PreTrainedModel):
    """PaSST at the clip's own length. A clip's vector is the mean of its class and its distillation token.

    A clip of up to `window_frames` frames is one window: it has the first columns of the time embedding, and padding
    is neither attended to nor part of a patch. A longer clip is several full windows whose vectors are averaged. The
    names of the weights are those of the reference implementation, `hear21passt`, with `layers` for its `blocks`.
    Frames after the last complete patch (at most 9 with a stride of 10) are left out, as there.
    """

    config: WavLinkPasstConfig
    config_class = WavLinkPasstConfig
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["WavLinkPasstLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _can_record_outputs = {"hidden_states": WavLinkPasstLayer, "attentions": WavLinkPasstAttention}

    def __init__(self, config: WavLinkPasstConfig):
        check_audio_config(config)
        super().__init__(config)
        width, patch = config.hidden_size, config.patch_size
        self.rows = patches(config.num_mel_bins, patch, config.frequency_stride)
        self.columns = patches(config.window_frames, patch, config.time_stride)  # of a full window
        conv = nn.Conv2d(1, width, patch, stride=(config.frequency_stride, config.time_stride))
        self.patch_embed = nn.Sequential(OrderedDict(proj=conv))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.dist_token = nn.Parameter(torch.empty(1, 1, width))
        self.new_pos_embed = nn.Parameter(torch.empty(1, 2, width))  # of the two tokens
        self.freq_new_pos_embed = nn.Parameter(torch.empty(1, width, self.rows, 1))
        self.time_new_pos_embed = nn.Parameter(torch.empty(1, width, 1, config.time_positions or self.columns))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(WavLinkPasstLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.post_init()

    @classmethod
    def from_passt_weights(cls, weights: Mapping[str, Tensor], **config: object) -> "WavLinkPasstModel":
        """Make a tower of the weights of the reference implementation; its classifiers are left out.

        Args:
            weights: the state dict of `hear21passt`'s PaSST or of its wrapper, such as `torch.load(file,
                weights_only=True)` of a released checkpoint.
            config: fields of `WavLinkPasstConfig`, see `WavLinkPasstConfig.from_passt_weights`.

        Raises:
            ValueError: weights that are missing, unknown, not finite or of other shapes.
        """
        model = cls(WavLinkPasstConfig.from_passt_weights(weights, **config))
        own = {}
        for name, weight in weights.items():
            if not NO_PASST.search(name):
                for pattern, here in PASST_NAMES.items():
                    name = re.sub(pattern, here, name)
                own[name] = weight
        try:
            info = model.load_state_dict(own, strict=False)
        except RuntimeError as error:
            raise ValueError(f"these weights do not have the shapes of one PaSST: {one_line(error)}") from error
        refuse_wrong_weights(
            "this PaSST", {"missing_keys": info.missing_keys, "unexpected_keys": info.unexpected_keys}
        )
        refuse_broken_weights("this PaSST", model)
        return model

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, WavLinkPasstModel):
            for name in ("cls_token", "dist_token", "new_pos_embed", "freq_new_pos_embed", "time_new_pos_embed"):
                init.trunc_normal_(getattr(module, name), std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        """Return the projection of the patches."""
        return self.patch_embed.proj

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the projection of the patches."""
        self.patch_embed.proj = value

    @can_return_tuple
    def forward(
        self,
        input_features: Tensor,
        input_features_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode clips.

        Args:
            input_features: log-mel `[B, F, T]`: a clip's frames, or those of its W full windows one after another.
            input_features_mask: `[B, T]`, 1 for the clip's frames, 0 for padding after them; without it all T are
                the clip's.
            kwargs: `output_hidden_states`, `output_attentions` and `return_dict`.

        Returns:
            `last_hidden_state` `[B, W * P, D]`, the states of the windows' P patches by rows, lowest band first (zeros
            where there is padding), and `pooler_output` `[B, D]`, the mean over the clip's windows. `hidden_states`
            and `attentions` are those of the windows of all clips one after another, masked ones left out, with the
            class and the distillation token before the patches.

        Raises:
            ValueError: features of another shape, or of fewer frames than a patch has.
        """
        windows, frames = self._windows(input_features, input_features_mask)  # (B, W, F, T'), (B, W)
        is_window = frames > 0
        states, mask = self._embed_patches(windows[is_window], frames[is_window])  # (N, D, R, C), (N, C)
        if self.training:
            states, mask = self._patch_out(states, mask)
        mask = mask[:, None].expand(-1, states.shape[2], -1).flatten(1)  # (N, P)
        output = self._encode(states.flatten(2).transpose(1, 2), mask, return_dict=True, **given(kwargs))
        states, shape = output.last_hidden_state, frames.shape
        patch_states = states.new_zeros(*shape, mask.shape[1], states.shape[2])
        patch_states[is_window] = states[:, 2:] * mask[..., None]
        pooled = states.new_zeros(*shape, states.shape[2])
        pooled[is_window] = (states[:, 0] + states[:, 1]) / 2
        return BaseModelOutputWithPooling(
            last_hidden_state=patch_states.flatten(1, 2),
            pooler_output=pooled.sum(1) / is_window.sum(1, keepdim=True),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    @capture_outputs
    def _encode(self, hidden_states: Tensor, mask: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Put the two tokens before the patches `[N, P, D]`, and apply the layers: `[N, 2 + P, D]`."""
        tokens = torch.cat([self.cls_token, self.dist_token], dim=1) + self.new_pos_embed
        hidden_states = torch.cat([tokens.expand(len(hidden_states), -1, -1), hidden_states], dim=1)
        hidden_states = self.dropout(hidden_states)
        attention_mask = create_bidirectional_mask(self.config, hidden_states, F.pad(mask, (2, 0), value=1).long())
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=self.norm(hidden_states))

    def _windows(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cut `[B, F, T]` into windows `[B, W, F, T']`, and count their frames, `[B, W]`."""
        size, bins, patch = self.config.window_frames, self.config.num_mel_bins, self.config.patch_size
        if features.dim() != 3 or features.shape[1] != bins or features.shape[2] < patch:
            raise ValueError(
                f"input_features must be [batch, {bins}, {patch} frames or more], got {list(features.shape)}: take "
                "them from WavLinkPasstFeatureExtractor"
            )
        mask = torch.ones_like(features[:, 0], dtype=torch.long) if mask is None else mask
        count = -(-features.shape[2] // size)
        if count > 1:
            padding = 0, count * size - features.shape[2]
            features, mask = F.pad(features, padding), F.pad(mask, padding)
        windows = features.unflatten(2, (count, -1)).transpose(1, 2).to(self.cls_token.dtype)
        frames = mask.unflatten(1, (count, -1)).sum(-1)
        if ((frames > 0) & (frames < patch)).any() or (frames[:, 0] < patch).any():
            raise ValueError(
                f"a window has fewer frames than a patch, {patch}: a clip has {patch} to {size} frames, or full "
                f"windows of {size}, which WavLinkPasstFeatureExtractor gives with window_frames={size}"
            )
        return windows, frames

    def _embed_patches(self, windows: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Embed patches with their positions, `[N, F, T'] -> [N, D, R, C]`, and mark complete columns, `[N, C]`."""
        states = self.patch_embed(windows[:, None])
        columns = states.shape[-1]
        states = states + self.time_new_pos_embed[..., :columns] + self.freq_new_pos_embed
        complete = patches(frames, self.config.patch_size, self.config.time_stride)
        return states, torch.arange(columns, device=frames.device) < complete[:, None]

    def _patch_out(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Leave out random columns and rows of each window (section 2.2 of the paper).

        A window with c of a full window's C columns loses `c * time_patchout // C` of them.
        """
        count, width, rows, columns = states.shape
        if self.config.time_patchout:
            complete = mask.sum(1)
            kept = complete - complete * self.config.time_patchout // self.columns
            order = torch.rand(mask.shape, device=states.device).masked_fill(~mask, 2.0).argsort(1)
            order = order[:, : int(kept.max())]
            mask = torch.arange(order.shape[1], device=states.device) < kept[:, None]
            order = order.masked_fill(~mask, columns).sort(1).values.clamp(max=columns - 1)
            states = states.gather(3, order[:, None, None].expand(-1, width, rows, -1))
        if self.config.frequency_patchout:
            order = torch.rand(count, rows, device=states.device).argsort(1)
            order = order[:, : rows - self.config.frequency_patchout].sort(1).values
            states = states.gather(2, order[:, None, :, None].expand(-1, width, -1, states.shape[3]))
        return states, mask


WavLinkPasstModel.register_for_auto_class("AutoModel")
