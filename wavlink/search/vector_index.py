"""The vector index of a large table: IVF with 8-bit codes, which Lance makes, and how many partitions a query reads.

A query reads the partitions nearest to it, and the candidates found there are scored by their stored vectors. How many
partitions that takes is measured when the index is made: for stored vectors, and for texts, which lie apart from them.
"""

from collections.abc import Callable

import numpy as np
import pyarrow

from .scoring import Best, unit, vectors_of
from .table import Table
from .table_errors import explained

LEAST_ROWS = 1 << 17  # up to so many rows, scoring all of them takes some 20 ms
CANDIDATES = 4  # of each result, that are scored by their stored vectors
GOAL = 0.97  # of the ten nearest, the share that is to be found
_NAME = "embedding_idx"
_ROWS_A_PARTITION = 4096
_QUERIES = 128  # of each kind
_NEAREST = 10
_FIRST_PROBES = 8
_GROWN = 4  # times the rows that were there at training: train again
_UNINDEXED = 1 << 16  # rows that a query may score beside the index
_TEXT_COSINE = 0.5  # of a text with what it describes, where the model is not at hand


def is_ready(table: Table) -> bool:
    """True if the table has a vector index, and it is known how many partitions a query reads."""
    return table.manifest.probes > 0 and is_indexed(table)


def is_indexed(table: Table) -> bool:
    """True if the table has a vector index."""
    return any(index.name == _NAME for index in table.dataset.describe_indices())


def update(table: Table, texts: Callable[[], np.ndarray] | None = None) -> None:
    """Make the vector index of a table that has become large, or add new rows to it.

    Rows that were added since are found too, by scoring them all; once they are many they are added to the index,
    without training. It is trained again once the table has grown to four times its rows.

    Args:
        texts: returns vectors `[N, dims]` of texts to measure with (default: vectors at a text's usual distance).
    """
    rows = table.rows()
    with explained(table.index):
        if is_indexed(table):
            facts = table.dataset.stats.index_stats(_NAME)
            if rows >= _GROWN * _ROWS_A_PARTITION * facts["indices"][0]["num_partitions"]:
                _train(table, rows)
            elif facts["num_unindexed_rows"] > _UNINDEXED:
                table.dataset.optimize.optimize_indices(index_names=[_NAME])
            elif table.manifest.probes:
                return
        elif rows >= LEAST_ROWS:
            _train(table, rows)
        else:
            return
        table.dataset.checkout_latest()
        table.change(**_measured(table, texts() if texts else None))


def _train(table: Table, rows: int) -> None:
    table.change(probes=0, recall={})  # until they are measured; whoever is killed before leaves it so
    partitions = max(1, rows // _ROWS_A_PARTITION)
    options = {"metric": "cosine", "num_partitions": partitions, "name": _NAME, "replace": True}
    table.dataset.create_index("embedding", "IVF_SQ", **options)


def drop(table: Table) -> None:
    """Remove the vector index: queries score every window until `update` makes it again."""
    if is_indexed(table):
        with explained(table.index):
            table.dataset.drop_index(_NAME)
            table.dataset.checkout_latest()
            table.change(probes=0, recall={})


def candidates(
    table: Table, query: np.ndarray, count: int, probes: int, columns: list[str], where: str | None = None
) -> pyarrow.Table:
    """Return the columns, and the row ids as `_rowid`, of about the `count` nearest windows.

    Args:
        query: `[dim]` fp32.
        probes: partitions that are read; more where fewer than `count` rows are found.
        where: an SQL expression that all rows must meet.
    """
    nearest = {
        "column": "embedding",
        "q": query.astype(np.float16 if table.manifest.storage == "fp16" else np.float32),
        "k": count,
        "minimum_nprobes": probes,
        "refine_factor": CANDIDATES,
        "metric": "cosine",
    }
    with explained(table.index, table):
        options = {"filter": where, "prefilter": True, "disable_scoring_autoprojection": True, "with_row_id": True}
        return table.dataset.scanner(columns=columns, nearest=nearest, **options).to_table()


def _measured(table: Table, texts: np.ndarray | None) -> dict:
    """Return the fewest probes that reach the goal for every kind of query, and the recall with them."""
    dim, random = table.manifest.dim, np.random.default_rng(0)
    offsets = np.sort(random.choice(table.rows(), min(2 * _QUERIES, table.rows()), replace=False))
    stored = table.take(offsets.tolist(), ["embedding"])
    stored = unit(vectors_of(stored.filter(stored["embedding"].is_valid())["embedding"]))
    kinds = {"sound": _apart(stored[:_QUERIES], 0.9, random)}
    kinds["text"] = (
        unit(texts[:_QUERIES, :dim]) if texts is not None else _apart(stored[_QUERIES:], _TEXT_COSINE, random)
    )
    found = {name: _exact(table, queries) for name, queries in kinds.items()}
    partitions = table.dataset.stats.index_stats(_NAME)["indices"][0]["num_partitions"]
    probes = min(_FIRST_PROBES, partitions)
    while True:
        recall = {name: _recall(table, queries, found[name], probes) for name, queries in kinds.items()}
        if min(recall.values()) >= GOAL or probes >= partitions:
            return {"probes": probes, "recall": recall}
        probes = min(partitions, probes + max(probes // 4, 1))


def _apart(vectors: np.ndarray, cosine: float, random: np.random.Generator) -> np.ndarray:
    """Return vectors that have this cosine with the given ones `[N, dim]`, in random directions."""
    noise = random.standard_normal(vectors.shape).astype(np.float32)
    noise = unit(noise - (noise * vectors).sum(1, keepdims=True) * vectors)
    return cosine * vectors + (1 - cosine**2) ** 0.5 * noise


def _exact(table: Table, queries: np.ndarray) -> np.ndarray:
    """Return the scores `[Q]` of each query's tenth nearest window."""
    best = Best(len(queries), _NEAREST)
    for batch in table.scan(["embedding"], "error = ''"):
        best.add(queries @ unit(vectors_of(batch.column(0))).T)
    return best.scores[:, -1]


def _recall(table: Table, queries: np.ndarray, tenth: np.ndarray, probes: int) -> float:
    found = []
    for query, least in zip(queries, tenth, strict=True):
        rows = candidates(table, query, _NEAREST, probes, ["embedding"])
        found.append((unit(vectors_of(rows["embedding"])) @ query >= least - 1e-6).sum() / _NEAREST)
    return float(np.mean(found))
