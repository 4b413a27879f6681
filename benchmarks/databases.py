"""LanceDB beside FAISS in memory: processor time to take in rows and to answer, and hits among the ten nearest.

    python benchmarks/databases.py [--vectors 200000] [--dim 48] [--queries 100] [--record]

Vectors are random, in clusters as sounds are: 1000 directions, and noise of half their length around each. Times
are the processor's, of all threads of this process: other work on the machine changes them little. About 40 s.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import records
import tables

from wavlink.search.lance import VectorDatabase
from wavlink.search.quantization import FlatIndex, encode

AT_ONCE, K = 1 << 14, 10


def make_vectors(count: int, dim: int, seed: int, centres: np.ndarray) -> np.ndarray:
    """`[count, dim]` fp32."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(scale=0.5 / dim**0.5, size=(count, dim))
    return (centres[rng.integers(len(centres), size=count)] + noise).astype(np.float32)


def fill(database: VectorDatabase, vectors: np.ndarray) -> float:
    """Milliseconds a thousand rows, each part compared with what is there; row n is the file n."""
    began = time.process_time()
    for start in range(0, len(vectors), AT_ONCE):
        part = vectors[start : start + AT_ONCE]
        paths = [str(number) for number in range(start, start + len(part))]
        database.add(paths, np.zeros(len(part)), np.full(len(part), 10.0), part)
    return 1e6 * (time.process_time() - began) / len(vectors)


def row(
    name: str,
    spent: float | None,
    search: Callable[[np.ndarray], Sequence[int]],
    queries: np.ndarray,
    right: np.ndarray,
) -> list:
    """A row of the table, which is printed too; one query at a time."""
    search(queries[:1])
    times, hits = [], 0
    for query, rows in zip(queries, right, strict=True):
        began = time.process_time()
        results = search(query[None])
        times.append(1000 * (time.process_time() - began))
        hits += len({*results} & {*rows.tolist()})
    middle = {"value": np.median(times), "range": [min(times), max(times)], "digits": 1, "unit": "ms"}
    return [name, spent and records.number(spent, 1, "ms"), middle, records.number(hits / right.size, 3)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=48)
    parser.add_argument("--queries", type=int, default=100)
    records.add_option(parser, "databases")
    options = parser.parse_args()
    centres = np.random.default_rng(0).normal(scale=1 / options.dim**0.5, size=(1000, options.dim))
    vectors = make_vectors(options.vectors, options.dim, 1, centres)
    queries = make_vectors(options.queries, options.dim, 2, centres)
    began = time.process_time()
    flat = FlatIndex(options.dim, "fp32")
    flat.add(encode(vectors, options.dim, "fp32"))
    spent = 1e6 * (time.process_time() - began) / len(vectors)
    right = flat.search(queries, K)[1]
    rows = [row("FAISS, in memory", spent, lambda query: flat.search(query, K)[1][0], queries, right)]
    with tempfile.TemporaryDirectory() as folder:
        database = VectorDatabase(folder, "sounds", model="random", revision="0", dim=options.dim)

        def nearest(query: np.ndarray) -> list[int]:
            return [int(hit.path) for hit in database.search(query, K)[0]]

        rows.append(row("LanceDB, added", fill(database, vectors), nearest, queries, right))
        database.optimize(least=options.vectors + 1)
        rows.append(row("LanceDB, files merged", None, nearest, queries, right))
        began = time.process_time()
        database.optimize(least=1)
        spent = 1e6 * (time.process_time() - began) / options.vectors
        rows.append(row("LanceDB, indexed", spent, nearest, queries, right))
    found = records.table(["", "a thousand rows", "a query", f"recall@{K}"], rows)
    print(tables.markdown(found))
    records.write(
        options.record,
        title="Vector databases beside FAISS in memory",
        seed=0,
        note=f"{options.vectors:,} vectors of {options.dim} dims, {options.queries} queries one at a time. Processor "
        "time of all threads; of a query the median and the range.",
        packages=("faiss-cpu", "lancedb"),
        values={"databases": found},
    )


if __name__ == "__main__":
    main()
