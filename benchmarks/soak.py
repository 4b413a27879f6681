"""Memory, file descriptors and threads of an hour's work on real sounds, which must stay flat.

    python benchmarks/soak.py embed FOLDER [--model WAVLINK] [--minutes 60]
    python benchmarks/soak.py train FOLDER [--minutes 60]
    python benchmarks/soak.py serve [--model WAVLINK] [--minutes 15]

The work is a process of its own, on one thread, watched from outside. `embed` embeds clips drawn at random by
`embed_files`, makes an index of others and searches it, over and over. `train` is `train.py quickstart` on FOLDER,
with a worker, validations, plots and checkpoints. Towers are quickstart's, so that an hour on one thread is much
work. `serve` is `wavlink serve` with an index, of wavlink-tiny by default; eight clients send it requests of all
kinds, also bad ones (soak_requests.py), and any other answer than the expected status ends the run. Its memory is that
of requests: MiB per 1000 of them. The first requests fill oneDNN's cache and the heap: they are the warm-up.

Exits with 1 if resident memory grows by more than `--bound` MiB an hour (or 1000 requests) for sure, that is if the
lower end of the slope's 95 % interval is above it, or if the least of descriptors or threads is higher in the last
twelfth of the time than in all before.
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
import soak_requests
from scipy import stats
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
ALONE = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
EVERY = 3  # seconds between samples
BLOCKS = 12  # neighbouring samples are alike; the means of blocks are nearly independent
NAMES = ("seconds", "MiB", "MiB with workers", "descriptors", "threads")
UNITS = {"embed": ("sounds", 3600, "an hour"), "train": ("steps", 3600, "an hour")}  # that are counted; of the slope
UNITS["serve"] = "requests", 1000, "per 1000 requests"
DEFAULTS = {"minutes": (60, 15), "warm_up": (10, 2), "bound": (20, 0.5)}  # the last of `serve`


def embed_forever(model: str, sounds: Path, workplace: Path, seed: int) -> None:
    from wavlink.embedder import Embedder
    from wavlink.kept_memory import limit_kept_memory
    from wavlink.search.build import index_sounds
    from wavlink.search.index import Index

    limit_kept_memory(embedding=True)  # as the commands do
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
    if options.work == "serve":
        words = soak_requests.serve_command(options.model or "", workplace)
    elif options.work == "embed":
        words = [__file__, "forever", options.sounds, "--into", workplace]
        words += ["--model", options.model] if options.model else []
    else:
        words = [ROOT / "train.py", "quickstart", "--data", options.sounds, "--output_dir", workplace]
        words += ["--max_steps", 1_000_000, "--batch_size", 16, "--max_seconds", 4, "--num_workers", 1]
        words += ["--mixed_precision", "no"]
        words += ["--train_split", "validation", "--validation_split", "test"]  # small ones: many epochs
    seed = [] if options.work == "serve" else ["--seed", options.seed]
    return [str(word) for word in [sys.executable, *words, *seed]]


def sample(process: psutil.Process, began: float) -> tuple[float, ...]:
    own = process.memory_info().rss / 2**20
    workers = [child.memory_info().rss / 2**20 for child in process.children(recursive=True)]
    return time.monotonic() - began, own, own + sum(workers), process.num_fds(), process.num_threads()


def watch(process: psutil.Process, minutes: float, every: float, traffic: soak_requests.Traffic | None) -> np.ndarray:
    """`[samples, NAMES]` of a process, and its requests if it has any, until the time is over or it has ended."""
    began, samples = time.monotonic(), []
    bar = tqdm(total=round(60 * minutes), unit="s", mininterval=60)
    while (passed := time.monotonic() - began) < 60 * minutes and process.status() != psutil.STATUS_ZOMBIE:
        if traffic and traffic.wrong:
            break
        try:
            samples.append(sample(process, began) + ((traffic.count,) if traffic else ()))
        except psutil.NoSuchProcess:  # a worker, or the process itself, has just ended
            pass
        bar.update(round(passed) - bar.n)
        time.sleep(every)
    bar.close()
    return np.array(samples)


def slope(work: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Of a line through the means of BLOCKS blocks: of values over work, and half its 95 % interval."""
    means = [[part.mean() for part in np.array_split(column, BLOCKS)] for column in (work, values)]
    line = stats.linregress(*means)
    return line.slope, stats.t.ppf(0.975, BLOCKS - 2) * line.stderr


