"""Index sounds once, and search them by text or by sound.

    python -m wavlink.search.command index SOUNDS --model your-name/wavlink-base --out INDEX
    python -m wavlink.search.command query INDEX "a dog barks far away" --top_k 5
    python -m wavlink.search.command query INDEX --by_sound bark.wav --without "a person talks" --json
    python -m wavlink.search.command info INDEX

The first command again, with the same INDEX, goes on where it was killed and takes in what has changed meanwhile.
"""

import argparse
import signal
import sys
import threading
from contextlib import contextmanager
from dataclasses import asdict

from processing.file_names import same_letters
from wavlink import options as of
from wavlink.console import on_stop_signals, print_json
from wavlink.parsing import Parser
from wavlink.progress import Bar
from wavlink.sanitize import clean

from . import transfer as index_copies
from .build import index_sounds
from .index import Index, as_dict
from .listing import readable
from .parts import with_large_texts
from .store import IndexFolder

_SHOWN = 10  # skipped files


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0, 130 or 143 after SIGINT or SIGTERM."""
    options = vars(_parser().parse_args(arguments))
    return options.pop("run")(**options) or 0


def index(as_json, **options) -> int:
    stop, caught = threading.Event(), []
    with _stopped_by(stop, caught):
        report = index_sounds(options.pop("sounds"), stop=stop, **options)
    _say_skipped(report.skipped, all_of_them=False)
    _tell(asdict(report), f"{'stopped; ' if report.stopped else ''}{report}", as_json)
    return 128 + caught[0] if caught else 0


def query(folder, text, by_sound, without, without_sound, weight, top_k, windows, as_json, **options) -> None:
    found = Index.open(folder, **options).query(
        text, by_sound, without, without_sound, weight=weight, top_k=top_k, windows=windows
    )
    if as_json:
        print_json([as_dict(hit) for hit in found])
        return
    for hit in found:
        mark = "  (missing)" * hit.missing + "  (changed)" * hit.changed
        print(f"{hit.score:6.3f}  {hit.start:8.2f} - {hit.end:8.2f} s  {clean(hit.path, 1000)}{mark}")


def info(folder, as_json) -> None:
    manifest, files = IndexFolder.reading(folder, lambda about: (about.manifest, with_large_texts(about.files())))
    skipped = {
        path: error for path, error in zip(*(files[n].to_pylist() for n in ("path", "error")), strict=True) if error
    }
    sounds = len(files["path"].unique()) - len(skipped)
    names = "model revision dims dim storage window hop sampling_rate root".split()
    facts = {name: getattr(manifest, name) for name in names} | {
        "sounds": sounds,
        "windows": manifest.rows,
        "parts": len(manifest.parts),
        "bytes": sum(part.bytes for part in manifest.parts),
    }
    if as_json:
        print_json(facts | {"skipped": skipped})
        return
    for name, value in facts.items():
        print(f"{name:14} {clean(value, 1000)}")
    _say_skipped(skipped, all_of_them=True)


def verify(folder, drop, as_json) -> None:
    split, dropped = [], {}
    if drop:
        with IndexFolder.open(folder).writing() as about:
            split, dropped = about.repair()
            manifest = about.manifest
    else:
        manifest = IndexFolder.reading(folder, lambda about: index_copies.refuse_damaged(about) or about.manifest)
    facts = {"parts": len(manifest.parts), "windows": manifest.rows, "forgotten": [*dropped]}
    if drop:
        facts |= {"split": split, "sounds": sorted({path for paths in dropped.values() for path in paths or ()})}
    if as_json:
        return _tell(facts, "", as_json)
    for name in split:
        print(f"{name} was too large to be read at once: it is several parts now, and nothing is lost")
    for name, paths in dropped.items():
        print(f"forgotten: {name}" + ", which held sounds whose names are lost too" * (paths is None))
        for path in paths or ():
            print(f"  {clean(path, 1000)}")
    whole = f"{facts['parts']} parts with {facts['windows']} windows are as they were written"
    print("`index` embeds the forgotten sounds anew" if dropped else whole)


def remove(folder, paths, as_json) -> None:
    with IndexFolder.open(folder).writing() as about:
        known = set(about.files()["path"].to_pylist())
        folders = {path[:end] for path in known for end, letter in enumerate(path) if letter == "/"}
        names = [(name, same_letters(readable(name).rstrip("/"), known | folders)) for name in paths]
        unknown = [name for name, there in names if there is None]
        if unknown:
            raise ValueError(
                f"the index has no {clean(', '.join(unknown), 1000)}: its paths are told from {about.manifest.root}"
            )
        gone = {path for path in known for _, name in names if path == name or path.startswith(f"{name}/")}
        about.drop(sorted(gone))
    told = f"{len(gone)} sounds removed; where their files stay, the next `index` adds them again"
    _tell({"removed": sorted(gone)}, told, as_json)


def reindex(folder, out, as_json, **options) -> None:
    index_copies.reindex(folder, out, **options)
    _tell_windows(out, as_json)


def push(folder, repo_id, private, as_json) -> None:
    where = index_copies.push(folder, repo_id, private)
    _tell({"repo_id": repo_id, "where": where}, where, as_json)


def pull(repo_id, out, as_json, **options) -> None:
    index_copies.pull(repo_id, out, **options)
    _tell_windows(out, as_json)


def _tell_windows(out, as_json: bool) -> None:
    windows = IndexFolder.open(out).manifest.rows
    _tell({"index": out, "windows": windows}, f"{out} holds {windows} windows", as_json)


def _tell(facts: dict, line: str, as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        print(line)


def _say_skipped(skipped: dict[str, str], all_of_them: bool) -> None:
    for number, (path, why) in enumerate(skipped.items()):
        if number == _SHOWN and not all_of_them:
            print(f"... and {len(skipped) - _SHOWN} more skipped: `info INDEX` names them all", file=sys.stderr)
            break
        print(f"skipped {clean(path, 1000)}: {clean(why, 1000)}", file=sys.stderr if not all_of_them else sys.stdout)


@contextmanager
def _stopped_by(stop: threading.Event, caught: list[int]):
    """SIGINT and SIGTERM set `stop`; a second one ends the process as ever."""

    def ask(number, _):
        caught.append(number)
        stop.set()
        signal.signal(number, before[number])
        Bar.write("stopping: writing what is embedded", file=sys.stderr)

    with on_stop_signals(ask) as before:
        yield


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
