"""A training run for killed.py, and the sounds and models that its other subjects begin with."""

import random
import shutil
import time
from pathlib import Path

import numpy as np
import soundfile
from forked import command, finish, finish_and_preload

ROOT = Path(__file__).parents[1]


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


def train_words(data: Path, output: Path, steps: int, seed: int = 0) -> list[str]:
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
        "seed": seed,
    }
    return [str(ROOT / "train.py"), "quickstart", *(f"--{name}={value}" for name, value in options.items())]


def hidden(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*unfinished*")]


class Subject:
    """What all subjects have in common."""

    commands = (command,)
    words: list[str]

    def after_kill(self, code: int) -> str:
        """What is wrong now, `""` if nothing is."""
        return ""

    def finish(self, log: Path) -> None:
        """Let the command end by itself after the last kill."""
        finish(command, self.words, log)

    def told(self) -> tuple[str, dict]:
        """How all rounds ended, and further facts for the record."""
        return "as if never killed, each time", {}


class Train(Subject):
    """40 steps with a checkpoint every 5th, killed so many steps after it has begun, and a moment more."""

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

    def after_end(self) -> str:
        differ = [name for name in self.compared if _bytes(self.whole / name) != _bytes(self.killed / name)]
        left = hidden(self.killed)
        return f"differ: {differ}; left: {left}" if differ or left else ""


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
