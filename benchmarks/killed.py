"""Killed is not lost: one run killed many times, by SIGTERM and SIGKILL in turn, against one that never was.

    python benchmarks/killed.py [--kills 20] [--seed 0]

Each time the same command is started again and killed after a random number of further steps and a random moment more,
so that kills fall into steps, validations and checkpoints alike. Exits with 1 unless weights (`best/` and `last/`) and
`metrics.jsonl` are equal to the last bit. About 20 s a kill on 2 cores.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import soundfile

from processing.audio import load_column
from processing.synthetic import synthetic_dataset

ROOT = Path(__file__).parents[1]
COMPARED = ("last/model.safetensors", "best/model.safetensors", "metrics.jsonl")
SIGNALS = (signal.SIGTERM, signal.SIGKILL)


def write_sounds(folder: Path) -> None:
    """An audiofolder of a clip or two a kind: quick to load, so that most of the time is steps."""
    for split, clips in (("train", 2), ("validation", 1)):
        (folder / split).mkdir(parents=True)
        lines = ["file_name,caption"]
        for number, row in enumerate(synthetic_dataset(split, clips)):
            soundfile.write(folder / split / f"{number}.wav", load_column(row["audio"], 16000), 16000)
            lines.append(f'{number}.wav,"{row["caption"]}"')
        (folder / split / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")


def command(data: Path, output: Path, steps: int) -> list[str]:
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
    return [sys.executable, "train.py", "quickstart", *(f"--{name}={value}" for name, value in options.items())]


def steps_of(output: Path) -> int:
    path = output / "metrics.jsonl"
    return path.read_bytes().count(b'"loss"') if path.exists() else 0


def start(arguments: list[str], log) -> subprocess.Popen:
    return subprocess.Popen(arguments, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def kill_later(process: subprocess.Popen, output: Path, seen: int, further: int, delay: float, number: int) -> bool:
    """Whether the run was killed before it ended by itself. The count starts anew where the run resumes."""
    while process.poll() is None and steps_of(output) < seen + further:
        time.sleep(0.01)
    time.sleep(delay)
    if process.poll() is not None:
        return False
    process.send_signal(number)
    process.wait()
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        write_sounds(place / "sounds")
        steps = 8 * options.kills + 8
        whole, killed = place / "whole", place / "killed"
        with open(place / "log", "w", encoding="utf-8") as log:
            start(command(place / "sounds", whole, steps), log).wait()
            codes = []
            while len(codes) < options.kills:
                process = start(command(place / "sounds", killed, steps), log)
                number = SIGNALS[len(codes) % len(SIGNALS)]
                seen = max((int(path.name[-8:]) for path in (killed / "checkpoints").glob("step-*")), default=0)
                if not kill_later(process, killed, seen, chance.randint(1, 10), chance.random(), number):
                    break
                codes.append(process.returncode)
                print(f"kill {len(codes)}: {number.name} after step {steps_of(killed)}, exit {codes[-1]}", flush=True)
            start(command(place / "sounds", killed, steps), log).wait()
        for name in COMPARED:
            if not (killed / name).exists() or (whole / name).read_bytes() != (killed / name).read_bytes():
                sys.exit(f"{name} differs after {len(codes)} kills\n{(place / 'log').read_text()[-2000:]}")
    print(f"{len(codes)} kills over {steps} steps: {', '.join(COMPARED)} are equal to the last bit")


if __name__ == "__main__":
    main()
