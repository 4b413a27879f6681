"""Killed is not lost: a command killed at random moments, again and again, against one never killed.

    python benchmarks/killed.py [--what train|index|push] [--kills 20] [--seed 0] [--record killed_train.json]

SIGTERM, SIGINT and SIGKILL in turn. The same command starts again after each, until it ends by itself; then another
round begins, until there were so many kills. Exits with 1 unless in every round

- train: weights (`best/`, `last/`) and `metrics.jsonl` are those of a run never killed, to the last bit,
- index: after each kill the index can be read, and in the end it holds each window once, with the vector it has in one
  never interrupted (a clip may have had other batch-mates: numbers of fp16 may be the next ones),
- push: after each kill the Hub, on loopback, has all of the old commit or all of the new one, and in the end one more,

and unless temporary files and unfinished folders are gone with the round's end. A command is a process of its own,
forked from one that has imported what it imports: a kill while nothing is done but imports would show nothing.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import records
import soundfile
from forked import FORK, MOST_SECONDS, command, fail, finish, finish_and_preload, kill_group, start

ROOT = Path(__file__).parents[1]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)


def write_sounds(folder: Path, repeats: int = 1) -> None:
    """An audiofolder of a clip or two a kind: quick to load, so that most of the time is work.

    Args:
        repeats: of a clip's samples, in every eighth file.
    """
    from processing.audio import load_column
    from processing.datasets.synthetic import synthetic_dataset

    for split, clips in (("train", 2), ("validation", 1)):
        (folder / split).mkdir(parents=True)
        lines = ["file_name,caption"]
        for number, row in enumerate(synthetic_dataset(split, clips)):
            clip = load_column(row["audio"], 16000)
            soundfile.write(folder / split / f"{number}.wav", np.tile(clip, 1 if number % 8 else repeats), 16000)
            lines.append(f'{number}.wav,"{row["caption"]}"')
        (folder / split / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")


def train_words(data: Path, output: Path, steps: int) -> list[str]:
    options = {
        "data": data,
        "output_dir": output,
        "label_prompt": "",
        "batch_size": 8,
        "micro_batch_size": 4,
        "max_steps": steps,
        "save_steps": 5,
        "max_seconds": 1,
        "num_workers": 1,
    }
    return [str(ROOT / "train.py"), "quickstart", *(f"--{name}={value}" for name, value in options.items())]


def hidden(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*unfinished*")]


class Train:
    """40 steps with a checkpoint every 5th, killed so many steps after it has begun, and a moment more."""

    commands = (command,)
    compared = ("last/model.safetensors", "best/model.safetensors", "metrics.jsonl")

    def __init__(self, place: Path, log: Path):
        import train  # noqa: F401

        write_sounds(place / "sounds")
        self.whole, self.killed = place / "whole", place / "killed"
        self.words = train_words(place / "sounds", self.killed, 40)
        finish_and_preload(train_words(place / "sounds", self.whole, 40), log)

    def begin(self) -> None:
        shutil.rmtree(self.killed, ignore_errors=True)

    def steps(self) -> int:
        path = self.killed / "metrics.jsonl"
        return path.read_bytes().count(b'"loss"') if path.exists() else 0

    def wait(self, process, rng: random.Random) -> None:
        """The count begins where the run resumes."""
        seen = max((int(path.name[-8:]) for path in (self.killed / "checkpoints").glob("step-*")), default=0)
        further = rng.randint(0, 8)
        while further and process.is_alive() and self.steps() < seen + further:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2 if further else 2))

    def after_kill(self) -> str:
        return ""

    def after_end(self) -> str:
        differ = [name for name in self.compared if _bytes(self.whole / name) != _bytes(self.killed / name)]
        left = hidden(self.killed)
        return f"differ: {differ}; left: {left}" if differ or left else ""


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


class Index:
    """168 files, of which every eighth has several windows, written down as soon as they are embedded."""

    commands = (command,)

    def __init__(self, place: Path, log: Path):
        import train  # noqa: F401
        import wavlink.search.command  # noqa: F401

        write_sounds(place / "sounds", repeats=8)
        finish(command, train_words(place / "sounds", place / "run", 2), log)
        self.whole, self.killed, self.log = place / "whole", place / "killed", log
        self.seconds = finish_and_preload(self._words(place, self.whole), log)
        self.words = self._words(place, self.killed)

    def _words(self, place: Path, out: Path) -> list[str]:
        words = ["-m", "wavlink", "index", place / "sounds", "--model", place / "run/last", "--out", out]
        return [str(word) for word in [*words, "--commit_seconds", 0, "--window", 5, "--hop", 5]]

    def begin(self) -> None:
        shutil.rmtree(self.killed, ignore_errors=True)

    def wait(self, process, rng: random.Random) -> None:
        time.sleep(rng.uniform(0, self.seconds / 2))

    def after_kill(self) -> str:
        finish(rows_if_any, [self.killed], self.log)
        return ""

    def after_end(self) -> str:
        finish(compare_rows, [self.killed, self.whole], self.log)
        return ""


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


def compare_rows(folder: Path, other: Path) -> None:
    from tests.index_files import stray_files

    found, expected = rows(folder), rows(other)
    if found.keys() != expected.keys():
        raise ValueError(f"not in both: {found.keys() ^ expected.keys()}")
    worst = max(np.abs(vector - expected[key]).max() for key, vector in found.items())
    if worst > 1e-3:
        raise ValueError(f"vectors differ by {worst}")
    if left := stray_files(folder):
        raise ValueError(f"left: {left}")


def unverified(*words: str) -> None:
    import hub_cards.verify

    hub_cards.verify.verify = lambda folder, expected: None
    command(*words)


class Push:
    """Two models in turn into one repository, killed after a random request to the Hub or after a random time; three
    times of four without the check in a clean process, which is most of the time."""

    commands = (command, unverified, unverified, unverified)
    repo_id = "user/name"

    def __init__(self, place: Path, log: Path):
        self.repo, self.temporary = place / f"hub/models/{self.repo_id}", place / "temporary"
        self.requests, self.busy = FORK.Value("i", 0), FORK.Value("i", 0)
        ours, theirs = FORK.Pipe()
        FORK.Process(target=serve, args=(place / "hub", theirs, self.requests, self.busy), daemon=True).start()
        os.environ |= ours.recv() | {"HF_HOME": str(place / "home")}  # read where huggingface_hub is imported

        import hub_cards.push  # noqa: F401
        import train  # noqa: F401

        write_sounds(place / "sounds")
        self.words, self.trees = [], []
        for steps in (1, 2):
            finish(command, train_words(place / "sounds", place / f"run-{steps}", steps), log)
            self.words = ["-m", "hub_cards.push", str(place / f"run-{steps}/last"), self.repo_id]
            asked = self.requests.value
            self.seconds = finish_and_preload(self.words, log)
            self.asked = self.requests.value - asked
            self.trees.append(self.tree())
        self.runs = [str(place / f"run-{steps}/last") for steps in (1, 2)]
        self.commits, self.there = len(self.history()), set(self.temporary.iterdir())  # torch's own caches

    def begin(self) -> None:
        for large in self.repo.parents[2].glob("lfs/*"):
            large.unlink()  # so that it is uploaded again; commits have links of their own
        self.trees.reverse()
        self.runs.reverse()
        self.words[2] = self.runs[1]

    def wait(self, process, rng: random.Random) -> None:
        if rng.random() < 1 / 3:
            return time.sleep(rng.uniform(0, self.seconds))
        asked = self.requests.value + rng.randint(1, self.asked)
        while process.is_alive() and self.requests.value < asked:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.01))

    def history(self) -> list[dict]:
        return json.loads((self.repo / "history.json").read_text())

    def tree(self) -> dict[str, str]:
        """The digest of each file of the last commit, once the Hub has done what it was asked."""
        time.sleep(0.05)
        while self.busy.value:
            time.sleep(0.01)
        folder = self.repo / json.loads((self.repo / "refs.json").read_text())["main"]
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def after_kill(self) -> str:
        left = set(self.temporary.iterdir()) - self.there
        half = self.tree() not in self.trees
        return (
            f"half a commit: {half}; left: {left}" if half or len(left) > 2 else ""
        )  # of this one: its own, verify's

    def after_end(self) -> str:
        self.commits += 1
        left = set(self.temporary.iterdir()) - self.there
        fits = self.tree() == self.trees[1] and len(self.history()) == self.commits
        return "" if fits and not left else f"commits: {self.history()}, left: {left}"


def serve(folder: Path, pipe, requests, busy) -> None:
    """A Hub that counts what it is asked."""
    from tests.hub_server import TOKEN, Handler, Hub

    class Counting(Handler):
        def do_GET(self):
            with requests.get_lock():
                requests.value += 1
                busy.value += 1
            try:
                super().do_GET()
            finally:
                with requests.get_lock():
                    busy.value -= 1

        do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    hub = Hub(folder, Counting)
    kept = hub.environment(Path(), TOKEN).items()
    pipe.send({name: value for name, value in kept if os.environ.get(name) != value})
    threading.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("train", "index", "push"), default="train")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    records.add_option(parser, "killed")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        place = Path(place)
        (place / "temporary").mkdir()
        tempfile.tempdir = str(place / "temporary")
        os.environ |= {"OMP_NUM_THREADS": "1", "TMPDIR": tempfile.tempdir, "PYTHONPATH": str(ROOT)}
        kill(options, place)


def kill(options: argparse.Namespace, place: Path) -> None:
    log, rng = place / "log", random.Random(options.seed)
    subject = {"train": Train, "index": Index, "push": Push}[options.what](place, log)
    kills, rounds = 0, 0
    while kills < options.kills:
        subject.begin()
        while (code := start_and_kill(subject, rng, SIGNALS[kills % len(SIGNALS)], log)) != 0:
            kills += 1
            print(f"kill {kills}: round {rounds}, {SIGNALS[(kills - 1) % len(SIGNALS)].name}, exit {code}", flush=True)
            if kills == options.kills:
                finish(command, subject.words, log)
                break
        rounds += 1
        if wrong := subject.after_end():
            fail(f"round {rounds} ended wrong: {wrong}", log)
    left = [path.name for path in (place / "temporary").iterdir()]
    print(f"{options.what}: {kills} kills in {rounds} rounds, each of which ended as if it had never been killed")
    print(f"left in the folder of temporary files: {left or 'nothing'}")
    row = [options.what, kills, rounds, "as if never killed, each time"]
    records.write(
        options.record,
        title="Runs killed at random moments",
        seed=options.seed,
        note=f"Signals in turn: {', '.join(number.name for number in SIGNALS)}.",
        values={options.what: records.table(["command", "kills", "rounds", "ended"], [row])},
    )


def start_and_kill(subject, rng: random.Random, number: int, log: Path) -> int:
    """The exit code; 0 where it ended before it was killed."""
    process = start(rng.choice(subject.commands), subject.words, log)
    subject.wait(process, rng)
    if process.is_alive():
        os.kill(process.pid, number)
    process.join(MOST_SECONDS)
    if process.exitcode is None:
        kill_group(process)
        fail(f"{number.name} did not end it in {MOST_SECONDS} s", log)
    interrupted = number == signal.SIGINT and log.read_text(encoding="utf-8").endswith("KeyboardInterrupt\n")
    if process.exitcode not in (0, -number, 128 + number) and not interrupted:
        fail(f"{number.name} made it end with {process.exitcode}", log)
    if process.exitcode and (wrong := subject.after_kill()):
        fail(f"after {number.name}: {wrong}", log)
    return process.exitcode


if __name__ == "__main__":
    main()
