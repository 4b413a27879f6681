"""The windows or files of a table that are nearest to a query."""

import numpy as np
import pyarrow

from wavlink.compat import take_rows

from .filters import checked, computed
from .scoring import truncated, unit, vectors_of
from .table import Table
from .table_errors import explained
from .vector_index import candidates, is_ready

_FILTERED_ROWS = 200_000  # up to so many rows that a filter leaves, all are scored
_WINDOWS_A_FILE = 4  # among the nearest windows, at first
_MOST_CANDIDATES = 4096  # more are found by scoring all rows
_FOUND = ("path", "window", "start", "end", "size", "version")  # and the duration, which may be unknown
_NOT_OURS = "this program writes none; put a copy of the index back, or index the sounds into another folder"
_WITH_VECTOR = "error = ''"


def nearest(
    table: Table,
    query: np.ndarray,
    k: int,
    *,
    dim: int = 0,
    windows: bool = False,
    where: str | None = None,
    exact: bool = False,
) -> tuple[pyarrow.Table, np.ndarray]:
    """Find the k nearest files, each with its best window, or the k nearest windows.

    Args:
        query: `[D]` of any norm but zero, with D of at least the dims that are compared.
        dim: compare the first so many dims (default: all that are searched, and the order is by `rescore` if the
            table has it).
        windows: rank every window.
        where: an SQL expression that all rows must meet, see `wavlink.search.filters`.
        exact: score every window, also where there is a vector index.

    Returns:
        the rows, with path, times, facts of the file and metadata, and their scores `[n]`: cosines in fp32, the
        largest first; of equal ones the earlier row.

    Raises:
        ValueError: a filter that cannot be used.
    """
    dim = dim or table.manifest.dim
    if where is None:
        return _nearest(table, query, k, dim, windows, None, exact)
    condition = checked(table, where)
    with computed(table, where):
        # Counting raises what a scan cannot: a value with a NUL in an error of a scan aborts Python (pylance 14.0.2).
        few = table.rows(condition) <= _FILTERED_ROWS
        return _nearest(table, query, k, dim, windows, condition, exact or few)


def scored_by(table: Table, dim: int) -> tuple[str, int]:
    """Return the column that scores of a search at `dim` are of, and its number of dims."""
    if table.manifest.rescore_dim and dim == table.manifest.dim:
        return "rescore", table.manifest.rescore_dim
    return "embedding", dim


def _nearest(
    table: Table, query: np.ndarray, k: int, dim: int, windows: bool, where: str | None, exact: bool
) -> tuple[pyarrow.Table, np.ndarray]:
    indexed = dim == table.manifest.dim and not exact and is_ready(table)
    if indexed and (found := _by_index(table, query, k, windows, where)):
        return found
    return _by_scan(table, query, k, dim, windows, where)


def _by_index(
    table: Table, query: np.ndarray, k: int, windows: bool, where: str | None
) -> tuple[pyarrow.Table, np.ndarray] | None:
    """Search by the vector index; None if it would take too many candidates to find enough files."""
    column, _ = scored_by(table, table.manifest.dim)
    unit_query = truncated(query[None], table.manifest.dim)[0]
    count = k if windows else _WINDOWS_A_FILE * k
    while count <= _MOST_CANDIDATES:
        # The other columns are read of the results alone: that takes less than half the time.
        rows = candidates(table, unit_query, count, table.manifest.probes, ["path", column], where)
        scores = _finite(table, _scores(rows[column], query))
        order = np.argsort(-scores, kind="stable")
        best = order if windows else _firsts(rows["path"].take(order), order)
        if len(best) >= k or len(rows) < count:
            return rows_by_id(table, rows["_rowid"].to_numpy()[best[:k]]), scores[best[:k]]
        count *= 4
    return None


def _by_scan(
    table: Table, query: np.ndarray, k: int, dim: int, windows: bool, where: str | None
) -> tuple[pyarrow.Table, np.ndarray]:
    """Score every row."""
    column, dim = scored_by(table, dim)
    condition = f"{where} AND {_WITH_VECTOR}" if where else _WITH_VECTOR
    scores, addresses = [np.empty(0, np.float32)], [np.empty(0, np.uint64)]
    unit_query = truncated(query[None], dim)[0]
    for batch in table.scan([column], condition, with_row_id=True):
        scores.append(unit(vectors_of(batch[column])[:, :dim]) @ unit_query)
        addresses.append(batch["_rowid"].to_numpy())
    all_scores, ids = _finite(table, np.concatenate(scores)), np.concatenate(addresses)
    count = min(k, len(ids))
    while True:
        order = _largest(all_scores, count)
        rows = rows_by_id(table, ids[order])
        best = np.arange(count) if windows else _firsts(rows["path"], np.arange(count))
        if len(best) >= k or count == len(ids):
            return rows.take(best[:k]), all_scores[order][best[:k]]
        count = len(ids) if count >= _MOST_CANDIDATES else min(len(ids), 8 * count)


def _columns(table: Table) -> list[str]:
    """Return the columns of a result; each of the others would take a query about a millisecond."""
    return [*_FOUND, "duration", *table.metadata_columns]


def rows_by_id(table: Table, ids: np.ndarray) -> pyarrow.Table:
    """Return the columns of results of rows, by their ids and in the order of these."""
    with explained(table.index, table):
        rows = take_rows(table.dataset, ids.tolist(), _columns(table))
    if empty := [name for name in _FOUND if rows[name].null_count]:
        raise ValueError(f"{table.index} holds windows without {', '.join(empty)}: {_NOT_OURS}")
    return rows


def _scores(column: pyarrow.ChunkedArray, query: np.ndarray) -> np.ndarray:
    vectors = vectors_of(column)
    return unit(vectors) @ truncated(query[None], vectors.shape[1])[0]


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the `count` largest scores, in order; of equal ones the earlier."""
    if count < len(scores):
        least = -np.partition(-scores, count - 1)[count - 1]
        above, equal = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
        chosen = np.concatenate([above, equal[: count - len(above)]])
    else:
        chosen = np.arange(len(scores))
    return chosen[np.argsort(-scores[chosen], kind="stable")]


def _firsts(paths: pyarrow.ChunkedArray, rows: np.ndarray) -> np.ndarray:
    """Return those of `rows` whose path is not that of an earlier one."""
    codes = paths.combine_chunks().fill_null("").dictionary_encode().indices.to_numpy()
    return rows[np.sort(np.unique(codes, return_index=True)[1])]


def _finite(table: Table, scores: np.ndarray) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise ValueError(f"{table.index} holds vectors with NaN or infinite values: {_NOT_OURS}")
    return scores
