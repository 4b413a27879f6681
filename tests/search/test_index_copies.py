"""An index is converted from an earlier version, or copied with smaller vectors or without local paths."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests import pushed_index, searches
from tests.former_index import STORAGES, codes_of, sign, write_former
from tests.pushed_index import DIM, changed, made, rows_of
from tests.searches import index, write
from wavlink.bundled_models import digest_of
from wavlink.search.copies import publish, reindex
from wavlink.search.hub import pull, push
from wavlink.search.index import Index
from wavlink.search.scoring import truncated, vectors_of
from wavlink.search.table import Table

models, embedder, sounds = searches.models, searches.embedder, searches.sounds
folder, here = pushed_index.folder, pushed_index.here


# --- indexes of earlier versions


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("parts", [1, 3])
def test_an_index_of_an_earlier_version_is_converted(folder, tmp_path, storage, parts):
    """In three parts, the windows of a file are in two of them."""
    write_former(tmp_path / "former", Table.open(folder), storage, parts)
    with pytest.raises(ValueError, match="is an index of an earlier version: `wavlink pull .*former --out"):
        Index.open(tmp_path / "former")
    pull(str(tmp_path / "former"), tmp_path / "new")
    new, old = Table.open(tmp_path / "new"), Table.open(folder)
    assert new.files() == old.files()  # and so `index` embeds none of them again
    assert (new.manifest.root, new.manifest.model) == (old.manifest.root, old.manifest.model)
    assert new.manifest.storage == ("fp32" if storage == "fp32" else "fp16")
    names = ["path", "window", "start", "end", "size", "version", "windows", "error", "revision"]
    found, expected = (rows_of(path, "error = ''") for path in (tmp_path / "new", folder))
    assert found.select(names).equals(expected.select(names))
    assert set(found["duration"].to_pylist()) == ({15.0} if parts == 1 else {15.0, None})
    codes = codes_of(vectors_of(expected["embedding"]), storage)
    decoded = 2.0 * np.unpackbits(codes, axis=1, count=DIM) - 1 if storage == "binary" else codes
    np.testing.assert_allclose(vectors_of(found["embedding"]), truncated(decoded, DIM), atol=5e-4)


def test_a_converted_index_goes_on(sounds, tmp_path, models, embedder):
    (sounds / "empty.wav").touch()
    index(sounds, tmp_path / "index", str(models["model"]), storage="fp32")
    write_former(tmp_path / "former", Table.open(tmp_path / "index"), "int8", parts=3)
    pull(str(tmp_path / "former"), tmp_path / "new")
    hits, old = (Index.open(tmp_path / name).query("a dog barks", windows=True) for name in ("new", "index"))
    assert {(hit.path, hit.start) for hit in hits} == {(hit.path, hit.start) for hit in old}
    scores = {(hit.path, hit.start): hit.score for hit in old}
    assert all(hit.score == pytest.approx(scores[hit.path, hit.start], abs=0.02) and not hit.changed for hit in hits)
    write(sounds / "new.wav", 7)
    report = index(sounds, tmp_path / "new")
    assert (report.added, report.changed, report.unchanged) == (1, 0, 5) and set(report.skipped) == {"empty.wav"}


def test_damaged_and_hostile_indexes_of_earlier_versions_are_refused(folder, tmp_path):
    former = write_former(tmp_path / "former", Table.open(folder))

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            pull(str(former), tmp_path / "new")
        assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".*"))

    parts = json.loads((former / "index.json").read_text())["parts"]
    for fields in (
        {"storage": "int4"},
        {"dim": 0},
        {"window": "x"},
        {"parts": [parts[0] | {"name": "../x"}]},
        {"x": 1},
    ):
        before = (former / "index.json").read_bytes()
        sign(former, **fields)
        refused("former/index.json is damaged")
        (former / "index.json").write_bytes(before)
    for kind in ("embeddings", "files"):
        path = former / kind / "part-000001.parquet"
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        refused(f"{kind}/part-000001.parquet is damaged")
        path.unlink()
        refused(f"{kind}/part-000001.parquet is missing")
        path.write_bytes(whole)
    windows = pq.read_table(former / "embeddings/part-000000.parquet")
    for name, values, message in (
        ("start", [-1.0] * 4, "times that are none"),
        ("path", ["x"] * 4, "windows of files that it does not name"),
        ("path", [None] * 4, "gaps"),
        ("embedding", [[0] * DIM] * 4, "no direction in 12 dims"),
    ):
        path = former / "embeddings/part-000000.parquet"
        pq.write_table(changed(windows, name, values), path)
        digests = parts[0]["sha256"] | {"embeddings": digest_of(path)}
        sign(former, parts=[parts[0] | {"sha256": digests}, *parts[1:]])
        refused(f"embeddings/part-000000.parquet is none of this program's: .*{message}")


# --- other copies


@pytest.mark.parametrize(("dim", "storage"), [(None, None), (6, None), (6, "fp32"), (None, "fp32"), (24, "fp16")])
@pytest.mark.parametrize("rescore_dim", [0, 24])
def test_reindex_keeps_everything_but_the_vectors(tmp_path, dim, storage, rescore_dim):
    made(tmp_path / "index", rescore_dim=rescore_dim)
    if dim == 24:
        with pytest.raises(ValueError, match="dim=24 is none of the index's nested dims: 12, 6"):
            reindex(tmp_path / "index", tmp_path / "copy", dim=dim)
        return
    reindex(tmp_path / "index", tmp_path / "copy", dim=dim, storage=storage)
    old, new = rows_of(tmp_path / "index"), rows_of(tmp_path / "copy")
    vectors = ["embedding", "rescore"] if rescore_dim else ["embedding"]
    kept = rescore_dim if not dim else 0
    assert new.column_names == [name for name in old.column_names if kept or name != "rescore"]
    assert new.drop_columns(vectors[: 1 + bool(kept)]).equals(old.drop_columns(vectors))
    assert new["embedding"].is_null().to_pylist() == [False] * 8 + [True]
    expected = truncated(vectors_of(old["embedding"]), dim or DIM)
    np.testing.assert_allclose(vectors_of(new["embedding"]), expected, atol=0 if storage == "fp32" and dim else 5e-4)
    manifest = Table.open(tmp_path / "copy").manifest
    assert (manifest.dim, manifest.storage) == (dim or DIM, storage or "fp16")
    assert manifest.rescore_dim == kept


@pytest.mark.parametrize("rescore_dim", [0, 24])
def test_reindex_makes_and_drops_the_vectors_to_rescore_by(tmp_path, caplog, rescore_dim):
    made(tmp_path / "index", rescore_dim=rescore_dim)
    old = rows_of(tmp_path / "index")
    for name, options, expected in (
        ("kept", {"dim": 6, "rescore_dim": 24}, 24),
        ("cut", {"dim": 6, "rescore_dim": 12}, 12),
        ("dropped", {"rescore_dim": 0}, 0),
    ):
        if expected == 24 and not rescore_dim:
            with pytest.raises(ValueError, match="rescore_dim=24 must be one of the dims over 6 .* stores: 12$"):
                reindex(tmp_path / "index", tmp_path / name, **options)
            continue
        reindex(tmp_path / "index", tmp_path / name, **options)
        new, manifest = rows_of(tmp_path / name), Table.open(tmp_path / name).manifest
        assert (manifest.dim, manifest.rescore_dim) == (options.get("dim", DIM), expected)
        assert ("rescore" in new.column_names) == bool(expected) and not caplog.records
        if expected:
            of = vectors_of(old["rescore" if rescore_dim else "embedding"])
            np.testing.assert_allclose(vectors_of(new["rescore"]), truncated(of, expected), atol=5e-4)
            assert new["rescore"].is_null().to_pylist() == [False] * 8 + [True]
    reindex(tmp_path / "index", tmp_path / "fewer", dim=6)
    assert [record.message for record in caplog.records] == [
        "results are ordered by 6 dims alone: the vectors of 24 dims that ordered them are left out; --rescore_dim 24 "
        "keeps them"
    ] * bool(rescore_dim)
    for wrong in (7, 6, 4):
        with pytest.raises(ValueError, match=f"rescore_dim={wrong} must be one of the dims over 6"):
            reindex(tmp_path / "index", tmp_path / "wrong", dim=6, rescore_dim=wrong)
    for copy in (reindex, lambda source, out: pull(str(source), out)):
        with pytest.raises(ValueError, match="s3://bucket/copy is in object storage: name a folder here"):
            copy(tmp_path / "index", "s3://bucket/copy")


def test_reindex_equals_an_index_made_directly(sounds, tmp_path, embedder):
    index(sounds, tmp_path / "index", embedder, storage="fp32")
    index(sounds, tmp_path / "like", embedder, storage="fp16", dim=16)
    reindex(tmp_path / "index", tmp_path / "other", dim=16, storage="fp16")
    made_directly, copied = (rows_of(tmp_path / name) for name in ("like", "other"))
    assert copied.drop_columns(["embedding"]).equals(made_directly.drop_columns(["embedding"]))
    expected = vectors_of(made_directly["embedding"])
    np.testing.assert_allclose(vectors_of(copied["embedding"]), expected, atol=1e-3)
    write(sounds / "new.wav", 7)
    assert index(sounds, tmp_path / "other", embedder).unchanged == 5
    with pytest.raises(ValueError, match="is there already"):
        reindex(tmp_path / "index", tmp_path / "other", dim=16)
    with pytest.raises(ValueError, match="dim=32 is none of the index's nested dims: 16, 8|8, 16"):
        reindex(tmp_path / "other", tmp_path / "third", dim=32)
    assert not (tmp_path / "third").exists() and not list(tmp_path.glob(".*"))


COPIES = {
    "reindex": lambda source, out: reindex(source, out, dim=6),
    "publish": publish,
    "push": lambda source, out: push(source, "user/beside"),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_beside_a_writer_is_of_a_consistent_state(folder, tmp_path, monkeypatch, here, how):
    """Before the first read, a writer drops two files and removes what it has replaced."""
    real, left = Table.scan, ["a", "b"]

    def scan(self, *arguments, **options):
        if left and Path(self.index) == folder and how != "push":
            with monkeypatch.context() as patch, Table.open(folder).writing() as other:
                patch.setattr(Table, "scan", real)
                other.remove([left.pop()])
                other.dataset.optimize.compact_files(materialize_deletions_threshold=0)
                other.dataset.checkout_latest()
        elif how == "push":
            with pytest.raises(ValueError, match="another process is writing"), Table.open(folder).writing():
                pass
        yield from real(self, *arguments, **options)

    monkeypatch.setattr(Table, "scan", scan)
    COPIES[how](folder, tmp_path / "copy")
    monkeypatch.undo()
    if how == "push":
        assert here.files("user/beside", kind="datasets")
    else:
        assert not left
        assert Table.open(tmp_path / "copy").files() == Table.open(folder).files()


def test_publish_leaves_no_local_path_and_no_history(folder, tmp_path):
    root, paths = publish(folder, tmp_path / "published")
    assert (root, paths) == ("/sounds", list("abcd"))
    files = [path.read_bytes() for path in (tmp_path / "published").rglob("*") if path.is_file()]
    assert len(files) > 3 and not any(b"/sounds" in file or os.fsencode(tmp_path) in file for file in files)
    assert rows_of(tmp_path / "published").equals(rows_of(folder))
    shutil.copytree(tmp_path / "published", tmp_path / "elsewhere")
    assert Table.open(tmp_path / "elsewhere").damaged() == {}
