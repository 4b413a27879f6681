"""Quantise vectors and search them: nested dims times four storages, with exact cosines of the stored vectors.

A code is a pure function of its vector, without calibration: an index can grow without being rebuilt.
"""

import faiss
import numpy as np

from wavlink.compat import stored_bytes
from wavlink.defaults import STORAGES

_DTYPES = dict(zip(STORAGES, (np.float32, np.float16, np.int8, np.uint8), strict=True))
_ROWS = 1 << 14  # vectors converted at once
_ELEMENTS = 1 << 24  # of decoded candidates at once: 64 MB of fp32


def bytes_per_vector(dim: int, storage: str) -> int:
    """Return the size of a stored vector in memory and on disk."""
    _check(dim, storage)
    return _columns(dim, storage) * np.dtype(_DTYPES[storage]).itemsize


def encode(vectors: np.ndarray, dim: int, storage: str) -> np.ndarray:
    """Truncate vectors to `dim`, normalise them again, and quantise them.

    int8: `round(127 * clip(v / r, -1, 1))` with r = min(1, 6 / sqrt(dim)), six standard deviations of a component of
    a unit vector. All vectors share one range, so that inner products of codes rank as cosines do. binary: the signs,
    packed as by `numpy.packbits`; sentence-transformers calls this `ubinary`.

    Args:
        vectors: `[N, D]` with D >= dim, of any norm but zero.

    Returns:
        `[N, dim]` float32, float16 or int8; of binary `[N, ceil(dim / 8)]` uint8.

    Raises:
        ValueError: wrong shape, storage or dim; a vector with NaN or infinite values, or zero in its first `dim`.
    """
    _check(dim, storage)
    vectors = np.asanyarray(vectors)
    if vectors.ndim != 2 or vectors.shape[1] < dim:
        raise ValueError(f"vectors must be [N, {dim} or more], not {list(vectors.shape)}")
    codes = np.empty((len(vectors), _columns(dim, storage)), _DTYPES[storage])
    for start in range(0, len(vectors), _ROWS):
        unit = _unit(vectors[start : start + _ROWS, :dim], start)
        if storage == "int8":
            unit = np.rint(127 * np.clip(unit / _int8_range(dim), -1, 1))
        codes[start : start + _ROWS] = np.packbits(unit > 0, axis=1) if storage == "binary" else unit
    return codes


def decode(codes: np.ndarray, dim: int, storage: str) -> np.ndarray:
    """Return the vectors `[N, dim]` fp32, L2-normalised, that codes of `encode` stand for.

    Raises:
        ValueError: codes of another shape or type; a code that is zero or not finite.
    """
    codes = _checked(codes, dim, storage)
    vectors = np.empty((len(codes), dim), np.float32)
    for start in range(0, len(codes), _ROWS):
        vectors[start : start + _ROWS] = _unit(_values(codes[start : start + _ROWS], dim, storage), start)
    return vectors


