"""What an index holds, or what a model does, or which models come with the package: `wavlink info`."""

import os
import sys
from typing import TYPE_CHECKING, Any

from wavlink import bundled_models
from wavlink.backends.choice import describe_folder, is_index, is_model
from wavlink.console import print_json
from wavlink.sanitize import clean, path_text

from .location import is_remote

if TYPE_CHECKING:
    from .table import Table

_COUNTS = ("sounds", "windows", "bytes")  # printed of an empty index too
_HOW = "model revision backend precision dims matryoshka_dims dim rescore_dim".split()  # it was made
_HOW += "storage window hop sampling_rate root".split()
_INFO_TAKES = (
    "give the folder of an index or of a model, or a bundled model's name; "
    "without any, `wavlink info` lists the bundled models"
)


def info(folder: str | None, as_json: bool, storage_options: dict[str, str] | None = None) -> int:
    """Print what an index holds, or what a model does, or the models that come with the package.

    Returns:
        2 if one of these is damaged or missing, else 0.
    """
    if folder is None:
        return _print_bundled(as_json)
    released = bundled_models.released()
    by_path = bundled_models.name_of(os.path.abspath(folder))
    if is_remote(folder) or is_index(folder):
        _print_index(folder, as_json, storage_options)
    elif is_model(folder) and by_path not in released:
        _print_model(describe_folder(folder), as_json)
    elif name := next((name for name in (folder, by_path) if name in released), ""):
        path = bundled_models.bundled(name)
        _print_model(bundled_models.describe(name) | describe_folder(path), as_json)
    elif os.path.isdir(folder):
        raise ValueError(f"{folder} is no index and no model, it has no windows.lance or config.json: {_INFO_TAKES}")
    else:
        there = ", ".join(released)
        raise ValueError(f"{folder!r} is no folder here and no bundled model (there are: {there}): {_INFO_TAKES}")
    return 0


def facts_of(table: "Table") -> dict[str, Any]:
    """Return what an index holds, and how it was made."""
    manifest, files = table.manifest, table.files()
    skipped = {path: file.error for path, file in files.items() if file.error}
    return {name: getattr(manifest, name) for name in _HOW} | {
        "columns": table.metadata_columns,
        "probes": manifest.probes,
        "recall": manifest.recall,
        "sounds": len(files) - len(skipped),
        "windows": sum(file.rows for file in files.values()),
        "bytes": table.bytes(),
        "skipped": skipped,
    }


def _print_index(folder: str, as_json: bool, storage_options: dict[str, str] | None) -> None:
    from .table import Table  # needs pyarrow and Lance, which a model's folder does not

    facts = Table.reading(folder, facts_of, storage_options)
    if as_json:
        print_json(facts)
        return
    skipped = facts.pop("skipped")
    recall = ", ".join(f"{name} {value:.3f}" for name, value in facts["recall"].items())
    dims = ", ".join(map(str, facts["matryoshka_dims"]))
    facts |= {"matryoshka_dims": dims, "columns": ", ".join(facts["columns"]), "recall": recall}
    for name, value in facts.items():
        if name in _COUNTS or value not in ("", 0):
            print(f"{name:15} {clean(value, 1000)}")
    print_skipped(skipped)


def _print_model(facts: dict[str, Any], as_json: bool) -> None:
    """Print which exports a model carries, and what an `Embedder` runs it in; of a bundled one what it is."""
    if as_json:
        print_json(facts)
        return
    if "name" in facts:
        _print_facts(facts)
    for export in facts["exports"]:
        print(f"{export['backend']:14} {export['precision']}, {export['bytes'] / 1e6:.1f} MB")
    print(f"{'default':14} {facts['backend']}, {facts['precision']}")
    print(f"{'installed':14} {', '.join(facts['installed'])}")
    print(f"{'bf16':14} {'yes' if facts['bf16'] else 'not on this processor'}")


def _print_bundled(as_json: bool) -> int:
    models = bundled_models.describe_all()
    errors = [str(model["error"]) for model in models if model["error"]]
    if as_json:
        print_json({"bundled": models})
    else:
        print(f"{len(models)} bundled models")
        for model in models:
            _print_facts(model)
    for error in errors:
        print(f"wavlink info: {clean(error, 1000)}", file=sys.stderr)
    return 2 if errors else 0


def _print_facts(model: dict[str, Any]) -> None:
    size, dims = model["bytes"] / 1e6, ", ".join(map(str, model["dims"]))
    print(f"{model['name']:14} {size:.1f} MB  dims {dims}  {'intact' if model['intact'] else 'damaged'}")
    print(f"{'':14} {path_text(model['path'])}")


def print_skipped(skipped: dict[str, str], most: int | None = None) -> None:
    """Print all on stdout as a result, or with `most` the first ones on stderr as warnings."""
    file = sys.stdout if most is None else sys.stderr
    for path, reason in list(skipped.items())[:most]:
        print(f"skipped {path_text(path)}: {clean(reason, 1000)}", file=file)
    if most is not None and len(skipped) > most:
        print(f"... and {len(skipped) - most} more skipped: `info INDEX` names them all", file=file)
