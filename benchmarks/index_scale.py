"""An index of millions of windows on one machine: size, time to build, to open, to answer and to add, and recall.

    python benchmarks/index_scale.py [--windows 1000000 3000000 10000000] [--queries 200] [--record]

The vectors are generated: 2000 kinds of sounds, files around them, twelve windows around each file, in a space whose
variance falls with the dimension as that of trained models does. Texts lie apart from sounds: they share a direction
that no sound has, and their nearest sounds have a cosine of about 0.5. Each step is a process of its own. A million
windows take about a minute, ten million about ten.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import records

DIM, WINDOWS_A_FILE, FILES_AT_ONCE, K = 48, 12, 20_000, 10
KINDS, FILE_SPREAD, WINDOW_SPREAD, TEXT_SPREAD, GAP = 2000, 0.7, 0.35, 0.8, 4.0
SCALE = np.arange(1, DIM + 1, dtype=np.float32) ** -0.5
TEXTS = np.full(DIM, DIM**-0.5, np.float32)  # the direction that texts alone have
ADDED, BILLION = 1000, 10**9
PROBES = (10, 20, 40, 80, 160, 320)


def normal(random: np.random.Generator, count: int) -> np.ndarray:
    return random.standard_normal((count, DIM), dtype=np.float32) * SCALE


def of_sounds(vectors: np.ndarray) -> np.ndarray:
    """Vectors `[n, DIM]` without the direction of texts."""
    return vectors - (vectors @ TEXTS)[:, None] * TEXTS


def files_of(random: np.random.Generator, count: int) -> np.ndarray:
    """The centres `[count, DIM]` of files, around those of kinds, which all draws share."""
    kinds = normal(np.random.default_rng(0), KINDS)
    return kinds[random.integers(0, KINDS, count)] + FILE_SPREAD * normal(random, count)


def window_batches(count: int, seed: int) -> Iterator[np.ndarray]:
    """Vectors `[n, DIM]` of windows, `WINDOWS_A_FILE` of each file."""
    random, files = np.random.default_rng(seed), -(-count // WINDOWS_A_FILE)
    for start in range(0, files, FILES_AT_ONCE):
        centres = files_of(random, min(FILES_AT_ONCE, files - start))
        windows = np.repeat(centres, WINDOWS_A_FILE, 0)
        yield of_sounds(windows + WINDOW_SPREAD * normal(random, len(windows)))


def queries(kind: str, count: int, seed: int) -> np.ndarray:
    """Vectors `[count, DIM]`, L2-normalised, of windows or of texts of other files than the index's."""
    random = np.random.default_rng(seed)
    vectors = files_of(random, count)
    if kind == "sound":
        vectors = of_sounds(vectors + WINDOW_SPREAD * normal(random, count))
    else:
        vectors = of_sounds(vectors + TEXT_SPREAD * normal(random, count)) + GAP * TEXTS
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rows(manifest, vectors: np.ndarray, first: int):
    """Rows of an index's table, with names, times, sizes and versions as files have them."""
    import pyarrow

    from wavlink.search.rows import fixed_size_list
    from wavlink.search.scoring import unit

    files = len(vectors) // WINDOWS_A_FILE
    random = np.random.default_rng(first)
    names = [f"recordings/site-{(first + n) % 97:03d}/2024-06/recording {first + n:08d}.flac" for n in range(files)]
    start = np.tile(np.arange(WINDOWS_A_FILE) * 5.0, files)
    of_files = {
        "path": np.array(names, object),
        "duration": random.uniform(60, 65, files),
        "size": random.integers(10**5, 10**7, files),
        "version": random.integers(16 * 10**17, 17 * 10**17, files),
        "windows": np.full(files, WINDOWS_A_FILE, np.int32),
        "error": np.full(files, "", object),
        "revision": np.full(files, manifest.revision, object),
    }
    columns = {name: np.repeat(values, WINDOWS_A_FILE) for name, values in of_files.items()}
    columns |= {"window": np.tile(np.arange(WINDOWS_A_FILE, dtype=np.int32), files), "start": start, "end": start + 10}
    columns["embedding"] = fixed_size_list(unit(vectors), manifest)
    arrays = [pyarrow.array(columns[field.name], field.type) for field in manifest.schema]
    return pyarrow.Table.from_arrays(arrays, schema=manifest.schema)


