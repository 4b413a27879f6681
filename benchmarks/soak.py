"""Memory, file descriptors and threads of an hour's work on real sounds, which must stay flat.

    python benchmarks/soak.py embed FOLDER [--model WAVLINK] [--minutes 60]
    python benchmarks/soak.py train FOLDER [--minutes 60]

The work is a process of its own, on one thread, watched from outside. `embed` embeds clips drawn at random by
`embed_files`, makes an index of others and searches it, over and over. `train` is `train.py quickstart` on FOLDER,
with a worker, validations, plots and checkpoints. Towers are quickstart's, so that an hour on one thread is much
work. Exits with 1 if resident memory grows by more than `--bound` MiB an hour for sure, that is if the lower end of
the slope's 95 % interval is above it, or if the least of descriptors or threads is higher in the last twelfth of the
time than in all before.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import records
from scipy import stats
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
ALONE = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
EVERY = 3  # seconds between samples
BLOCKS = 12  # neighbouring samples are alike; the means of blocks are nearly independent
NAMES = ("seconds", "MiB", "MiB with workers", "descriptors", "threads")


def embed_forever(model: str, sounds: Path, workplace: Path, seed: int) -> None:
    from wavlink.embedder import Embedder
    from wavlink.search.build import index_sounds
    from wavlink.search.index import Index

    embedder, rng = Embedder(model) if model else new_embedder(), random.Random(seed)
    files = sorted(str(path) for path in sounds.glob("*/*.ogg"))
    while True:
        drawn = rng.sample(files, 200)
        embedded = sum(1 for _ in embedder.embed_files(drawn[:100]))
        report = index_sounds(drawn[100:], workplace / "index", embedder, root=str(sounds), progress=False)
        Index.open(workplace / "index", embedder).query("a dog barks", sound=drawn[0])
        shutil.rmtree(workplace / "index")
        with open(workplace / "done", "a", encoding="utf-8") as file:
            file.write("sound\n" * (embedded + report.sounds))


def new_embedder():
    from wavlink.embedder import Embedder
    from wavlink.training.factory import build
    from wavlink.training.recipes import get_recipe

    return Embedder(*build(get_recipe("quickstart"), lambda: ["a dog barks", "rain falls"]))


def command(options: argparse.Namespace, workplace: Path) -> list[str]:
    if options.work == "embed":
        words = [__file__, "forever", options.sounds, "--into", workplace]
        words += ["--model", options.model] if options.model else []
    else:
        words = [ROOT / "train.py", "quickstart", "--data", options.sounds, "--output_dir", workplace]
        words += ["--max_steps", 1_000_000, "--batch_size", 16, "--max_seconds", 4, "--num_workers", 1]
        words += ["--mixed_precision", "no"]
        words += ["--train_split", "validation", "--validation_split", "test"]  # small ones: many epochs
    return [str(word) for word in [sys.executable, *words, "--seed", options.seed]]


def sample(process: psutil.Process, began: float) -> tuple[float, ...]:
    own = process.memory_info().rss / 2**20
    workers = [child.memory_info().rss / 2**20 for child in process.children(recursive=True)]
    return time.monotonic() - began, own, own + sum(workers), process.num_fds(), process.num_threads()


def watch(process: psutil.Process, minutes: float) -> np.ndarray:
    """`[samples, NAMES]` of a process until the time is over or it has ended."""
    began, samples = time.monotonic(), []
    bar = tqdm(total=round(60 * minutes), unit="s", mininterval=60)
    while (passed := time.monotonic() - began) < 60 * minutes and process.status() != psutil.STATUS_ZOMBIE:
        try:
            samples.append(sample(process, began))
        except psutil.NoSuchProcess:  # a worker, or the process itself, has just ended
            pass
        bar.update(round(passed) - bar.n)
        time.sleep(EVERY)
    bar.close()
    return np.array(samples)


def slope(hours: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Of a line through the means of BLOCKS blocks: units an hour, and half its 95 % interval."""
    means = [[part.mean() for part in np.array_split(column, BLOCKS)] for column in (hours, values)]
    line = stats.linregress(*means)
    return line.slope, stats.t.ppf(0.975, BLOCKS - 2) * line.stderr


def report(samples: np.ndarray, bound: float) -> tuple[bool, list[list]]:
    """Prints the figures; whether all is flat, and the rows of a record."""
    flat, rows = True, []
    for place, name in enumerate(NAMES[1:], start=1):
        values = samples[:, place]
        line = f"{name}: {values.min():.0f} to {values.max():.0f}"
        rows.append([name, records.number(values.min(), 0), records.number(values.max(), 0), None])
        if "MiB" in name:
            grows, half = slope(samples[:, 0] / 3600, values)
            line += f", {grows:+.1f} ± {half:.1f} MiB an hour"
            flat &= grows - half < bound
            interval = [grows - half, grows + half]
            rows[-1][-1] = {"value": grows, "interval": interval, "digits": 1, "signed": True}
        else:
            least = [part.min() for part in np.array_split(values, BLOCKS)]
            flat &= least[-1] <= max(least[:-1])
        print(line)
    return bool(flat), rows


def soak(options: argparse.Namespace, workplace: Path) -> None:
    line = command(options, workplace)
    with open(workplace / "log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            line, cwd=ROOT, env=ALONE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            samples = watch(psutil.Process(process.pid), options.minutes)
            alive = process.poll() is None
            process.terminate()
            code = process.wait(60)
        finally:
            with suppress(ProcessLookupError):  # it and its workers, where they have not ended
                os.killpg(process.pid, signal.SIGKILL)
    if not alive:
        sys.exit(f"the work ended by itself with {code}:\n{(workplace / 'log').read_text(encoding='utf-8')[-3000:]}")
    done, line = {"embed": ("done", b"sound\n"), "train": ("metrics.jsonl", b'"loss"')}[options.work]
    count = (workplace / done).read_bytes().count(line)
    warm = samples[samples[:, 0] > 60 * options.warm_up]
    print(f"{count} {'sounds' if options.work == 'embed' else 'steps'} in {samples[-1, 0] / 60:.0f} minutes; after")
    print(f"{options.warm_up:g} minutes of warm-up, {len(warm)} samples:")
    flat, rows = report(warm, options.bound)
    records.write(
        options.record,
        title="Memory, file descriptors and threads over time",
        seed=options.seed,
        note=f"{count:,} {'sounds' if options.work == 'embed' else 'steps'} in {samples[-1, 0] / 60:.0f} minutes, the "
        f"first {options.warm_up:g} left out.",
        values={options.work: records.table(["", "least", "most", "an hour"], rows)},
    )
    if not flat:
        sys.exit(f"not flat (bound: {options.bound:g} MiB an hour)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("work", choices=("embed", "train", "forever"), help="the last one is what embed starts")
    add("sounds", nargs="?", type=Path, help="an audiofolder with train, validation and test")
    add("--model", help="a WavLink to embed with (default: a new one)")
    add("--minutes", type=float, default=60)
    add("--warm_up", type=float, default=10, help="minutes that do not count (%(default)s)")
    add("--bound", type=float, default=20, help="MiB an hour (%(default)s)")
    add("--seed", type=int, default=0)
    add("--into", type=Path, help=argparse.SUPPRESS)
    records.add_option(parser, "soak")
    options = parser.parse_args()
    if options.work == "forever":
        return embed_forever(options.model, options.sounds, options.into, options.seed)
    with tempfile.TemporaryDirectory() as workplace:
        soak(options, Path(workplace))


if __name__ == "__main__":
    main()
