"""What a run goes on from: Accelerate's states and the run's own place, read without running what is in a file.

Accelerate reads weights as safetensors, and optimizers, scalers and random states with torch's `weights_only`. With
pickle itself, which runs whatever a file says, it would read objects registered with it, and torch the index of the
shards that FSDP2 writes. The run's place is JSON instead, and such an index is looked through before torch reads it.
"""

import json
import pickle
from pathlib import Path

from accelerate import Accelerator

from wavlink.atomic_files import write_text

_PLACE = "place.json"

# All that torch writes into an index of shards: sizes, dtypes and places in files.
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


def save_state(accelerator: Accelerator, folder: Path, place: dict) -> None:
    """Writes what `load_state` reads; all processes must call it.

    Args:
        place: plain values that JSON keeps as they are; the main process's are written.
    """
    accelerator.save_state(str(folder))
    if accelerator.is_main_process:
        write_text(folder / _PLACE, json.dumps(place))


def load_state(accelerator: Accelerator, folder: Path, facts: dict | None = None) -> dict:
    """Puts the prepared model, the optimizer and the random states back, and returns the place.

    Args:
        facts: what must be as the place's `facts` say it was, such as the number of processes.

    Raises:
        ValueError: a file that would run code, a checkpoint without a place, or one of other facts.
    """
    if not (folder / _PLACE).is_file():
        raise ValueError(
            f"{folder} has no {_PLACE}, so it is not a checkpoint of this version: start anew in another --output_dir"
        )
    place = json.loads((folder / _PLACE).read_text(encoding="utf-8"))
    _refuse_other_facts(folder, place, facts or {})
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
    return place


def _refuse_other_facts(folder: Path, place: dict, facts: dict) -> None:
    begun = {"processes": len(place["feeds"]), **place.get("facts", {})}  # older versions wrote no facts
    names = [name for name in facts if name in begun and facts[name] != begun[name]]
    if names:
        changes = "; ".join(f"{name}: {begun[name]}, now {facts[name]}" for name in names)
        raise ValueError(
            f"{folder} cannot go on, since its run has changed ({changes}): start the same command with what it was "
            "begun with, or a new run in another --output_dir; --init with this run's best/ or last/ starts from "
            "its weights"
        )


class _Index(pickle.Unpickler):
    """Knows the names of an index of shards and no others, so it can call nothing else."""

    def find_class(self, module: str, name: str):
        if (module, name) not in _OF_AN_INDEX:
            raise pickle.UnpicklingError(f"an index of shards has no use for {module}.{name}")
        return super().find_class(module, name)
