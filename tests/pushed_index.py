"""An index with columns about its sounds, a download of its push, and a Hub to push it to."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from huggingface_hub import HfApi, constants, snapshot_download

from tests.hub_server import TOKEN
from wavlink.search import copies, parquet
from wavlink.search import hub as index_hub
from wavlink.search.listing import Sound
from wavlink.search.manifest import Manifest
from wavlink.search.rows import skipped_row, window_rows
from wavlink.search.table import Table

DIM = 12
LABELS = {"a": "dog", "b": None, "c": "cat", "d": "dog"}


def made(folder: Path, storage: str = "fp16", rescore_dim: int = 0, root: str = "/sounds") -> Path:
    """Four files of two windows, with two columns about them, and a file that was skipped."""
    manifest = Manifest(str(folder / "model"), "sha256:0", 24, [24, DIM, 6], DIM, storage, 10.0, 5.0, 16000, root)
    manifest = replace(manifest, rescore_dim=rescore_dim)
    columns = [pyarrow.field("label", pyarrow.string()), pyarrow.field("year", pyarrow.int16())]
    with Table.create(folder, manifest, columns=columns) as table:
        for number, (name, label) in enumerate(LABELS.items()):
            vectors = np.random.default_rng(number).normal(size=(2, 24))
            times = [(0.0, 10.0), (5.0, 15.0)]
            rows = window_rows(manifest, Sound(name, 100, 7, ""), times, vectors, windows=2, duration=15.0)
            rows = rows.append_column("label", pyarrow.array([label] * 2, pyarrow.string()))
            table.append(rows.append_column("year", pyarrow.array([2020 + number] * 2, pyarrow.int16())))
        table.append(skipped_row(manifest, Sound("bad", 3, 9, ""), "it holds no bytes"))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return made(tmp_path / "index")


def rows_of(index_path, where: str | None = None) -> pyarrow.Table:
    return Table.open(index_path).dataset.to_table(filter=where).replace_schema_metadata(None)


@pytest.fixture
def pushed(folder, tmp_path) -> Path:
    """A download of a push."""
    target = tmp_path / "pushed"
    (target / "data").mkdir(parents=True)
    table = Table.open(folder)
    parts = parquet.export(table, target / "data")
    manifest = copies.without_local_paths(table.manifest)
    (target / "index.json").write_text(parquet.export_manifest(manifest, parts))
    (target / "README.md").write_text(index_hub._card(manifest, parts, "user/sounds"))
    return target


@pytest.fixture
def here(hub, monkeypatch):
    """Pushes and pulls of this process go to the Hub on loopback."""
    options = {"endpoint": hub.endpoint, "token": TOKEN}
    monkeypatch.setattr(index_hub, "HfApi", partial(HfApi, **options))
    monkeypatch.setattr(index_hub, "snapshot_download", partial(snapshot_download, **options))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return hub


def changed(table: pyarrow.Table, name: str, values) -> pyarrow.Table:
    number = table.column_names.index(name)
    array = pyarrow.array(values, table.schema.field(name).type)
    return table.set_column(number, table.schema.field(name), array)
