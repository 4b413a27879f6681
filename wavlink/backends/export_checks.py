"""For which model an export stands, whether its files are those that were written, and which inputs it takes."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modeling_wavlink.config_checks_wavlink import text_max_length
from wavlink.bundled_models import digest_of

# Fields of the config that change a graph and that its weights do not show.
CONFIG_FIELDS = ("projection_dim", "pooling", "text_pooling")
TOWER_FIELDS = (
    "model_type encoder_attention_heads num_attention_heads activation activation_function hidden_act "
    "hidden_activation scale_embedding frame_pooling frame_pooling_layer layer_norm_eps norm_eps eos_token_id "
    "pad_token_id n_heads is_decoder position_embedding_type relative_attention_num_buckets rope_parameters "
    "rope_theta local_attention sliding_window global_attn_every_n_layers layer_types"
).split()

STRIDE = 2  # frames that become a position, in Whisper


def refuse_other(path: str | Path, source: str | Path, differs: str) -> None:
    """Raise a ValueError if an export was made for another model.

    Args:
        path: of its record.
        source: the model.
        differs: what of the model is not as it was exported; "" if nothing.
    """
    if differs:
        raise ValueError(
            f"{Path(path).parent} was exported for other {differs} than those of {source}: export the model again, or "
            f"remove that folder"
        )


def refuse_damaged(path: str | Path, record: Mapping[str, Any], find: Callable[[str], "str | Path | None"]) -> None:
    """Raise a ValueError unless an export has its files, unchanged.

    Args:
        path: of its record.
        find: returns the path of one of its files, or None.
    """
    for name, size in record["files"].items():
        if name != os.path.basename(name):
            raise ValueError(f"{path} names a file outside its folder, {name!r}: export the model again")
        file = find(name)
        intact = file is not None and os.path.isfile(file) and os.path.getsize(file) == size
        if not intact or digest_of(file or "") != record["sha256"].get(name):
            raise ValueError(f"{name} of {Path(path).parent} is missing or damaged: export the model again")


def refuse_unfit(name: str, values: np.ndarray, config: Any) -> None:
    """Raise a ValueError for inputs that a tower has no weights for, where OpenVINO reads beside the weights.

    Args:
        name: `audio` or `text`.
        values: `input_features` `[B, F, T]` or `input_ids` `[B, L]`.
        config: of the WavLink.
    """
    if name == "audio":
        bands, longest = config.audio_config.num_mel_bins, STRIDE * config.audio_config.max_source_positions
        if values.ndim != 3 or values.shape[1] != bands or not 1 <= values.shape[2] <= longest:
            expected = f"[batch, {bands}, 1 to {longest} frames]"
            raise ValueError(f"input_features must be {expected}, got {list(values.shape)}")
        return
    limit, tokens = text_max_length(config.text_config), config.text_config.vocab_size
    if limit is not None and values.shape[-1] > limit:
        raise ValueError(
            f"a text of {values.shape[-1]} tokens is over the text tower's limit of {limit}: shorten it, or tokenize "
            f"with truncation=True, max_length={limit}"
        )
    if values.size and not 0 <= values.min() <= values.max() < tokens:
        raise ValueError(f"the text tower knows {tokens} tokens, got token {values.max()}: take its own tokenizer")
