"""Index sounds, and search them by text or by sound.

    wavlink index SOUNDS --model your-name/wavlink-base --out INDEX
    wavlink query INDEX "a dog barks far away" --top_k 5
    wavlink query INDEX --by_sound bark.wav --without "a person talks" --json
    wavlink info INDEX

The first command again, with the same INDEX, goes on after a kill and follows files that have changed.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from processing.file_names import same_letters
from wavlink import bundled_models
from wavlink import options as of
from wavlink.backends.choice import describe_folder, is_index, is_model
from wavlink.console import StopSignal, print_json
from wavlink.parsing import Parser
from wavlink.probability import NO_MATCH
from wavlink.sanitize import clean

from . import hub
from .build import index_sounds
from .index import Index, print_hits
from .listing import readable
from .repair import verified
from .table import Storage, Table, is_remote

_SHOWN = 10  # skipped files that `index` prints
_INFO_TAKES = (
    "give the folder of an index or of a model, or a bundled model's name; "
    "without any, `wavlink info` lists the bundled models"
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command, and return the exit code: 0, or 130 or 143 after SIGINT or SIGTERM."""
    options = vars(_parser().parse_args(arguments))
    return options.pop("run")(**options) or 0


def index(as_json: bool, **options: Any) -> int:
    """Index sounds."""
    with StopSignal("stopping: writing what is embedded") as stopped:
        report = index_sounds(options.pop("sounds"), stop=stopped.event, **options)
    _print_skipped(report.skipped, most=_SHOWN)
    _print_result(asdict(report), f"{'stopped; ' if report.stopped else ''}{report}", as_json)
    return 128 + stopped.number if stopped.number else 0


def query(
    folder: str,
    text: Sequence[str],
    by_sound: Sequence[str],
    without: Sequence[str],
    without_sound: Sequence[str],
    weight: float,
    top_k: int,
    windows: bool,
    where: str | None,
    exact: bool,
    min_probability: float | None,
    prior: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Search an index, and print the hits; or that none is as probable as `min_probability`."""
    index = Index.open(folder, **options)
    limits = {"weight": weight, "top_k": top_k, "windows": windows, "where": where, "exact": exact}
    probable = {"min_probability": min_probability, "prior": prior}
    hits = index.query(text, by_sound, without, without_sound, **limits, **probable)
    print_hits(hits, as_json, "" if hits else NO_MATCH.format("index"))


def info(folder: str | None, as_json: bool, storage_options: Storage = None) -> int:
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
        raise ValueError(f"{folder} is no index and no model, it has no index.json or config.json: {_INFO_TAKES}")
    else:
        there = ", ".join(released)
        raise ValueError(f"{folder!r} is no folder here and no bundled model (there are: {there}): {_INFO_TAKES}")
    return 0


def _print_index(folder: str, as_json: bool, storage_options: Storage) -> None:
    table, files = Table.reading(folder, lambda table: (table, table.files()), storage_options)
    manifest = table.manifest
    skipped = {path: file.error for path, file in files.items() if file.error}
    names = "model revision backend precision dims dim rescore_dim storage window hop sampling_rate root".split()
    facts = {name: getattr(manifest, name) for name in names} | {
        "columns": ", ".join(table.metadata_columns),
        "probes": manifest.probes,
        "recall": ", ".join(f"{name} {value:.3f}" for name, value in manifest.recall.items()),
        "sounds": len(files) - len(skipped),
        "windows": sum(file.rows for file in files.values()),
        "bytes": table.bytes(),
    }
    if as_json:
        print_json(facts | {"columns": table.metadata_columns, "recall": manifest.recall, "skipped": skipped})
        return
    for name, value in facts.items():
        print(f"{name:14} {clean(value, 1000)}")
    _print_skipped(skipped)


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
    print(f"{'':14} {clean(model['path'], 1000)}")


def verify(folder: str, drop: bool, as_json: bool) -> None:
    """Verify the checksums of an index, and with `drop` repair it."""
    table, dropped = verified(folder, drop)
    facts = {"files": len(table.file_names()), "windows": table.windows(), "forgotten": [*dropped]}
    if drop:
        facts["sounds"] = sorted({path for paths in dropped.values() for path in paths or ()})
    if as_json:
        print_json(facts)
        return
    for name, paths in dropped.items():
        print(f"forgotten: {name}" + ", which held sounds whose names are lost too" * (paths is None))
        for path in paths or ():
            print(f"  {clean(path, 1000)}")
    intact = f"{facts['files']} files with {facts['windows']} windows are as they were written"
    print("`index` embeds the forgotten sounds anew" if dropped else intact)


def remove(folder: str, paths: Sequence[str], as_json: bool) -> None:
    """Remove sounds, or folders of them, from an index."""
    with Table.open(folder).writing() as table:
        known = set(table.files())
        folders = {path[:end] for path in known for end, letter in enumerate(path) if letter == "/"}
        names = [(name, same_letters(readable(name).rstrip("/"), known | folders)) for name in paths]
        unknown = [name for name, indexed in names if indexed is None]
        if unknown:
            raise ValueError(
                f"the index has no {clean(', '.join(unknown), 1000)}: paths are relative to {table.manifest.root}"
            )
        removed = sorted({path for path in known for _, name in names if f"{path}/".startswith(f"{name}/")})
        table.remove(removed)
    line = f"{len(removed)} sounds removed; where their files stay, the next `index` adds them again"
    _print_result({"removed": removed}, line, as_json)


def reindex(folder: str, out: str, as_json: bool, **options: Any) -> None:
    """Copy an index with fewer dims or another storage."""
    hub.reindex(folder, out, **options)
    _print_windows(out, as_json)


def push(folder: str, repo_id: str, private: bool, as_json: bool) -> None:
    """Push an index to the Hub."""
    url = hub.push(folder, repo_id, private)
    _print_result({"repo_id": repo_id, "where": url}, url, as_json)


def pull(repo_id: str, out: str, as_json: bool, **options: Any) -> None:
    """Download an index from the Hub."""
    hub.pull(repo_id, out, **options)
    _print_windows(out, as_json)


def _print_windows(out: str, as_json: bool) -> None:
    windows = Table.open(out).windows()
    _print_result({"index": out, "windows": windows}, f"{out} holds {windows} windows", as_json)


def _print_result(facts: dict, line: str, as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        print(line)


def _print_skipped(skipped: dict[str, str], most: int | None = None) -> None:
    """Print all on stdout as a result, or with `most` the first ones on stderr as warnings."""
    file = sys.stdout if most is None else sys.stderr
    for path, reason in list(skipped.items())[:most]:
        print(f"skipped {clean(path, 1000)}: {clean(reason, 1000)}", file=file)
    if most is not None and len(skipped) > most:
        print(f"... and {len(skipped) - most} more skipped: `info INDEX` names them all", file=file)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="wavlink", description=__doc__)
    commands = parser.add_commands()
    for name, (run, add_options) in {
        "index": (index, of.index),
        "query": (query, of.query),
        "info": (info, of.info),
        "verify": (verify, of.verify),
        "remove": (remove, of.remove),
        "reindex": (reindex, of.reindex),
        "push": (push, of.push_index),
        "pull": (pull, of.pull),
    }.items():
        command = commands.add_parser(name)
        add_options(command)
        command.set_defaults(run=run)
    return parser
