"""An index on disk, made of vectors drawn by the files' names, and what it holds."""

import json
import os
from pathlib import Path

import lance
import numpy as np
import pyarrow
import pytest

from wavlink.search.listing import Sound
from wavlink.search.location import TABLE
from wavlink.search.manifest import METADATA, Manifest, checksum
from wavlink.search.rows import window_rows
from wavlink.search.scoring import vectors_of
from wavlink.search.table import Table

DIM = 12


def manifest(storage: str = "fp16", **fields) -> Manifest:
    return Manifest("model", "sha256:0", 24, [24, DIM], DIM, storage, 10.0, 5.0, 16000, "/sounds", **fields)


def vectors(name: str, windows: int, dims: int = 24) -> np.ndarray:
    return np.random.default_rng(list(name.encode())).normal(size=(windows, dims))


def file_rows(made: Manifest, name: str, windows: int = 2) -> pyarrow.Table:
    times = [(5.0 * number, 5.0 * number + 10) for number in range(windows)]
    facts = {"windows": windows, "duration": 5.0 * windows + 5}
    return window_rows(made, Sound(name, 100, 7, name), times, vectors(name, windows), **facts)


def rows_of(made: Manifest, names, windows: int = 2) -> pyarrow.Table:
    """Some rows of each file, drawn by its name."""
    return pyarrow.concat_tables([file_rows(made, name, windows) for name in names])


def contents(folder: str | os.PathLike) -> dict[str, list]:
    """Of each file its rows, as (start, end, vector); no row appears twice, and the files' facts agree."""
    table, rows_by_file = Table.open(folder), {}
    for batch in table.scan(["path", "start", "end", "embedding"], "error = ''"):
        found = vectors_of(batch["embedding"])
        for row, vector in zip(batch.select(["path", "start", "end"]).to_pylist(), found, strict=True):
            rows_by_file.setdefault(row["path"], []).append((row["start"], row["end"], vector.tobytes()))
    files = table.files()
    assert {path: len(rows) for path, rows in rows_by_file.items()} == {p: f.rows for p, f in files.items() if f.rows}
    assert all(len(rows) == len({row[:2] for row in rows}) for rows in rows_by_file.values())
    return rows_by_file


def make_index(folder: Path, *groups, windows: int = 2, storage: str = "fp16") -> Path:
    """Make an index, with one commit for each group of names."""
    with Table.create(folder, manifest(storage)) as table:
        for names in groups:
            table.append(rows_of(table.manifest, names, windows))
    return folder


def data_files(folder: Path) -> list[Path]:
    """The files of the latest version that hold rows, in the order of these."""
    fragments = Table.unverified(folder).dataset.get_fragments()
    return [folder / TABLE / "data" / file.path for fragment in fragments for file in fragment.metadata.files]


def stray_files(folder: Path) -> list[str]:
    """The files below the folder that belong neither to its table's one version nor to its checksums."""
    table = Table.unverified(folder)
    known = {f"{TABLE}/{name}" for name in table.file_names()} | {"checksums.jsonl", ".lock"}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert known - {".lock", "checksums.jsonl"} <= found
    versions = {name for name in found if name.startswith(f"{TABLE}/_versions/") and name.endswith(".manifest")}
    known.add(f"{TABLE}/_versions/latest_version_hint.json")
    return sorted(found - known - versions) + sorted(versions)[1:]


def signed(folder, **fields) -> None:
    """Give an index another manifest, its checksum made right."""
    dataset = lance.dataset(f"{folder}/{TABLE}")
    told = json.loads(dataset.schema.metadata[METADATA]) | fields
    told.pop("sha256")
    dataset.update_schema_metadata({METADATA.decode(): json.dumps(told | {"sha256": checksum(told)})})


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three commits: a and b; c; d."""
    return make_index(tmp_path / "index", "ab", "c", "d")
