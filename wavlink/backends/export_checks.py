"""For which model an export stands, and whether its files are those that were written."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wavlink.bundled_models import digest_of

# Fields of the config that change a graph and that its weights do not show.
CONFIG_FIELDS = ("projection_dim", "pooling", "text_pooling")
TOWER_FIELDS = (
    "model_type encoder_attention_heads num_attention_heads activation_function hidden_act hidden_activation "
    "scale_embedding frame_pooling frame_pooling_layer layer_norm_eps norm_eps eos_token_id local_attention "
    "global_attn_every_n_layers layer_types"
).split()


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
