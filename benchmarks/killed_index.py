"""An index that is made, and one that is migrated to another model, for killed.py."""

import random
import shutil
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from forked import command, finish, finish_and_preload
from killed_train import Subject, train_words, write_sounds

_WINDOWS = ("--window", 5, "--hop", 5)


class Index(Subject):
    """168 files, of which every eighth has several windows, written down as soon as they are embedded."""

    def __init__(self, place: Path, log: Path):
        import train  # noqa: F401
        import wavlink.search.command  # noqa: F401

        write_sounds(place / "sounds", repeats=8)
        finish(command, train_words(place / "sounds", place / "run", 2), log)
        self.whole, self.killed, self.log = place / "whole", place / "killed", log
        words = [place / "sounds", "--model", place / "run/last", *_WINDOWS]
        self.seconds = finish_and_preload(words_of(self.whole, *words), log)
        self.words = words_of(self.killed, *words)

    def begin(self) -> None:
        shutil.rmtree(self.killed, ignore_errors=True)

    def wait(self, process, rng: random.Random) -> None:
        time.sleep(rng.uniform(0, self.seconds / 2))

    def after_kill(self, code: int) -> str:
        finish(rows_if_any, [self.killed], self.log)
        return ""

    def after_end(self) -> str:
        finish(compare_rows, [self.killed, self.whole], self.log)
        return ""


class Migrate(Subject):
    """The same files, embedded anew by another model; every second kill waits for the switch, which is short."""

    def __init__(self, place: Path, log: Path):
        import train  # noqa: F401
        import wavlink.search.command  # noqa: F401

        write_sounds(place / "sounds", repeats=8)
        for seed in (1, 2):
            finish(command, train_words(place / "sounds", place / f"run-{seed}", 1, seed), log)
        self.old, self.whole, self.killed, self.log = place / "old", place / "whole", place / "killed", log
        finish(command, words_of(self.old, place / "sounds", "--model", place / "run-1/last", *_WINDOWS), log)
        shutil.copytree(self.old, self.whole)
        self.seconds = finish_and_preload(words_of(self.whole, "--migrate", place / "run-2/last"), log)
        self.words = words_of(self.killed, "--migrate", place / "run-2/last")

    def begin(self) -> None:
        shutil.rmtree(self.killed, ignore_errors=True)
        shutil.copytree(self.old, self.killed)

    def wait(self, process, rng: random.Random) -> None:
        if rng.random() < 0.5:
            return time.sleep(rng.uniform(0, self.seconds / 2))
        while process.is_alive() and not holds(process.pid, self.killed / ".lock"):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.5))

    def after_kill(self, code: int) -> str:
        finish(rows_of_either, [self.killed, self.old, self.whole], self.log)
        return ""

    def after_end(self) -> str:
        finish(compare_rows, [self.killed, self.whole], self.log)
        return ""


def words_of(out: Path, *words) -> list[str]:
    return list(map(str, ["-m", "wavlink", "index", *words, "--out", out, "--commit_seconds", 0]))


def holds(pid: int, lock: Path) -> bool:
    """Whether a process holds a lock file, which may lie there from an earlier one; by the kernel's list."""
    with suppress(FileNotFoundError):
        inode = lock.stat().st_ino
        held = (line.split() for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines())
        return any(str(pid) in words and any(word.endswith(f":{inode}") for word in words) for words in held)
    return False


def rows_of_either(folder: Path, *others: Path) -> None:
    """The rows are all those of one of the others, whose models differ."""
    found, problems = rows(folder), []
    for other in others:
        try:
            return same_rows(found, rows(other))
        except ValueError as error:
            problems.append(error)
    raise ValueError(f"neither the old rows nor the new ones: {problems}")


def rows_if_any(folder: Path) -> None:
    """Read all that a killed process has left, if there is a first version of the table."""
    from wavlink.search.location import holds_table

    if holds_table(folder):
        rows(folder)


def rows(folder: Path) -> dict[tuple, np.ndarray]:
    """Vectors by path, start and end. Every file is verified and read, no row is there twice."""
    from wavlink.search.repair import verified
    from wavlink.search.scoring import vectors_of

    (table, _), found = verified(folder), {}
    for batch in table.scan(["path", "start", "end", "embedding"], "error = ''"):
        vectors = vectors_of(batch["embedding"])
        for row, vector in zip(batch.select(["path", "start", "end"]).to_pylist(), vectors, strict=True):
            key = row["path"], row["start"], row["end"]
            if key in found:
                raise ValueError(f"{key} is there twice")
            found[key] = vector
    return found


def same_rows(found: dict, expected: dict) -> None:
    """Raise a ValueError unless both hold the same windows, and vectors that differ by fp16's last digit at most."""
    if found.keys() != expected.keys():
        raise ValueError(f"not in both: {found.keys() ^ expected.keys()}")
    worst = max(np.abs(vector - expected[key]).max() for key, vector in found.items())
    if worst > 1e-3:
        raise ValueError(f"vectors differ by {worst}")


def compare_rows(folder: Path, other: Path) -> None:
    from tests.index_files import stray_files

    same_rows(rows(folder), rows(other))
    if left := stray_files(folder):
        raise ValueError(f"left: {left}")