def report(samples: np.ndarray, bound: float, size: float = 3600, unit: str = "an hour") -> tuple[bool, list[list]]:
    """Prints the figures; whether all is flat, and the rows of a record.

    Args:
        size, unit: of the work that slopes are of: `samples`' seconds, or what it has after NAMES.
    """
    work = samples[:, len(NAMES) if samples.shape[1] > len(NAMES) else 0] / size
    flat, rows = True, []
    for place, name in enumerate(NAMES[1:], start=1):
        values = samples[:, place]
        line = f"{name}: {values.min():.0f} to {values.max():.0f}"
        rows.append([name, records.number(values.min(), 0), records.number(values.max(), 0), None])
        if "MiB" in name:
            grows, half = slope(work, values)
            line += f", {grows:+.3g} ± {half:.2g} MiB {unit}"
            flat &= grows - half < bound
            interval = [grows - half, grows + half]
            digits = 1 if unit == "an hour" else 3
            rows[-1][-1] = {"value": grows, "interval": interval, "digits": digits, "signed": True}
        else:
            least = [part.min() for part in np.array_split(values, BLOCKS)]
            flat &= least[-1] <= max(least[:-1])
        print(line)
    return bool(flat), rows


def soak(options: argparse.Namespace, workplace: Path) -> None:
    line, traffic = command(options, workplace), None
    every = min(EVERY, options.minutes)  # a sample each 3 seconds, of a shorter run 20 a minute of it
    with open(workplace / "log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            line, cwd=ROOT, env=ALONE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            if options.work == "serve":
                traffic = soak_requests.Traffic(soak_requests.port_of(workplace / "log"), options.seed)
            samples = watch(psutil.Process(process.pid), options.minutes, every, traffic)
            alive = process.poll() is None
            if traffic:
                traffic.stop()
            process.terminate()
            code = process.wait(60)
        finally:
            with suppress(ProcessLookupError):  # it and its workers, where they have not ended
                os.killpg(process.pid, signal.SIGKILL)
            if traffic:
                traffic.stop()
    if not alive:
        sys.exit(f"the work ended by itself with {code}:\n{(workplace / 'log').read_text(encoding='utf-8')[-3000:]}")
    if traffic and traffic.wrong:
        sys.exit(f"another answer than expected: {traffic.wrong}")
    done, text = {"embed": ("done", b"sound\n"), "train": ("metrics.jsonl", b'"loss"')}.get(options.work, ("", b""))
    write_report(options, samples, traffic.count if traffic else (workplace / done).read_bytes().count(text))


def write_report(options: argparse.Namespace, samples: np.ndarray, count: int) -> None:
    """Print the figures and write their record; exit with 1 unless all is flat."""
    what, size, unit = UNITS[options.work]
    warm = samples[samples[:, 0] > 60 * options.warm_up]
    print(f"{count} {what} in {samples[-1, 0] / 60:.3g} minutes; after")
    print(f"{options.warm_up:g} minutes of warm-up, {len(warm)} samples:")
    flat, rows = report(warm, options.bound, size, unit)
    records.write(
        options.record,
        title="Memory, file descriptors and threads over time",
        seed=options.seed,
        note=f"{count:,} {what} in {samples[-1, 0] / 60:.3g} minutes, the first {options.warm_up:g} left out.",
        values={options.work: records.table(["", "least", "most", unit], rows)},
    )
    if not flat:
        sys.exit(f"not flat (bound: {options.bound:g} MiB {unit})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("work", choices=("embed", "train", "serve", "forever"), help="the last one is what embed starts")
    text = "an audiofolder with train, validation and test, of embed and train"
    add("sounds", nargs="?", type=records.folder, help=text)
    add("--model", help="a WavLink to embed with (default: a new one; of serve wavlink-tiny)")
    add("--minutes", type=float, help="default: 60, of serve 15")
    add("--warm_up", type=float, help="minutes that do not count (default: 10, of serve 2)")
    add("--bound", type=float, help="MiB an hour (default: 20), of serve per 1000 requests (0.5)")
    add("--seed", type=int, default=0)
    add("--into", type=Path, help=argparse.SUPPRESS)
    records.add_option(parser, "soak")
    options = parser.parse_args()
    if options.work != "serve" and options.sounds is None:
        parser.error(f"{options.work} needs a folder of sounds")
    if options.sounds is not None:
        options.sounds = options.sounds.absolute()  # the work has another working directory
    for name, defaults in DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, defaults[options.work == "serve"])
    if options.work == "forever":
        return embed_forever(options.model, options.sounds, options.into, options.seed)
    with tempfile.TemporaryDirectory() as workplace:
        soak(options, Path(workplace))


if __name__ == "__main__":
    main()