def build(index: str, windows: int) -> dict:
    """Write a table, then make its vector index."""
    from wavlink.search import vector_index
    from wavlink.search.manifest import Manifest
    from wavlink.search.table import Table

    manifest = Manifest("generated", "sha256:0", DIM, [DIM], DIM, "fp16", 10.0, 5.0, 16000, "/generated")
    began, first, written = time.perf_counter(), 0, 0
    with Table.create(index, manifest) as table:
        for vectors in window_batches(windows, seed=2):
            table.append(rows(manifest, vectors, first))
            first, written = first + len(vectors) // WINDOWS_A_FILE, written + len(vectors)
        table.compact()
        writing, began = time.perf_counter() - began, time.perf_counter()
        vector_index.update(table, lambda: queries("text", 256, seed=3))
        indexing = time.perf_counter() - began
    manifest = Table.open(index).manifest
    facts = {"windows": written, "write_seconds": writing, "index_seconds": indexing, "probes": manifest.probes}
    size = {"bytes_a_window": table.bytes() / written, "build_rss_mb": peak_mb()}
    return facts | size | {"measured_recall": manifest.recall}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def first_answer(index: str, began: float) -> dict:
    """Open an index in a new process, and answer one query."""
    from wavlink.search.index import Index

    vector = queries("text", 1, seed=4)[0]
    hits = Index.open(index).nearest(vector, K)
    return {"first_answer_seconds": time.time() - began, "first_answer_rss_mb": peak_mb(), "hits": len(hits)}


def answers(index: str, count: int) -> dict:
    """Time queries one at a time, and compare them with a scan of all windows."""
    from wavlink.search import vector_index
    from wavlink.search.index import Index
    from wavlink.search.scoring import Best, unit, vectors_of

    opened, found = Index.open(index), {}
    asked = {kind: queries(kind, count, seed=5) for kind in ("sound", "text")}
    for kind, vectors in asked.items():
        for windows in (True, False):
            times = [_timed(opened, vector, windows) for vector in vectors]
            found[f"{kind}_{'windows' if windows else 'files'}_ms"] = times
    began = time.perf_counter()
    opened.nearest(asked["text"][0], K, windows=True, exact=True)
    found["exact_seconds"] = time.perf_counter() - began
    best = {kind: Best(count, K) for kind in asked}
    for batch in opened.table.scan(["embedding"]):
        stored = unit(vectors_of(batch["embedding"])).T
        for kind, vectors in asked.items():
            best[kind].add(vectors @ stored)
    curves = []
    for kind, vectors in asked.items():
        tenth = best[kind].scores[:, -1]
        found[f"{kind}_nearest_cosine"] = float(best[kind].scores[:, 0].mean())
        found[f"{kind}_recall"] = float(
            np.mean([_found(opened.nearest(v, K, True), least) for v, least in zip(vectors, tenth, strict=True)])
        )
        for probes in PROBES:
            times, recall = [], []
            for vector, least in zip(vectors, tenth, strict=True):
                began = time.perf_counter()
                made = vector_index.candidates(opened.table, vector, K, probes, ["embedding"])
                times.append(1000 * (time.perf_counter() - began))
                scores = unit(vectors_of(made["embedding"])) @ vector
                recall.append(float((scores >= least - 1e-5).mean()))
            curves.append({"kind": kind, "probes": probes, "recall": float(np.mean(recall)), "ms": _quantiles(times)})
    return found | {"curves": curves}


def _timed(index, vector: np.ndarray, windows: bool) -> float:
    began = time.perf_counter()
    index.nearest(vector, K, windows)
    return 1000 * (time.perf_counter() - began)


def _shown(value: object) -> object:
    return _quantiles(value) if isinstance(value, list) and isinstance(value[0], float) else value


def _found(hits: list, least: float) -> float:
    return float(np.mean([hit.score >= least - 1e-5 for hit in hits]))


def _quantiles(values: list[float]) -> dict:
    return {"p50": float(np.median(values)), "p95": float(np.quantile(values, 0.95))}


def add(index: str) -> dict:
    """Add windows of new files to the table, as `wavlink index` does."""
    from wavlink.search import vector_index
    from wavlink.search.table import Table

    vectors = next(window_batches(ADDED, seed=6))
    began = time.perf_counter()
    with Table.open(index).writing() as table:
        known = len(table.files())
        table.append(rows(table.manifest, vectors, known))
        table.compact()
        vector_index.update(table)
    return {"add_seconds": time.perf_counter() - began, "added": len(vectors), "files": known}


