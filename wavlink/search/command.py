"""Index sounds, and search them by text or by sound.

    wavlink index SOUNDS --model your-name/wavlink-base --out INDEX
    wavlink query INDEX "a dog barks far away" --top_k 5
    wavlink query INDEX --by_sound bark.wav --without "a person talks" --json
    wavlink info INDEX

The first command again, with the same INDEX, goes on after a kill and follows files that have changed.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from wavlink.console import StopSignal, print_json
from wavlink.options import indexes as of
from wavlink.parsing import Parser
from wavlink.probability import NO_MATCH
from wavlink.sanitize import counted, path_text

from . import copies, hub
from .build import index_sounds
from .hits import as_dict, print_hits
from .index import Index
from .information import info, print_skipped
from .migration import migrate as migrated
from .playlist import check_playlist, write_playlist
from .removal import remove_sounds
from .repair import verified
from .table import Storage, Table
from .watch import watch_sounds

_SHOWN = 10  # skipped files that `index` prints


def main(arguments: list[str] | None = None) -> int:
    """Run a command, and return the exit code: 0, or 130 or 143 after SIGINT or SIGTERM."""
    options = vars(_parser().parse_args(arguments))
    return options.pop("run")(**options) or 0


def index(as_json: bool, migrate: str, watch: float | None, **options: Any) -> int:
    """Index sounds, once or until a signal, or embed an index anew by another model."""
    with StopSignal("stopping: writing what is embedded") as stopped:
        if migrate:
            for name in ("model", "metadata", "tags", "retry"):  # which `check_index` refuses
                del options[name]
            report = migrated(options.pop("out"), migrate, stop=stopped.event, **options)
        elif watch is not None:
            show = partial(print, flush=True, file=sys.stderr if as_json else sys.stdout)
            report = watch_sounds(options.pop("sounds"), seconds=watch, stop=stopped.event, show=show, **options)
        else:
            report = index_sounds(options.pop("sounds"), stop=stopped.event, **options)
    print_skipped(report.skipped, most=_SHOWN)
    _print_result(asdict(report), f"{'stopped; ' if report.stopped else ''}{report}", as_json)
    return 128 + stopped.number if stopped.number else 0


def query(
    folder: str,
    text: Sequence[str],
    by_sound: Sequence[str],
    without: Sequence[str],
    without_sound: Sequence[str],
    like: Sequence[str],
    weight: float,
    top_k: int,
    windows: bool,
    where: str | None,
    exact: bool,
    min_probability: float | None,
    prior: float | None,
    playlist: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Search an index, and print the hits; or that none is as probable as `min_probability`."""
    if playlist is not None:
        check_playlist(playlist)
    index = Index.open(folder, **options)
    limits = {"like": like, "weight": weight, "top_k": top_k, "windows": windows, "where": where, "exact": exact}
    probable = {"min_probability": min_probability, "prior": prior}
    hits = index.query(text, by_sound, without, without_sound, **limits, **probable)
    if playlist is not None:
        write_playlist(playlist, hits)
    print_hits(hits, as_json, "" if hits else NO_MATCH.format("index"))


def duplicates(folder: str, min_score: float, any_duration: bool, as_json: bool, **options: Any) -> None:
    """Print groups of sounds that are nearly the same."""
    groups = Index.open(folder, **options).duplicates(min_score, any_duration=any_duration)
    if as_json:
        print_json([[as_dict(hit) for hit in group] for group in groups])
        return
    for group in groups:
        print("\n".join(f"{hit.score:6.3f}  {path_text(hit.path)}" for hit in group), end="\n\n")
    print(f"{sum(map(len, groups))} sounds in {counted(len(groups), 'group')}")


def verify(folder: str, drop: bool, as_json: bool, storage_options: Storage) -> None:
    """Verify the checksums of an index, and with `drop` repair it."""
    table, dropped = verified(folder, drop, storage_options)
    facts = {"files": len(table.file_names()), "windows": table.windows(), "forgotten": [*dropped]}
    facts["without_checksum"] = len(table.without_checksum())
    if drop:
        facts["sounds"] = sorted({path for paths in dropped.values() for path in paths or ()})
    if as_json:
        print_json(facts)
        return
    for name, paths in dropped.items():
        print(f"forgotten: {name}" + ", which held sounds whose names are lost too" * (paths is None))
        for path in paths or ():
            print(f"  {path_text(path)}")
    state = "are as they were written" if table.checksums else "can be read; object storage keeps no checksums here"
    intact = f"{facts['files']} files with {facts['windows']} windows {state}"
    anew = "`index` embeds the forgotten sounds anew"
    anew += ", and --metadata gives them their columns again" * bool(table.metadata_columns)
    print(anew if dropped else intact)
    if facts["without_checksum"]:
        print(f"of {facts['without_checksum']} of these files no checksum is noted: the next `index` notes it")


def remove(folder: str, paths: Sequence[str], as_json: bool, storage_options: Storage) -> None:
    """Remove sounds, or folders of them, from an index."""
    with Table.open(folder, storage_options).writing() as table:
        removed = remove_sounds(table, paths)
    line = f"{counted(len(removed), 'sound')} removed; where their files stay, the next `index` adds them again"
    _print_result({"removed": removed}, line, as_json)


def reindex(folder: str, out: str, as_json: bool, **options: Any) -> None:
    """Copy an index with fewer dims or another storage."""
    copies.reindex(folder, out, **options)
    _print_windows(out, as_json)


def push(folder: str, repo_id: str, private: bool, as_json: bool, storage_options: Storage) -> None:
    """Push an index to the Hub."""
    url = hub.push(folder, repo_id, private, storage_options)
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


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="wavlink", description=__doc__)
    commands = parser.add_commands()
    for name, (run, add_options) in {
        "index": (index, of.index),
        "query": (query, of.query),
        "duplicates": (duplicates, of.duplicates),
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
