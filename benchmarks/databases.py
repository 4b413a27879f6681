"""LanceDB beside FAISS in memory: rows a second taken in, milliseconds a query, hits among the ten nearest.

    python benchmarks/databases.py [--vectors 200000] [--dim 48] [--queries 100] [--milvus]

`--milvus` adds Milvus Lite, the embedded form of the other database that was tried (`pip install pymilvus
milvus-lite`).

Vectors are random, in clusters as sounds are: 1000 directions, and noise of half their length around each. Compare
ratios; the absolute numbers are those of this machine today. About 40 s on 2 cores.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import records

from wavlink.search.lance import VectorDatabase
from wavlink.search.quantization import FlatIndex, encode

AT_ONCE, K = 1 << 14, 10
MILVUS_AT_ONCE = 1 << 12  # more than some 64 MB a call its server refuses


def make_vectors(count: int, dim: int, seed: int, centres: np.ndarray) -> np.ndarray:
    """`[count, dim]` fp32."""
    chance = np.random.default_rng(seed)
    noise = chance.normal(scale=0.5 / dim**0.5, size=(count, dim))
    return (centres[chance.integers(len(centres), size=count)] + noise).astype(np.float32)


def fill(database: VectorDatabase, vectors: np.ndarray) -> float:
    """Rows a second, each part compared with what is there; row n is the file n."""
    began = time.perf_counter()
    for start in range(0, len(vectors), AT_ONCE):
        part = vectors[start : start + AT_ONCE]
        paths = [str(number) for number in range(start, start + len(part))]
        database.add(paths, np.zeros(len(part)), np.full(len(part), 10.0), part)
    return len(vectors) / (time.perf_counter() - began)


def milvus(folder: str, vectors: np.ndarray, queries: np.ndarray, right: np.ndarray) -> list:
    """The same of Milvus Lite: one vector a row, known by its number, compared with all."""
    from pymilvus import DataType, MilvusClient

    client = MilvusClient(f"{folder}/milvus.db")
    schema = client.create_schema(auto_id=False)
    schema.add_field("path", DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="COSINE")
    client.create_collection("sounds", schema=schema, index_params=index)
    began = time.perf_counter()
    for start in range(0, len(vectors), MILVUS_AT_ONCE):
        part = enumerate(vectors[start : start + MILVUS_AT_ONCE], start)
        client.upsert("sounds", [{"path": str(number), "vector": vector} for number, vector in part])
    rate = len(vectors) / (time.perf_counter() - began)

    def nearest(query: np.ndarray) -> list[int]:
        return [int(hit["path"]) for hit in client.search("sounds", data=query, limit=K)[0]]

    return row("Milvus Lite", rate, nearest, queries, right)


def row(
    name: str,
    rate: float | None,
    search: Callable[[np.ndarray], Sequence[int]],
    queries: np.ndarray,
    right: np.ndarray,
) -> list:
    """A row of the table, which is printed too; one query at a time."""
    search(queries[:1])
    times, hits = [], 0
    for query, rows in zip(queries, right, strict=True):
        began = time.perf_counter()
        found = search(query[None])
        times.append(1000 * (time.perf_counter() - began))
        hits += len({*found} & {*rows.tolist()})
    middle, slow = np.percentile(times, [50, 95])
    taken = "" if rate is None else f"{rate:.0f} rows/s"
    print(f"{name:24}{taken:>15}, median {middle:6.1f} ms, p95 {slow:6.1f} ms, recall@{K} {hits / right.size:.3f}")
    cells = [records.number(middle, 1, "ms"), records.number(slow, 1, "ms"), records.number(hits / right.size, 3)]
    return [name, rate and records.number(rate, 0), *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=48)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--milvus", action="store_true", help="Milvus Lite too")
    records.add_option(parser, "databases")
    options = parser.parse_args()
    centres = np.random.default_rng(0).normal(scale=1 / options.dim**0.5, size=(1000, options.dim))
    vectors = make_vectors(options.vectors, options.dim, 1, centres)
    queries = make_vectors(options.queries, options.dim, 2, centres)
    began = time.perf_counter()
    flat = FlatIndex(options.dim, "fp32")
    flat.add(encode(vectors, options.dim, "fp32"))
    rate = len(vectors) / (time.perf_counter() - began)
    right = flat.search(queries, K)[1]
    print(f"{options.vectors} vectors of {options.dim} dims, {options.queries} queries, one at a time")
    rows = [row("FAISS, in memory", rate, lambda query: flat.search(query, K)[1][0], queries, right)]
    with tempfile.TemporaryDirectory() as folder:
        if options.milvus:
            rows.append(milvus(folder, vectors, queries, right))
        database = VectorDatabase(folder, "sounds", model="random", revision="0", dim=options.dim)

        def nearest(query: np.ndarray) -> list[int]:
            return [int(hit.path) for hit in database.search(query, K)[0]]

        rows.append(row("LanceDB, added", fill(database, vectors), nearest, queries, right))
        database.optimize(least=options.vectors + 1)
        rows.append(row("LanceDB, files merged", None, nearest, queries, right))
        began = time.perf_counter()
        database.optimize(least=1)
        rate = options.vectors / (time.perf_counter() - began)
        rows.append(row("LanceDB, indexed", rate, nearest, queries, right))
    records.write(
        options.record,
        title="Vector databases beside FAISS in memory",
        seed=0,
        note=f"{options.vectors:,} vectors of {options.dim} dims, {options.queries} queries one at a time.",
        packages=("faiss-cpu", "lancedb"),
        values={"databases": records.table(["", "rows/s", "median", "p95", f"recall@{K}"], rows)},
    )


if __name__ == "__main__":
    main()
