"""Killed is not lost: a command killed at random moments, again and again, against one never killed.

    python benchmarks/killed.py [--what train|index|migrate|push|serve] [--kills 20] [--seed 0] [--record FILE]

SIGTERM, SIGINT and SIGKILL in turn. The same command starts again after each, until it ends by itself; then another
round begins, until there were so many kills. Exits with 1 unless in every round

- train: weights (`best/`, `last/`) and `metrics.jsonl` are those of a run never killed, to the last bit,
- index: after each kill the index can be read, and in the end it holds each window once, with the vector it has in one
  never interrupted (a clip may have had other batch-mates: numbers of fp16 may be the next ones),
- migrate: after each kill the index holds all rows of the old model or all of the new one, and in the end those of a
  migration that was never killed,
- push: after each kill the Hub, on loopback, has all of the old commit or all of the new one, and in the end one more;
  SIGKILL alone leaves folders among the temporary files,
- serve: under load, every answer is that of a server that was never killed; what it has accepted before SIGTERM or
  SIGINT is answered; the index, the model and the caches keep every byte,

and unless temporary files and unfinished folders are gone with the round's end. A command is a process of its own,
forked from one that has imported what it imports: a kill while nothing is done but imports would show nothing.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

import records
from forked import MOST_SECONDS, fail, kill_group, start
from killed_index import Index, Migrate
from killed_push import Push
from killed_serve import Serve
from killed_train import Train

ROOT = Path(__file__).parents[1]
SUBJECTS = {"train": Train, "index": Index, "migrate": Migrate, "push": Push, "serve": Serve}
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=tuple(SUBJECTS), default="train")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    records.add_option(parser, "killed_WHAT")
    options = parser.parse_args()
    if options.record and options.record.stem == "killed_WHAT":
        options.record = options.record.with_stem(f"killed_{options.what}")
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        place = Path(place)
        (place / "temporary").mkdir()
        tempfile.tempdir = str(place / "temporary")
        os.environ |= {"OMP_NUM_THREADS": "1", "TMPDIR": tempfile.tempdir, "PYTHONPATH": str(ROOT)}
        kill(options, place)


def kill(options: argparse.Namespace, place: Path) -> None:
    log, rng = place / "log", random.Random(options.seed)
    subject = SUBJECTS[options.what](place, log)
    kills, rounds = 0, 0
    while kills < options.kills:
        subject.begin()
        while (code := start_and_kill(subject, rng, SIGNALS[kills % len(SIGNALS)], log)) != 0:
            kills += 1
            print(f"kill {kills}: round {rounds}, {SIGNALS[(kills - 1) % len(SIGNALS)].name}, exit {code}", flush=True)
            if kills == options.kills:
                subject.finish(log)
                break
        rounds += 1
        if wrong := subject.after_end():
            fail(f"round {rounds} ended wrong: {wrong}", log)
    if left := [path.name for path in (place / "temporary").iterdir()]:
        print(f"left in the folder of temporary files: {left}")
    ended, facts = subject.told()
    print(f"{options.what}: {kills} kills in {rounds} rounds, {ended}")
    row = [options.what, kills, rounds, ended]
    records.write(
        options.record,
        title="Runs killed at random moments",
        seed=options.seed,
        note=f"Signals in turn: {', '.join(number.name for number in SIGNALS)}.",
        values={options.what: records.table(["command", "kills", "rounds", "ended"], [row])},
        raw=facts | {"left": left},
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
    if process.exitcode and (wrong := subject.after_kill(process.exitcode)):
        fail(f"after {number.name}: {wrong}", log)
    return process.exitcode


if __name__ == "__main__":
    main()
