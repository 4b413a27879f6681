"""Pushes to a Hub on loopback, for killed.py."""

import hashlib
import json
import os
import random
import shutil
import threading
import time
from pathlib import Path

from forked import FORK, command, finish, finish_and_preload
from killed_train import Subject, train_words, write_sounds


def unverified(*words: str) -> None:
    import hub_cards.verify

    hub_cards.verify.verify = lambda folder, expected: None
    command(*words)


class Push(Subject):
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
        self.words, self.trees, self.left = [], [], 0
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

    def after_kill(self, code: int) -> str:
        """Only a process that ends at once leaves its temporary folders, to the system; here they are removed."""
        left = set(self.temporary.iterdir()) - self.there
        half = self.tree() not in self.trees
        if half or (left and code >= 0):
            return f"half a commit: {half}; left: {left}"
        for path in left:
            shutil.rmtree(path)
        self.left += len(left)
        return ""

    def after_end(self) -> str:
        self.commits += 1
        left = set(self.temporary.iterdir()) - self.there
        fits = self.tree() == self.trees[1] and len(self.history()) == self.commits
        return "" if fits and not left else f"commits: {self.history()}, left: {left}"

    def told(self) -> tuple[str, dict]:
        return super().told()[0], {"temporary folders left by SIGKILL": self.left}


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
