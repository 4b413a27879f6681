"""Vectors kept small and searched: nested dims times four storages, with exact cosines of what is kept.

A code is a pure function of its vector, nothing is calibrated: an index grows without being made anew.
"""

import faiss
import numpy as np

from wavlink.compat import stored_bytes
from wavlink.defaults import STORAGES

_DTYPES = dict(zip(STORAGES, (np.float32, np.float16, np.int8, np.uint8), strict=True))
_ROWS = 1 << 14  # vectors converted at once
_ELEMENTS = 1 << 24  # of decoded candidates at once: 64 MB of fp32


def bytes_per_vector(dim: int, storage: str) -> int:
    """What a vector takes in memory and on disk."""
    _check(dim, storage)
    return _columns(dim, storage) * np.dtype(_DTYPES[storage]).itemsize


def encode(vectors: np.ndarray, dim: int, storage: str) -> np.ndarray:
    """Cuts to `dim`, normalises again, and stores.

    int8: `round(127 * clip(v / r, -1, 1))` with r = min(1, 6 / sqrt(dim)), six standard deviations of a component of
    a unit vector. The range is one for all vectors, so inner products of codes rank as cosines do. binary: the signs,
    packed as by `numpy.packbits`; what sentence-transformers calls `ubinary`.

    Args:
        vectors: `[N, D]` with D >= dim, of any length (norm) but zero.

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
    """`[N, dim]` fp32, L2-normalised: the vectors that the codes of `encode` stand for.

    Raises:
        ValueError: codes of another shape or type; a code that is zero or not finite.
    """
    codes = _checked(codes, dim, storage)
    vectors = np.empty((len(codes), dim), np.float32)
    for start in range(0, len(codes), _ROWS):
        vectors[start : start + _ROWS] = _unit(_values(codes[start : start + _ROWS], dim, storage), start)
    return vectors


class FlatIndex:
    """Every code is compared with every query: `index.add(codes)`, `scores, rows = index.search(queries, k)`.

    FAISS finds about `k * rescore` candidates: by the inner product with the codes, of binary by Hamming distance to
    the query's signs. Of these the k with the largest cosine are returned.
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
        """Appends codes of `encode`; rows count from the first ever added. All are checked before any is added."""
        codes = _checked(codes, self.dim, self.storage)
        parts = [slice(start, start + _ROWS) for start in range(0, len(codes), _ROWS)]
        for part in parts:
            _unit(_values(codes[part], self.dim, self.storage), part.start)
        for part in parts:
            self._index.add(codes[part] if self.storage == "binary" else codes[part].astype(np.float32))

    def search(self, queries: np.ndarray, k: int, rescore: int = 8) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of each query, best first; of equal ones the lower row.

        Args:
            queries: `[Q, D]` with D >= dim, cut and normalised here.
            rescore: how many times k the candidates are whose cosine is computed.

        Returns:
            scores `[Q, k]` fp32, the cosine of the query and the decoded vector, and rows `[Q, k]` int64; -inf and -1
            where there are fewer than k vectors.

        Raises:
            ValueError: k or rescore under 1, and whatever `encode` raises.
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
        """Scores and rows `[Q, k]`, and of each query whether these are what any order of the rows would give.

        The candidates are what FAISS finds nearer than the (count + 1)-th. Of those as near as that it knows only
        some, and which depends on where they are.
        """
        nearness, rows = self._find(queries, min(count + 1, len(self)))
        found = self.vectors(rows.ravel()).reshape(*rows.shape, self.dim)
        scores = (found * queries[:, None]).sum(-1, dtype=np.float64).astype(np.float32)
        same = 1e-6 if self.storage in ("fp32", "fp16") else 0.5  # of int8 and binary they are whole numbers
        nearer = (nearness > nearness[:, -1:] + same) | (count == len(self))
        order = np.lexsort((rows, np.where(nearer, -scores, np.inf)))[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1), nearer.sum(1) >= k

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """`[N, dim]` fp32, L2-normalised: what the codes of `rows` `[N]` stand for."""
        return decode(self._codes(rows), self.dim, self.storage)

    def _find(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """FAISS's own scores, higher for nearer, and rows, both `[Q, count]`."""
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(min(threads, len(queries)))  # a second thread for one query only waits
        scores, rows = self._index.search(self._asked(queries), count)
        faiss.omp_set_num_threads(threads)
        return (-scores if self.storage == "binary" else scores), rows

    def _asked(self, queries: np.ndarray) -> np.ndarray:
        """What FAISS compares with the codes."""
        if self.storage == "binary":
            return encode(queries, self.dim, "binary")
        if self.storage == "int8":  # FAISS cuts a query's decimals off, on some machines and at some dims
            return np.rint(127 * queries / abs(queries).max(1, keepdims=True))
        return queries

    def _stored(self) -> np.ndarray:
        """A view of the codes in FAISS's memory, valid until more are added."""
        held = self._index.xb if self.storage == "binary" else self._index.codes
        flat = stored_bytes(held, len(self) * bytes_per_vector(self.dim, self.storage))
        return flat.view(_DTYPES[self.storage]).reshape(len(self), -1)

    def _codes(self, rows: np.ndarray) -> np.ndarray:
        codes = self._stored()[rows]
        return codes ^ np.int8(-128) if self.storage == "int8" else codes  # FAISS holds them plus 128


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
    """Numbers in proportion to the vectors."""
    return 2.0 * np.unpackbits(codes, axis=1, count=dim) - 1 if storage == "binary" else codes


def _unit(vectors: np.ndarray, start: int) -> np.ndarray:
    """`[n, dim]` fp32, L2-normalised; `start` is the number of the first, for the message."""
    vectors = np.asarray(vectors, np.float64)  # whose squares do not overflow
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        row = start + int((~(np.isfinite(norms) & (norms > 0))).argmax())
        raise ValueError(f"vector {row} has no direction in {vectors.shape[1]} dims: zero, NaN or infinite values")
    return (vectors / norms).astype(np.float32)