def measured(windows: int, count: int) -> dict:
    """Run each step in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for step in ("build", "first_answer", "first_answer", "answers", "add"):
            words = [sys.executable, __file__, "--step", step, "--index", f"{folder}/index", "--queries", str(count)]
            began = time.time()
            done = subprocess.run(
                [*words, "--windows", str(windows), "--began", repr(began)], stdout=subprocess.PIPE, check=True
            )
            found |= json.loads(done.stdout)
            print(step, {name: _shown(value) for name, value in json.loads(done.stdout).items()}, flush=True)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, nargs="+", default=[1_000_000, 3_000_000, 10_000_000])
    parser.add_argument("--queries", type=int, default=200, help="of each kind")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--index", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    parser.add_argument(
        "--record", nargs="?", const=Path(__file__).with_name("results") / "index_scale.json", type=Path
    )
    options = parser.parse_args()
    steps = {
        "build": lambda: build(options.index, options.windows[0]),
        "first_answer": lambda: first_answer(options.index, options.began),
        "answers": lambda: answers(options.index, options.queries),
        "add": lambda: add(options.index),
    }
    if options.step:
        print(json.dumps(steps[options.step]()))
        return
    found = [measured(windows, options.queries) for windows in options.windows]
    if options.record:
        write_record(options, found)


def write_record(options: argparse.Namespace, found: list[dict]) -> None:
    last = found[-1]
    tables = {
        "index_scale": building(found),
        "index_scale_queries": asking(found),
        "index_scale_probes": curves(found),
        "index_scale_billion": records.table([f"a billion windows, by {last['windows']:,}", ""], billion(last)),
    }
    records.write(
        options.record,
        title="An index of millions of windows",
        seed=0,
        note=f"Generated vectors of {DIM} dims in fp16, {options.queries} queries of each kind, one at a time, in one "
        "process. The first answer is from the start of a Python process to the first result, without a model.",
        packages=("pylance",),
        values=tables,
        raw=found,
    )


def building(found: list[dict]) -> dict:
    names = ["windows", "bytes a window", "write", "vector index", "peak memory", "first answer", "its memory"]
    rows = [
        [
            f"{row['windows']:,}",
            records.number(row["bytes_a_window"], 0),
            records.number(row["write_seconds"], 1, "s"),
            records.number(row["index_seconds"], 1, "s"),
            records.number(row["build_rss_mb"], 0, "MB"),
            records.number(row["first_answer_seconds"], 2, "s"),
            records.number(row["first_answer_rss_mb"], 0, "MB"),
            records.number(row["add_seconds"], 1, "s"),
        ]
        for row in found
    ]
    return records.table([*names, f"add {ADDED:,}"], rows)


def asking(found: list[dict]) -> dict:
    def milliseconds(values: list[float]) -> list[dict]:
        return [records.number(value, 1, "ms") for value in _quantiles(values).values()]

    rows = [
        [
            f"{row['windows']:,}",
            kind,
            records.number(row["probes"], 0),
            *milliseconds(row[f"{kind}_windows_ms"]),
            *milliseconds(row[f"{kind}_files_ms"]),
            records.number(row[f"{kind}_recall"], 3),
        ]
        for row in found
        for kind in ("sound", "text")
    ]
    return records.table(["windows", "query", "probes", "windows p50", "p95", "files p50", "p95 ", "recall@10"], rows)


def curves(found: list[dict]) -> dict:
    rows = [
        [
            f"{row['windows']:,}",
            curve["kind"],
            str(curve["probes"]),
            records.number(curve["recall"], 3),
            records.number(curve["ms"]["p50"], 1, "ms"),
        ]
        for row in found
        for curve in row["curves"]
    ]
    return records.table(["windows", "query", "probes", "recall@10", "p50"], rows)


def billion(last: dict) -> list[list]:
    """What a billion windows take, as indexes of the largest size that was measured."""
    shards = -(-BILLION // last["windows"])
    seconds = last["write_seconds"] + last["index_seconds"]
    size = last["windows"] * last["bytes_a_window"]
    slowest = max(_quantiles(last[f"{kind}_windows_ms"])["p50"] for kind in ("sound", "text"))
    return [
        ["indexes", records.number(shards, 0)],
        ["all on disk", records.number(BILLION * last["bytes_a_window"] / 1e9, 0, "GB")],
        ["made by one machine like this", records.number(shards * seconds / 3600, 1, "hours")],
        ["memory to make one", records.number(last["build_rss_mb"], 0, "MB")],
        ["processor time of a query", records.number(shards * slowest / 1000, 1, "s")],
        ["machines of 16 cores, an index to a core", records.number(-(-shards // 16), 0)],
        ["memory of each that holds all its files", records.number(16 * size / 1e9, 0, "GB")],
    ]


if __name__ == "__main__":
    main()
