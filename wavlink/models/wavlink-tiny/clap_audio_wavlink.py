"""CLAP's audio tower, HTS-AT, as in the paper's ablation and as a baseline trained with the same recipe."""

import torch
from torch import Tensor, nn
from transformers import ClapAudioConfig, ClapAudioModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

# The older transformers 5 copy only the files that this one imports itself.
from .compat_wavlink import from_config as from_config
from .config_checks_wavlink import check_audio_config
from .configuration_wavlink import WavLinkClapAudioConfig
from .passt_configuration_wavlink import WavLinkPasstConfig as WavLinkPasstConfig
from .pretrained_wavlink import RECORDED, SavedAlone, given


class WavLinkClapAudioModel(SavedAlone, ClapAudioModel):
    """CLAP's HTS-AT (arXiv 2211.06687) over a clip's windows, whose pooled outputs are averaged.

    It has no global token. The output of a clip of one window is that of `ClapAudioModel`, bit for bit. Its batch norm
    keeps its stored statistics in training too, so that a clip never depends on its batch-mates; only the weight and
    bias learn. `ClapAudioModel` has one attention implementation; `attn_implementation` is for the text tower.
    """

    config: WavLinkClapAudioConfig
    config_class = WavLinkClapAudioConfig
    input_modalities = ("audio",)

    # Statistics of a new tower, in dB. Log-mels of 80 real clips had mean -49 and a deviation within a band of 27,
    # those of the synthetic clips -58 and 23; ClapAudioModel starts from 0 and 1.
    new_mean, new_std = -50.0, 25.0

    def __init__(self, config: ClapAudioConfig):
        check_audio_config(config)
        super().__init__(config)
        self._init_statistics(self.audio_encoder.batch_norm)
        self.audio_encoder.batch_norm.eval()

    def train(self, mode: bool = True) -> "WavLinkClapAudioModel":
        """Set the training mode; the batch norm stays in evaluation mode."""
        super().train(mode)
        self.audio_encoder.batch_norm.eval()
        return self

    def get_correct_attn_implementation(self, *args: object, **kwargs: object) -> str:
        """Return `"eager"`, the only implementation."""
        return "eager"

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.BatchNorm2d):
            self._init_statistics(module)

    @torch.no_grad()
    def _init_statistics(self, batch_norm: nn.BatchNorm2d):
        init.constant_(batch_norm.running_mean, self.new_mean)
        init.constant_(batch_norm.running_var, self.new_std**2)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the projection of the patches."""
        self.audio_encoder.patch_embed.proj = value

    @can_return_tuple
    def forward(
        self,
        input_features: Tensor,
        input_features_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode clips.

        Args:
            input_features: log-mel in dB `[B, W, T, F]`, W windows of a clip (of 10 s and 1001 frames each).
            input_features_mask: `[B, W]`, 1 for the clip's windows, 0 for padding; without it all W are processed.
            kwargs: `output_hidden_states`, `output_attentions` and `return_dict`.

        Returns:
            `last_hidden_state` `[B, W * P, D]`, the windows' P patches (zeros for a masked window), and
            `pooler_output` `[B, D]`, the mean over the clip's windows. `hidden_states` and `attentions` are
            `ClapAudioModel`'s, of the windows of all clips one after another, masked ones left out.
        """
        encoder = self.audio_encoder
        longest = encoder.spec_size * encoder.freq_ratio
        bins = self.config.num_mel_bins
        shape = tuple(input_features.shape)
        if len(shape) != 4 or shape[3] != bins or not 1 <= shape[2] <= longest:
            raise ValueError(
                f"input_features must be [batch, windows, 1 to {longest} frames, {bins}], got {list(shape)}: take "
                "them from WavLinkClapFeatureExtractor"
            )
        mask = input_features.new_ones(shape[:2]) if input_features_mask is None else input_features_mask
        is_window = mask.bool()
        windows = input_features[is_window][:, None].to(encoder.batch_norm.weight.dtype)  # (N, 1, T, F)
        options = {name: value for name, value in given(kwargs).items() if name in RECORDED}
        output = super().forward(windows, return_dict=True, **options)
        patches = output.last_hidden_state.flatten(2).transpose(1, 2)  # (N, P, D)
        states = patches.new_zeros(*shape[:2], *patches.shape[1:])
        states[is_window] = patches
        pooled = output.pooler_output.new_zeros(*shape[:2], patches.shape[2])
        pooled[is_window] = output.pooler_output
        return BaseModelOutputWithPooling(
            last_hidden_state=states.flatten(1, 2),
            pooler_output=pooled.sum(1) / is_window.sum(1, keepdim=True),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


WavLinkClapAudioModel.register_for_auto_class("AutoModel")
