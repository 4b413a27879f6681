"""An index folder and the contents of its files."""

import numpy as np
import pyarrow
import pytest

from wavlink.search.quantization import encode
from wavlink.search.store import FILES, IndexFolder, Manifest

DIM = 12


def manifest(storage: str = "int8") -> Manifest:
    return Manifest("model", "sha256:0", 24, [24, DIM], DIM, storage, 10.0, 5.0, 16000, "/sounds")


def tables(made: Manifest, names, windows: int = 2) -> tuple[pyarrow.Table, pyarrow.Table]:
    """Some rows of each file, drawn by its name."""
    paths = [name for name in names for _ in range(windows)]
    starts = np.tile(5.0 * np.arange(windows), len(names))
    drawn = [np.random.default_rng(list(name.encode())).normal(size=(windows, DIM)) for name in names]
    codes = encode(np.concatenate(drawn), DIM, made.storage)
    rows = [dict(zip(FILES.names, (name, 100, 7, 0, windows, windows, ""), strict=True)) for name in names]
    return made.windows(paths, starts, starts + 10, codes), pyarrow.Table.from_pylist(rows, schema=FILES)


def contents(folder) -> dict[str, list]:
    """Of each file its rows, as (start, end, codes)."""
    index, rows_by_file = IndexFolder.open(folder), {}
    for part in index.manifest.parts:
        windows = index.read(part, "embeddings")
        for row, code in zip(windows.to_pylist(), index.manifest.codes(windows), strict=True):
            rows_by_file.setdefault(row["path"], []).append((row["start"], row["end"], code.tobytes()))
    assert sorted(rows_by_file) == sorted(index.files()["path"].to_pylist())
    assert sum(map(len, rows_by_file.values())) == index.manifest.rows
    return rows_by_file


@pytest.fixture
def folder(tmp_path):
    """Three parts: a and b; c; d."""
    with IndexFolder.create(tmp_path / "index", manifest()) as index:
        for names in ("ab", "c", "d"):
            index.append(*tables(index.manifest, names))
    return tmp_path / "index"
