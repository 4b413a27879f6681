"""Change one field of a saved WavLink's `config.json`; every other file of the folder stays as it is."""

import json
import os
from pathlib import Path
from typing import Any

from modeling_wavlink import WavLinkConfig

from . import bundled_models
from .atomic_files import write_text
from .destinations import check_folder


def own_folder(model: str | os.PathLike[str]) -> Path:
    """Return the folder of a WavLink on this machine.

    Raises:
        ValueError: it is none, it is a bundled model's, or nothing can be written there.
    """
    folder = Path(model)
    if not folder.is_dir():
        if str(model) in bundled_models.names():
            raise ValueError(
                f"{model} is a bundled model, whose files stay those of the release: copy "
                f"{bundled_models.MODELS / str(model)} first"
            )
        raise ValueError(
            f"{model} is no folder here, and its config.json is to be written: save a model of the Hub to a folder"
        )
    _read(folder)
    if folder.resolve().parent == bundled_models.MODELS.resolve():
        raise ValueError(f"{model} is a bundled model, whose files stay those of the release: copy its folder first")
    check_folder(folder)
    return folder


def write_field(folder: Path, name: str, value: Any) -> None:
    """Write a field into `folder/config.json`, atomically.

    Raises:
        ValueError: no WavLink's config, or a value that `WavLinkConfig` refuses.
        OSError: it cannot be written; the older file stays.
    """
    config = _read(folder) | {name: value}
    WavLinkConfig.from_dict(config)
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        best = folder / "best"
        hint = f"; did you mean {best}?" if (best / "config.json").is_file() else ""
        raise ValueError(f"{folder} has no config.json{hint}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"the config.json of {folder} is broken: {error}") from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type != WavLinkConfig.model_type:
        raise ValueError(f"{folder} is a {model_type!r} model: only a WavLink's config.json holds this")
    return config
