"""Configuration of a PaSST audio tower, and its sizes as read from a checkpoint of the reference implementation."""

import math
from collections.abc import Mapping

from torch import Tensor
from transformers import PretrainedConfig


class WavLinkPasstConfig(PretrainedConfig):
    """Configuration of PaSST (arXiv 2110.05069), a vision transformer over the patches of a log-mel.

    The defaults are those of PaSST-S with patches of 16 x 16 every 10 x 10 and 10 s of sound.

    Args:
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size (`int`): of the layers.
        hidden_act (`str`): the activation of the layers.
        hidden_dropout_prob, attention_probs_dropout_prob (`float`): dropout in training.
        qkv_bias (`bool`): whether queries, keys and values have a bias.
        num_mel_bins (`int`): bands of the log-mel.
        window_frames (`int`): frames of a window, 10 ms each by default. A shorter clip is one window of its own
            length, with the first columns of the time embedding; a longer one is several windows.
        patch_size (`int`): bands and frames of a patch.
        frequency_stride, time_stride (`int`): bands and frames from one patch to the next.
        time_positions (`int`, *optional*): columns of the time embedding; default: as many as a window has.
        time_patchout (`int`): structured patch-out: random columns of patches that training leaves out of a full
            window, and in proportion out of a shorter one. Evaluation leaves out none.
        frequency_patchout (`int`): random rows of patches that training leaves out of every window.
        initializer_range (`float`): standard deviation of new weights.
        layer_norm_eps (`float`): of the layer norms.
    """

    model_type = "passt"

    def __init__(
        self,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        qkv_bias: bool = True,
        num_mel_bins: int = 128,
        window_frames: int = 1000,
        patch_size: int = 16,
        frequency_stride: int = 10,
        time_stride: int = 10,
        time_positions: int | None = None,
        time_patchout: int = 0,
        frequency_patchout: int = 0,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-6,
        **kwargs: object,
    ):
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.qkv_bias = qkv_bias
        self.num_mel_bins = num_mel_bins
        self.window_frames = window_frames
        self.patch_size = patch_size
        self.frequency_stride = frequency_stride
        self.time_stride = time_stride
        self.time_positions = time_positions
        self.time_patchout = time_patchout
        self.frequency_patchout = frequency_patchout
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        super().__init__(**kwargs)

    @classmethod
    def from_passt_weights(cls, weights: Mapping[str, Tensor], **fields: object) -> "WavLinkPasstConfig":
        """Read the sizes off the weights of the reference implementation, by their names there.

        Args:
            weights: with or without the prefix `net.` of its wrapper.
            fields: fields of this class that the shapes do not show, or that replace what is read. The shapes leave
                open `num_attention_heads` (64 dims each by default) and, where several fit, the strides.

        Raises:
            ValueError: weights that are not PaSST's.
        """
        shapes = {name.removeprefix("net."): tuple(weight.shape) for name, weight in weights.items()}
        blocks = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
        needed = ("patch_embed.proj.weight", "freq_new_pos_embed", "time_new_pos_embed", "blocks.0.mlp.fc1.weight")
        missing = [name for name in needed if len(shapes.get(name, ())) < 2]
        if missing:
            raise ValueError(
                f"these are not the weights of a PaSST: {', '.join(missing)} missing. Give the state dict of "
                "hear21passt's PaSST or of its wrapper"
            )
        width, _, patch, _ = (*shapes["patch_embed.proj.weight"], 0, 0)[:4]
        rows, columns = shapes["freq_new_pos_embed"][2], shapes["time_new_pos_embed"][-1]
        bins = fields.setdefault("num_mel_bins", 128)
        stride = fields.setdefault("frequency_stride", _stride(bins, patch, rows))
        stride = fields.setdefault("time_stride", stride)
        longest = columns * stride - 1 + patch
        return cls(
            **{
                "hidden_size": width,
                "num_hidden_layers": len(blocks),
                "num_attention_heads": max(1, width // 64),
                "intermediate_size": shapes["blocks.0.mlp.fc1.weight"][0],
                "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
                "patch_size": patch,
                "time_positions": columns,
                "window_frames": min(
                    math.ceil(columns * stride / 100) * 100, longest
                ),  # whole seconds, where they fit
                **fields,
            }
        )


def patches(length: int, patch: int, stride: int) -> int:
    """Return how many patches of a size fit into a length, one every `stride`."""
    return (length - patch) // stride + 1


def _stride(bins: int, patch: int, rows: int) -> int:
    """Return the largest stride, at most a patch, with which a log-mel has so many rows of patches."""
    strides = [stride for stride in range(1, patch + 1) if patches(bins, patch, stride) == rows]
    if not strides:
        raise ValueError(
            f"a frequency embedding of {rows} rows fits no stride of patches of {patch} over {bins} bands: give "
            "num_mel_bins"
        )
    return strides[-1]


WavLinkPasstConfig.register_for_auto_class()
