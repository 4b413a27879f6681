"""Checkpoints: Accelerate's state and the run's, read without executing code from a file.

Accelerate reads weights as safetensors, and optimizers, scalers and random states with torch's `weights_only`. Pickle,
which can execute code, would be used for objects registered with Accelerate and for the index of the shards that FSDP2
writes. So the run's state is JSON, and such an index is checked before torch reads it.
"""

import json
import pickle
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from wavlink.atomic_files import write_text

_STATE = "place.json"

# All names that torch writes into an index of shards: sizes, dtypes and offsets in files.
_OF_AN_INDEX = {
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),  # as Python 3.13 calls them
    ("pathlib._local", "WindowsPath"),
    ("torch", "Size"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    *(("torch", name) for name in ("float64", "float32", "bfloat16", "float16", "int64", "int32", "uint8", "bool")),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}


def save_state(accelerator: Accelerator, folder: Path, state: dict) -> None:
    """Write a checkpoint; all processes must call it.

    Args:
        accelerator: with the prepared model and optimizer.
        folder: for its files.
        state: the run's: values that JSON represents exactly; the main process's are written.
    """
    accelerator.save_state(str(folder))
    if accelerator.is_main_process:
        write_text(folder / _STATE, json.dumps(state))


def load_state(accelerator: Accelerator, folder: Path, facts: dict | None = None) -> dict:
    """Restore the prepared model, the optimizer and the random states, and return the run's state.

    Args:
        accelerator: with the prepared model and optimizer.
        folder: of the checkpoint.
        facts: values that must equal the `facts` of the run's state, such as the number of processes.

    Raises:
        ValueError: a file that would execute code, a checkpoint without the run's state, or one with other facts.
    """
    if not (folder / _STATE).is_file():
        raise ValueError(
            f"{folder} has no {_STATE}, so it is not a checkpoint of this version: start anew in another --output_dir"
        )
    state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    _refuse_other_facts(folder, state, facts or {})
    try:
        for index in sorted(folder.rglob("*.metadata")):
            with open(index, "rb") as file:
                _Index(file).load()
        accelerator.load_state(str(folder))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{folder} holds a file that no run has written and that could run code, so it is not read: delete it, "
            "and the same command goes on from the checkpoint before, or from the start"
        ) from error
    return state


def _refuse_other_facts(folder: Path, state: dict, facts: dict) -> None:
    begun = {"processes": len(state["feeds"]), **state.get("facts", {})}  # earlier versions wrote no facts
    names = [name for name in facts if name in begun and facts[name] != begun[name]]
    if names:
        changes = "; ".join(f"{name}: {begun[name]}, now {facts[name]}" for name in names)
        raise ValueError(
            f"{folder} cannot go on, since its run has changed ({changes}): start the same command with what it was "
            "begun with, or a new run in another --output_dir; --init with this run's best/ or last/ starts from "
            "its weights"
        )


class _Index(pickle.Unpickler):
    """An unpickler that knows the names of an index of shards and no others, so it can call nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class or function by its name."""
        if (module, name) not in _OF_AN_INDEX:
            raise pickle.UnpicklingError(f"an index of shards has no use for {module}.{name}")
        return super().find_class(module, name)
