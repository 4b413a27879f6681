"""What the captions and headers of a data set of the paper's size cost each process and worker, before and now.

    python benchmarks/captions_at_scale.py [--record]

Rows are generated in AudioSetCaps' form. The dict is what `captions_by_id` was until it kept an Arrow file: a Python
dict of lists of strings, made by each process, of which forked workers get copies page by page as they read; the
Arrow file is what it is. Of the headers, "opened" opens every file, "kept" is `seconds_of`. Linux only.
"""

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import huggingface_hub
import numpy as np
import records
import soundfile

from processing.datasets import caption_tables as captions
from processing.datasets.caption_tables import captions_by_id
from processing.datasets.youtube_ids import in_threads, seconds_in, seconds_of

LETTERS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
WORDS = "a dog barks while rain falls on the roof of an old house and someone plays soft piano music far away".split()
FORK = multiprocessing.get_context("fork")
LOOK_UPS = 100_000  # of each worker
PROCESSES = 2  # that read headers at once


def generate(folder: Path, rows: int) -> list[str]:
    """A csv of `rows` ids and captions of 30 words; returns the clips' keys."""
    rng = np.random.default_rng(0)
    ids = ["".join(letters) for letters in LETTERS[rng.integers(len(LETTERS), size=(rows, 11))]]
    draws = np.array(WORDS)[rng.integers(len(WORDS), size=(1000, 30))]
    texts = [" ".join(words) for words in draws]
    with open(folder / "captions.csv", "w") as file:
        file.write("id,caption\n")
        file.writelines(f"Y{name}_{row % 600},{texts[row % 1000]} {row}\n" for row, name in enumerate(ids))
    (folder / "empty.csv").write_text("id,caption\n")
    return [f"{name}_{row % 600}" for row, name in enumerate(ids)]


def as_dict(name: str, split: str) -> dict[str, list[str]]:
    """`captions_by_id` as it was."""
    table, _, _ = captions.read_captions(name, split)
    clips = captions.group(captions.clip_keys(table["id"])["key"], table["caption"], table["id"])
    names = captions.clip_keys(clips["name"]).to_pandas()
    texts = clips["captions"].to_pylist()
    lone = ~names["video"].duplicated(keep=False)
    second = (names["video"] + np.where(names["has_start"], "", "_"))[lone]
    keys = [*second.to_list(), *names["key"].to_list()]
    return dict(zip(keys, [*(texts[row] for row in second.index), *texts], strict=True))


def memory() -> dict[str, float]:
    """MB of this process: all that it maps, and what it shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kb = {name.rstrip(":"): int(value) for name, value, *_ in map(str.split, lines)}
    private = kb["Private_Clean"] + kb["Private_Dirty"]
    return {"rss_mb": round(kb["Rss"] / 1024), "private_mb": round(private / 1024)}


def look_up(found: Mapping, keys: list[str], seed: int, out) -> None:
    drawn = random.Random(seed).choices(keys, k=LOOK_UPS)
    began = time.perf_counter()
    missing = sum(found.get(key) is None for key in drawn)
    out.put({**memory(), "microseconds_a_look_up": round(1e6 * (time.perf_counter() - began) / LOOK_UPS, 1)})
    assert not missing


def of_captions(make: Callable, keys: list[str], workers: int, out) -> None:
    """One process of a run, and its workers."""
    began = time.perf_counter()
    found = make("audiosetcaps", "train")
    result = {"seconds": round(time.perf_counter() - began, 1), "process": memory()}
    queue = FORK.Queue()
    jobs = [FORK.Process(target=look_up, args=(found, keys, seed, queue)) for seed in range(workers)]
    for job in jobs:
        job.start()
    result["workers"] = [queue.get() for _ in jobs]
    for job in jobs:
        job.join()
    out.put(result)


def in_process(function: Callable, *arguments) -> dict:
    queue = FORK.Queue()
    job = FORK.Process(target=function, args=(*arguments, queue))
    job.start()
    result = queue.get()
    job.join()
    return result


def read_headers(read: Callable, paths: list[str], out) -> None:
    began = time.perf_counter()
    seconds = read(paths)
    assert not np.isnan(seconds).any()
    out.put(round(time.perf_counter() - began, 1))


def of_headers(read: Callable, paths: list[str]) -> list[float]:
    """Seconds until each of so many processes, begun together, knows the length of all files."""
    queue = FORK.Queue()
    jobs = [FORK.Process(target=read_headers, args=(read, paths, queue)) for _ in range(PROCESSES)]
    for job in jobs:
        job.start()
    found = [queue.get() for _ in jobs]
    for job in jobs:
        job.join()
    return found


def files(folder: Path, count: int) -> list[str]:
    """Links to 100 short files, which are opened by as many names."""
    (folder / "files").mkdir()
    for number in range(100):
        soundfile.write(folder / f"{number}.flac", np.zeros(1600 + number), 16000)
    paths = [folder / f"files/{number // 1000}/{number}.flac" for number in range(count)]
    for number, path in enumerate(paths):
        if number % 1000 == 0:
            path.parent.mkdir()
        os.symlink(folder / f"{number % 100}.flac", path)
    return list(map(str, paths))


def as_values(captions: dict, headers: dict, files: int) -> dict:
    """The tables of a record."""
    rows = [
        [
            way,
            records.number(found["seconds"], 1),
            found["process"]["rss_mb"],
            found["process"]["private_mb"],
            spread([worker["private_mb"] for worker in found["workers"]], 0),
            spread([worker["microseconds_a_look_up"] for worker in found["workers"]], 0),
        ]
        for way, found in captions.items()
    ]
    memory = ["resident MB", "of them private", "private MB of a worker"]
    return {
        "captions": records.table(["captions as", "seconds to load", *memory, "µs a look-up"], rows),
        "headers": records.table(
            [f"lengths of {files:,} files", "seconds"], [[way, spread(found, 1)] for way, found in headers.items()]
        ),
    }


def spread(values: list[float], digits: int) -> dict:
    return {"value": sum(values) / len(values), "range": [min(values), max(values)], "digits": digits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--files", type=int, default=200_000, help="whose headers are read (%(default)s)")
    records.add_option(parser, "captions_at_scale")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        huggingface_hub.constants.HF_HOME = str(folder / "home")
        keys = generate(folder, options.rows)
        captions.hf_hub_download = lambda _, file, **more: str(
            folder / ("captions.csv" if file == "Dataset/AudioSetCaps_caption.csv" else "empty.csv")
        )
        ways = {
            "a Python dict in each process (before)": as_dict,
            "Arrow file, first run": captions_by_id,
            "Arrow file, later runs": captions_by_id,
        }
        results = {way: in_process(of_captions, make, keys, options.workers) for way, make in ways.items()}
        for way, result in results.items():
            print(f"{way}: {json.dumps(result)}", flush=True)
        paths = files(folder, options.files)
        each = lambda paths: in_threads(seconds_in, paths)  # noqa: E731
        headers = {
            way: of_headers(read, paths)
            for way, read in {
                "opened by each process (before)": each,
                "kept, first run": seconds_of,
                "kept, later runs": seconds_of,
            }.items()
        }
        print(f"headers, seconds of each process: {json.dumps(headers)}")
    records.write(
        options.record,
        title="Memory and time of captions and file headers",
        seed=0,
        note="Ranges are over workers or processes.",
        values=as_values(results, headers, options.files),
        raw={"captions": results, "headers_seconds": headers},
    )


if __name__ == "__main__":
    main()
