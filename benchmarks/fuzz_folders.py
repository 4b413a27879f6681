"""Folders of an index whose files are gone, exchanged, linked elsewhere or too many, for fuzz.py."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fuzz_files import answers_of, make_index, searches

from wavlink.search.location import TABLE

_NUMBERS = ("0", "1", "2", "7", "999999", "18446744073709551614", "18446744073709551615", "-1", "x", "")
_NAMES = (
    *(f"{TABLE}/_versions/{number}.manifest" for number in _NUMBERS),
    *(f"{TABLE}/_versions/latest_version_hint.json", f"{TABLE}/_transactions/0-x.txn", f"{TABLE}/_latest.manifest"),
    *(f"{TABLE}/data/x.lance", f"{TABLE}/_deletions/0-1-2.arrow", f"{TABLE}/_indices/x/index.idx", f"{TABLE}/x"),
    *(".lock", ".migration", "checksums.jsonl", "index.json", "x" * 200, "\n", "\u202ex"),
)
_CONTENTS = (b"", b"\0" * 16, b"{}", b'{"version": 2}', b'{"version": 99999999999999999999}', b"x" * 5000)


def make(folder: Path, sounds: str) -> tuple[Callable, Callable]:
    """`draw` and `read` of one to three changes of an index's folder, as JSON; an answer is the whole index's."""
    whole = make_index(folder)
    whole = whole.rename(folder / "whole")
    files = sorted(
        (path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()),
        key=lambda name: (len(name), (whole / name).stat().st_size, (whole / name).read_bytes()),
    )  # the names are random
    secret = folder / "secret"
    secret.write_bytes(b"{}")
    index = folder / "sounds.index"
    shutil.copytree(whole, index)
    expected = answers_of(index)

    def draw(rng: np.random.Generator) -> bytes:
        changes = [
            [str(rng.choice([*CHANGES])), int(rng.integers(1 << 30)), int(rng.integers(1 << 30))]
            for _ in range(rng.integers(1, 4))
        ]
        return json.dumps(changes).encode()

    def read(content: bytes) -> bool:
        shutil.rmtree(index)
        shutil.copytree(whole, index)
        for name, one, other in json.loads(content):
            CHANGES[name](index, files, one, other)
        found = searches(index, expected)
        assert secret.read_bytes() == b"{}", "a file outside has changed"
        return found

    return draw, read


def _gone(index: Path, files: list[str], one: int, other: int) -> None:
    _remove(index / files[one % len(files)])


def _folder_gone(index: Path, files: list[str], one: int, other: int) -> None:
    path = (index / files[one % len(files)]).parent
    if path != index:
        _remove(path)


def _empty(index: Path, files: list[str], one: int, other: int) -> None:
    _write(index / files[one % len(files)], b"")


def _cut(index: Path, files: list[str], one: int, other: int) -> None:
    path = index / files[one % len(files)]
    if path.is_file():
        content = path.read_bytes()
        _write(path, content[: other % (len(content) + 1)])


def _copied(index: Path, files: list[str], one: int, other: int) -> None:
    """One file holds what another does."""
    source = index / files[other % len(files)]
    if source.is_file():
        _write(index / files[one % len(files)], source.read_bytes())


def _exchanged(index: Path, files: list[str], one: int, other: int) -> None:
    first, second, between = index / files[one % len(files)], index / files[other % len(files)], index / "between"
    if first != second and first.is_file() and second.is_file():
        first.rename(between)
        second.rename(first)
        between.rename(second)


def _is_folder(index: Path, files: list[str], one: int, other: int) -> None:
    path = index / files[one % len(files)]
    if path.parent.is_dir():
        _remove(path)
        path.mkdir()


def _linked(index: Path, files: list[str], one: int, other: int) -> None:
    """A link to nowhere, to itself, to a device that never ends, to a file outside, or to the folder above."""
    path = index / files[one % len(files)]
    if path.parent.is_dir():
        _remove(path)
        path.symlink_to(("nowhere", path.name, "/dev/zero", index.parent / "secret", "..")[other % 5])


def _added(index: Path, files: list[str], one: int, other: int) -> None:
    path = index / _NAMES[one % len(_NAMES)]
    if path.parent.is_dir():
        _remove(path)
        source = index / files[other // 8 % len(files)]
        copied = source.is_file() and other % 2
        _write(path, source.read_bytes() if copied else _CONTENTS[other % len(_CONTENTS)])


def _pipe(index: Path, files: list[str], one: int, other: int) -> None:
    """A named pipe, which never has anything to read."""
    path = index / files[one % len(files)]
    if path.parent.is_dir():
        _remove(path)
        os.mkfifo(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    if path.parent.is_dir() and not path.is_dir():
        path.unlink(missing_ok=True)
        path.write_bytes(content)


CHANGES = {
    "gone": _gone,
    "folder gone": _folder_gone,
    "empty": _empty,
    "cut": _cut,
    "copied": _copied,
    "exchanged": _exchanged,
    "is folder": _is_folder,
    "linked": _linked,
    "added": _added,
    "pipe": _pipe,
}
TARGETS = {"index folder": make}
INPUTS = 2000  # of each
