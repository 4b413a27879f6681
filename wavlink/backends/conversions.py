"""Conversions in the cache, and which of them a model's folder is run by without torch.

What is converted on first use stands in `HF_HOME/wavlink/BACKEND/KEY`, beside the Hub's cache, in the form of an
export. A JSON file in `HF_HOME/wavlink/BACKEND/folders` says of a model's folder, by a hash of its files, which
conversion is its own. It is neither exported nor loaded then: its weights are only hashed.
"""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from wavlink.bundled_models import digest_of

from .choice import FORMAT, read_record, record_name
from .sessions import INPUTS
from .standalone import KEY, StandaloneModel, StandaloneProcessor, needs_torch, open_described

PACKAGES = {"openvino": ("openvino",), "onnx": ("onnx", "onnxscript", "onnxruntime")}
_ENDINGS = (".json", ".jinja", ".model", ".safetensors", ".txt")  # of files that a model is loaded from


def cache_of(backend: str) -> Path:
    """Return the folder of the conversions for a backend."""
    return Path(constants.HF_HOME) / "wavlink" / backend


def conversion_key(identity: dict[str, str], backend: str) -> str:
    """Return the name of a model's conversion, by its weights, its settings, and the versions that make the graph.

    Args:
        identity: as `exported.model_identity` returns it.
    """
    return _hash([identity, _versions(backend)])


def is_intact(folder: Path, backend: str) -> bool:
    """Return whether a folder of the cache holds the files of its record, unchanged."""
    try:
        record = read_record(folder / record_name("fp32"))
        graphs = {record["towers"][name]["file"] for name in INPUTS}
        own = record["backend"] == backend and folder.name == conversion_key(record["model"], backend)
        whole = all(digest_of(folder / name) == record["sha256"][name] for name in record["files"])
        return own and graphs <= set(record["files"]) and whole
    except (OSError, ValueError, KeyError, TypeError):
        return False


def folder_key(folder: Path, backend: str) -> str:
    """Return a hash of the files that a model is loaded from, and of the versions that make its conversion.

    "" for what is no folder with its weights in `model.safetensors`, or whose files cannot be read.
    """
    if not (folder / "model.safetensors").is_file():
        return ""
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix in _ENDINGS and path.is_file())
        return _hash([{path.name: digest_of(path) for path in files}, _versions(backend)])
    except OSError:
        return ""


def write_note(key: str, backend: str, converted: Path, facts: dict[str, Any]) -> None:
    """Write down by which conversion a model's folder is run.

    Args:
        key: of the folder, see `folder_key`.
        converted: the folder of its conversion.
        facts: as `exported.standalone_facts` returns them.
    """
    from wavlink.atomic_files import write_text

    content = {"conversion": converted.name, KEY: facts}
    write_text(_note(key, backend), json.dumps({**content, "sha256": _hash(content)}, indent=2) + "\n")


def open_conversion(
    folder: Path, key: str, backend: str, precision: str
) -> tuple[StandaloneModel, StandaloneProcessor] | None:
    """Open a model without torch by an earlier conversion of it; None if there is none, or one that needs torch.

    Args:
        folder: of the model.
        key: of the folder, see `folder_key`.
        backend, precision: as `choice.choose` returns them; fp32 or bf16.
    """
    if not key:
        return None
    try:
        found = json.loads(_note(key, backend).read_text(encoding="utf-8"))
        if found.pop("sha256") != _hash(found):
            return None
        converted = cache_of(backend) / found["conversion"]
        record = read_record(converted / record_name("fp32")) | {KEY: found[KEY]}
        if needs_torch(folder, record) or not is_intact(converted, backend):
            return None
        return open_described(folder, converted, record, backend, precision)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # torch, where the model is loaded, says what is wrong


def _note(key: str, backend: str) -> Path:
    return cache_of(backend) / "folders" / f"{key}.json"


def _versions(backend: str) -> dict[str, str]:
    names = ("torch", "transformers", *PACKAGES[backend], "wavlink")
    return {name: version_of(name) for name in names} | {"format": str(FORMAT)}


def version_of(package: str) -> str:
    """Return the version of a package, "" where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:  # of wavlink in a checkout that is imported from its folder
        return ""


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