class FlatIndex:
    """Exact index: `index.add(codes)`, then `scores, rows = index.search(queries, k)`.

    FAISS compares each query with every code and returns about `k * rescore` candidates, by inner product, or by the
    Hamming distance of signs for binary. The k candidates with the largest cosine are the result.
    """

    def __init__(self, dim: int, storage: str):
        _check(dim, storage)
        self.dim, self.storage = dim, storage
        if storage == "binary":
            self._index = faiss.IndexBinaryFlat(8 * _columns(dim, storage))
        elif storage == "fp32":
            self._index = faiss.IndexFlatIP(dim)
        else:
            kinds = {"fp16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit_direct_signed}
            self._index = faiss.IndexScalarQuantizer(dim, kinds[storage], faiss.METRIC_INNER_PRODUCT)

    def __len__(self) -> int:
        return self._index.ntotal

    def add(self, codes: np.ndarray) -> None:
        """Append codes of `encode`; rows are numbered in order. All codes are checked before any is added."""
        codes = _checked(codes, self.dim, self.storage)
        blocks = [slice(start, start + _ROWS) for start in range(0, len(codes), _ROWS)]
        for block in blocks:
            _unit(_values(codes[block], self.dim, self.storage), block.start)
        for block in blocks:
            self._index.add(codes[block] if self.storage == "binary" else codes[block].astype(np.float32))

    def search(self, queries: np.ndarray, k: int, rescore: int = 8) -> tuple[np.ndarray, np.ndarray]:
        """Find the k nearest vectors of each query, best first; among equal ones the lower row.

        Args:
            queries: `[Q, D]` with D >= dim; they are truncated and normalised.
            rescore: candidates whose cosine is computed, as a multiple of k.

        Returns:
            scores `[Q, k]` fp32, the cosine of the query and the decoded vector, and rows `[Q, k]` int64; -inf and -1
            where the index has fewer than k vectors.

        Raises:
            ValueError: k or rescore below 1, and whatever `encode` raises.
        """
        if k < 1 or rescore < 1:
            raise ValueError(f"k and rescore must be 1 or more, not {k} and {rescore}")
        queries = encode(queries, self.dim, "fp32")
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        kept, count, left = min(k, len(self)), min(k * rescore, len(self)), np.arange(len(queries) if len(self) else 0)
        while len(left):
            blocks, left = np.array_split(left, -(-len(left) * count * self.dim // _ELEMENTS)), []
            for block in blocks:
                scores[block, :kept], rows[block, :kept], enough = self._best(queries[block], kept, count)
                left += block[~enough].tolist()
            left, count = np.array(left, np.int64), min(8 * count, len(self))
        return scores, rows

    def _best(self, queries: np.ndarray, k: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return scores and rows `[Q, k]`, and for each query whether they are independent of the order of the rows.

        The candidates are the vectors that FAISS ranks above the (count + 1)-th. Among ties with that one FAISS
        returns only some, depending on their order.
        """
        nearness, rows = self._candidates(queries, min(count + 1, len(self)))
        vectors = self.vectors(rows.ravel()).reshape(*rows.shape, self.dim)
        scores = (vectors * queries[:, None]).sum(-1, dtype=np.float64).astype(np.float32)
        same = 1e-6 if self.storage in ("fp32", "fp16") else 0.5  # int8 and binary have integer scores
        nearer = (nearness > nearness[:, -1:] + same) | (count == len(self))
        order = np.lexsort((rows, np.where(nearer, -scores, np.inf)))[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1), nearer.sum(1) >= k

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors `[N, dim]` fp32, L2-normalised, of `rows` `[N]`."""
        return decode(self._codes(rows), self.dim, self.storage)

    def _candidates(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return FAISS's scores, higher for nearer, and rows, both `[Q, count]`."""
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(min(threads, len(queries)))  # a second thread does not help one query
        scores, rows = self._index.search(self._faiss_queries(queries), count)
        faiss.omp_set_num_threads(threads)
        return (-scores if self.storage == "binary" else scores), rows

    def _faiss_queries(self, queries: np.ndarray) -> np.ndarray:
        """Return what FAISS compares with the codes."""
        if self.storage == "binary":
            return encode(queries, self.dim, "binary")
        if self.storage == "int8":  # FAISS truncates int8 queries to integers on some machines and at some dims
            return np.rint(127 * queries / abs(queries).max(1, keepdims=True))
        return queries

    def _stored(self) -> np.ndarray:
        """Return a view of the codes in FAISS's memory, valid until more are added."""
        memory = self._index.xb if self.storage == "binary" else self._index.codes
        flat = stored_bytes(memory, len(self) * bytes_per_vector(self.dim, self.storage))
        return flat.view(_DTYPES[self.storage]).reshape(len(self), -1)

    def _codes(self, rows: np.ndarray) -> np.ndarray:
        codes = self._stored()[rows]
        return codes ^ np.int8(-128) if self.storage == "int8" else codes  # FAISS stores them plus 128


def _check(dim: int, storage: str) -> None:
    if storage not in STORAGES:
        raise ValueError(f"no storage {storage!r}; there are {', '.join(STORAGES)}")
    if dim < 1:
        raise ValueError(f"dim must be 1 or more, not {dim}")


def _checked(codes: np.ndarray, dim: int, storage: str) -> np.ndarray:
    _check(dim, storage)
    codes, shape = np.asanyarray(codes), (_columns(dim, storage), np.dtype(_DTYPES[storage]))
    if codes.ndim != 2 or (codes.shape[1], codes.dtype) != shape:
        raise ValueError(
            f"{storage} codes of {dim} dims are [N, {shape[0]}] {shape[1]}, not {codes.shape} {codes.dtype}"
        )
    return codes


def _columns(dim: int, storage: str) -> int:
    return -(-dim // 8) if storage == "binary" else dim


def _int8_range(dim: int) -> float:
    return min(1.0, 6 / dim**0.5)


def _values(codes: np.ndarray, dim: int, storage: str) -> np.ndarray:
    """Return numbers in proportion to the vectors."""
    return 2.0 * np.unpackbits(codes, axis=1, count=dim) - 1 if storage == "binary" else codes


def _unit(vectors: np.ndarray, start: int) -> np.ndarray:
    """Return vectors `[n, dim]` fp32, L2-normalised; `start` is the row of the first one, for the error."""
    vectors = np.asarray(vectors, np.float64)  # squares do not overflow
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        row = start + int((~(np.isfinite(norms) & (norms > 0))).argmax())
        raise ValueError(f"vector {row} has no direction in {vectors.shape[1]} dims: zero, NaN or infinite values")
    return (vectors / norms).astype(np.float32)
