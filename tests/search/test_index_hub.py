"""Copies of an index: pushed to the Hub and pulled, converted from earlier versions, and with smaller vectors."""

import json
import os
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from huggingface_hub import HfApi, constants, snapshot_download

from tests import searches
from tests.former_index import STORAGES, codes_of, sign, write_former
from tests.hub_server import TOKEN
from tests.searches import index, write
from wavlink.cli import build_parser
from wavlink.hub_record import LINE, signed
from wavlink.search import copies, parquet
from wavlink.search import hub as index_hub
from wavlink.search.checksums import sha256_of
from wavlink.search.copies import publish, reindex
from wavlink.search.hub import pull, push
from wavlink.search.index import Index
from wavlink.search.listing import Sound
from wavlink.search.manifest import Manifest, checksum
from wavlink.search.rows import skipped_row, window_rows
from wavlink.search.scoring import truncated, vectors_of
from wavlink.search.table import Table

models, embedder, sounds = searches.models, searches.embedder, searches.sounds
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


# --- push and pull


def test_pull_gives_all_columns_of_all_windows(folder, pushed, tmp_path):
    pull(str(pushed), tmp_path / "pulled", model="mine")
    assert rows_of(tmp_path / "pulled").equals(rows_of(folder, "error = ''"))
    manifest = Table.open(tmp_path / "pulled").manifest
    assert (manifest.model, manifest.root, manifest.dim, manifest.storage) == ("mine", "", DIM, "fp16")
    assert Table.open(tmp_path / "pulled").damaged() == {} and not list(tmp_path.glob(".*"))
    assert {path.name for path in (tmp_path / "pulled").iterdir()} <= {"windows.lance", "checksums.jsonl", ".lock"}


def test_load_dataset_reads_what_is_pushed(pushed):
    windows = load_dataset(str(pushed), split="train")
    assert windows["path"][:] == list("aabbccdd") and windows["label"][:2] == ["dog", "dog"]
    assert np.shape(windows["embedding"][:]) == (8, DIM)


def test_a_push_names_no_local_path(folder, pushed):
    for path in pushed.rglob("*.*"):
        assert b"/sounds" not in path.read_bytes().replace(b"user/sounds", b"")
        assert str(folder.parent).encode() not in path.read_bytes()
    (part,) = (pushed / "data").iterdir()
    assert not pq.read_schema(part).metadata  # nor in the schema, which is kept in base64


def test_parts_are_small_and_read_in_steps(folder, tmp_path, monkeypatch):
    """With bounds of a few rows."""
    monkeypatch.setattr(parquet, "PART_BYTES", 1 << 9)
    monkeypatch.setattr(parquet, "_STEP_BYTES", 1 << 8)
    (tmp_path / "pushed/data").mkdir(parents=True)
    table = Table.open(folder)
    parts = parquet.export(table, tmp_path / "pushed/data")
    assert len(parts) > 1 and sum(part.rows for part in parts) == 8
    (tmp_path / "pushed/index.json").write_text(parquet.export_manifest(table.manifest, parts))
    tables = [*parquet.read_export(tmp_path / "pushed", parquet.read_fields(tmp_path / "pushed")).tables]
    assert len(tables) > len(parts) and max(map(len, tables)) < 3
    monkeypatch.setattr(copies, "_WRITTEN_AT_ONCE", 1 << 8)
    pull(str(tmp_path / "pushed"), tmp_path / "pulled")
    assert rows_of(tmp_path / "pulled").equals(rows_of(folder, "error = ''"))


def test_pull_with_a_root_takes_files_of_the_same_size_as_unchanged(tmp_path, here):
    root = tmp_path / "sounds"
    root.mkdir()
    for name, size in {"a": 100, "b": 101, "c": 100}.items():
        (root / name).write_bytes(b"x" * size)
    push(made(tmp_path / "index"), "user/rooted")
    pull("user/rooted", tmp_path / "pulled", root=str(root))
    files = Table.open(tmp_path / "pulled").files()
    times = {name: (root / name).stat().st_mtime_ns for name in "ac"}
    assert {name: file.version for name, file in files.items()} == times | {"b": 7, "d": 7}
    assert Table.open(tmp_path / "pulled").manifest.root == str(root)
    with pytest.raises(ValueError, match="none is not a folder"):
        pull("user/rooted", tmp_path / "third", root=str(tmp_path / "none"))


@pytest.mark.parametrize(
    "theirs",
    [
        {"index.json": b'{"weight_map": {}}'},
        {"index.json": b"{}", "data/part-000123.parquet": b"theirs"},
        {"data/part-000000.parquet": b"theirs"},
    ],
)
def test_push_neither_replaces_nor_deletes_files_of_others(folder, here, monkeypatch, tmp_path, theirs):
    for name in ("PART_BYTES", "_STEP_BYTES"):
        monkeypatch.setattr(parquet, name, 1 << 8)
    ours, other = f"user/ours-{tmp_path.name}", f"user/other-{tmp_path.name}"
    push(folder, ours)
    assert "data/part-000003.parquet" in here.files(ours, kind="datasets")
    with Table.open(folder).writing() as table:
        table.remove("abc")
    push(folder, ours)
    names = {"README.md", "index.json", "data/part-000000.parquet"}
    assert here.files(ours, kind="datasets") - {".gitattributes"} == names
    assert len(here.history(ours, "datasets")) == 3  # each push was one commit

    index_hub.HfApi().create_repo(other, repo_type="dataset")
    here.commit(here.root / "datasets" / other, "main", theirs)
    with pytest.raises(ValueError, match="of no earlier push"):
        push(folder, other)
    _, snapshot = here.find("datasets", other, "main")
    assert {name: (snapshot / name).read_bytes() for name in theirs} == theirs


def test_push_replaces_the_push_of_an_earlier_version(folder, here, tmp_path):
    former = write_former(tmp_path / "former", Table.open(folder))
    (former / "README.md").write_text(f"---\ntags:\n- audio\n---\n{LINE}\nMine.\n")
    (former / "notes.txt").write_text("mine")
    here.add_repo("user/former", former)
    with pytest.raises(ValueError, match="README.md of user/former was edited on the Hub, or comes from elsewhere"):
        push(folder, "user/former")
    card = signed("---\ntags:\n- audio\n---\n# An index of sounds")
    here.commit(here.root / "datasets/user/former", "main", {"README.md": card.encode()})
    pull("user/former", tmp_path / "pulled")
    assert len(Table.open(tmp_path / "pulled").files()) == 5 and not Table.open(tmp_path / "pulled").manifest.root
    push(folder, "user/former")
    files = here.files("user/former", kind="datasets")
    assert files == {"README.md", "index.json", "data/part-000000.parquet", "notes.txt"}


def test_invalid_pushes_and_pulls_are_refused(folder, pushed, here, tmp_path):
    with Table.create(tmp_path / "empty", Table.open(folder).manifest):
        pass
    refused = {
        "the repository must be user/name": lambda: push(folder, "sounds"),
        "none is no index": lambda: push(tmp_path / "none", "user/none"),
        "holds no sounds yet: index some": lambda: push(tmp_path / "empty", "user/empty"),
        "is an index of an earlier version: `wavlink pull": lambda: push(pushed, "user/none"),
        "index is an index of this version: `wavlink reindex": lambda: pull(str(folder), tmp_path / "out"),
        "which has no revision 'v1'": lambda: pull(str(pushed), tmp_path / "out", revision="v1"),
        "holds no copy of an index, it has no index.json": lambda: pull(str(tmp_path), tmp_path / "out"),
        "is there already": lambda: pull(str(pushed), folder),
    }
    for message, call in refused.items():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(OSError, match="user/nothing cannot be downloaded from the Hub"):
        pull("user/nothing", tmp_path / "out")
    push(folder, "user/public")
    with pytest.raises(ValueError, match="exists and is public"):
        push(folder, "user/public", private=True)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
    assert not (here.root / "datasets/user/empty").exists()


def test_a_damaged_index_and_one_of_several_models_are_not_pushed(folder, here):
    with Table.open(folder).writing() as table:
        others = window_rows(
            replace(table.manifest, revision="sha256:1"),
            Sound("other", 1, 1, ""),
            [(0.0, 1.0)],
            np.ones((1, 24)),
        )
        table.append(others)
    with pytest.raises(ValueError, match="vectors of several models.*--drop"):
        push(folder, "user/sounds")
    path = max((folder / "windows.lance/data").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=f"{path.name} is damaged, its checksum is not the one written"):
        push(folder, "user/sounds")
    assert not (here.root / "datasets/user/sounds").exists()


# --- what others have made


def resigned(pushed: Path, table: pyarrow.Table, rows: int | None = None, **options) -> None:
    """Other rows in the first part, with a checksum and a number that are right, as anybody can."""
    path = pushed / "data/part-000000.parquet"
    pq.write_table(table, path, compression="zstd", **options)
    part = {"name": path.name, "rows": len(table) if rows is None else rows, "sha256": sha256_of(path)}
    sign(pushed, parts=[part])


def changed(table: pyarrow.Table, name: str, values) -> pyarrow.Table:
    number = table.column_names.index(name)
    array = pyarrow.array(values, table.schema.field(name).type)
    return table.set_column(number, table.schema.field(name), array)


NAN = [np.nan] * DIM
BAD_VALUES = {
    "missing path": ("path", ["a"] * 7 + [None], "gaps, values of path"),
    "empty path": ("path", ["a"] * 7 + [""], "paths that are none"),
    "null in a path": ("path", ["a"] * 7 + ["a\0b"], "paths that are none"),
    "long path": ("path", ["a"] * 7 + ["a" * 2**21], "a 'path' of more than 1 MB"),
    "long label": ("label", ["a"] * 7 + ["a" * 2**21], "a 'label' of more than 1 MB"),
    "time": ("start", [np.nan] * 8, "times that are none"),
    "time backwards": ("start", [99.0] * 8, "times that are none"),
    "duration": ("duration", [np.inf] + [None] * 7, "times that are none"),
    "count": ("window", [-1] * 8, "counts that are none"),
    "skipped": ("error", ["why"] * 8, "windows of files that were skipped"),
    "model": ("revision", ["sha256:1"] * 8, "several models"),
    "missing vector": ("embedding", [[1.0] * DIM] * 7 + [None], "gaps, values of embedding"),
    "missing number": ("embedding", [[1.0] * DIM] * 7 + [[None] * DIM], "gaps, values of embedding"),
    "NaN": ("embedding", [[1.0] * DIM] * 7 + [NAN], "vectors without a direction"),
    "zero": ("embedding", [[0.0] * DIM] * 8, "vectors without a direction"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values_are_refused_by_the_name_of_the_file(pushed, tmp_path, case):
    name, values, message = BAD_VALUES[case]
    resigned(pushed, changed(pq.read_table(pushed / "data/part-000000.parquet"), name, values))
    with pytest.raises(ValueError, match=f"pushed/data/part-000000.parquet is none of this program's: .*{message}"):
        pull(str(pushed), tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists() and not list(tmp_path.glob(".*"))


def test_other_columns_are_refused(pushed, tmp_path):
    table = pq.read_table(pushed / "data/part-000000.parquet")
    lists = pyarrow.array([[1]] * 8, pyarrow.list_(pyarrow.int64()))
    ones = pyarrow.array([1.0] * 8)
    wide = pyarrow.array([[1.0] * 24] * 8, pyarrow.list_(pyarrow.float16(), 24))
    refused = {
        "other columns than the index says": table.drop_columns(["start"]),
        "other columns than the index": table.set_column(10, "embedding", wide),
        "its column 'x' is of the type list": table.append_column("x", lists),
        "names that are taken, or no names: .*score": table.append_column("score", ones),
        "names that are taken": table.append_column("x", ones).append_column("x", ones),
    }
    for message, rows in refused.items():
        resigned(pushed, rows)
        with pytest.raises(ValueError, match=f"part-000000.parquet is none of this program's: .*{message}"):
            pull(str(pushed), tmp_path / "pulled")
    resigned(pushed, table, rows=9)
    with pytest.raises(ValueError, match="other columns or rows than the index says"):
        pull(str(pushed), tmp_path / "pulled")


def test_files_that_unpack_to_more_than_they_may_are_refused(pushed, tmp_path, monkeypatch):
    """A hundredth of a bound, and files of a few kB: rows that are all alike, long texts, and one long text."""
    monkeypatch.setattr(parquet, "MOST_BYTES", 10 << 20)
    table = pq.read_table(pushed / "data/part-000000.parquet").slice(0, 1)
    long = changed(table, "label", ["x" * 1000])
    for rows in (table.take([0] * 120_000), long.take([0] * 12_000), changed(table, "path", ["x" * (11 << 20)])):
        resigned(pushed, rows)
        assert (pushed / "data/part-000000.parquet").stat().st_size < 30_000
        before = pyarrow.total_allocated_bytes()
        with pytest.raises(ValueError, match="pushed/data/part-000000.parquet .*unpacks to more than 10 MB"):
            pull(str(pushed), tmp_path / "pulled")
        assert pyarrow.total_allocated_bytes() - before < 1 << 20
    resigned(pushed, long.take([0] * 5000))  # 5 MB
    pull(str(pushed), tmp_path / "pulled")
    assert Table.open(tmp_path / "pulled").rows() == 5000


def test_files_that_are_no_parquet_or_not_the_ones_named_are_refused(pushed, tmp_path):
    path = pushed / "data/part-000000.parquet"
    whole, told = path.read_bytes(), (pushed / "index.json").read_bytes()
    for content in (b"", b"PAR1PAR1", whole[:-400] + bytes(392) + whole[-8:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="part-000000.parquet is damaged, its checksum"):
            pull(str(pushed), tmp_path / "pulled")
        sign(pushed, parts=[{"name": path.name, "rows": 8, "sha256": sha256_of(path)}])
        with pytest.raises(ValueError, match="part-000000.parquet is none of this program's"):
            pull(str(pushed), tmp_path / "pulled")
        (pushed / "index.json").write_bytes(told)
    path.unlink()
    with pytest.raises(ValueError, match="part-000000.parquet is missing"):
        pull(str(pushed), tmp_path / "pulled")


@pytest.mark.parametrize(
    "fields",
    [
        *({"parts": parts} for parts in (None, "x", [[]], {}, [{}], [])),
        {"parts": [{"name": "../x.parquet", "rows": 1, "sha256": ""}]},
        {"parts": [{"name": "part-000000.parquet", "rows": -1, "sha256": ""}]},
        {"parts": [{"name": "part-000000.parquet", "rows": 1, "sha256": ""}] * 2},
        *({"manifest": manifest} for manifest in (None, {}, [], "x")),
        *({"format": number} for number in (3, "2", None)),
    ],
    ids=str,
)
def test_an_index_json_with_a_right_checksum_and_wrong_values_is_refused(pushed, tmp_path, fields):
    sign(pushed, **fields)
    with pytest.raises(ValueError, match="index.json"):
        pull(str(pushed), tmp_path / "pulled")


@pytest.mark.parametrize(
    "fields",
    [
        *({"window": value} for value in (0, -1, float("nan"), float("inf"), "10", None)),
        *({"dims": value} for value in (24.0, "24", -24, 2**60, None)),
        *({"root": value} for value in (None, 3, "a\0b")),
        *({"storage": "../x"}, {"storage": "int8"}, {"matryoshka_dims": ["8"]}, {"format": "1"}, {"more": 1}),
    ],
    ids=str,
)
def test_wrong_values_of_the_model_are_refused(pushed, tmp_path, fields):
    told = json.loads((pushed / "index.json").read_text())["manifest"] | fields
    del told["sha256"]
    sign(pushed, manifest=told | {"sha256": checksum(told)})
    with pytest.raises(ValueError, match=r"pushed/index\.json is damaged \("):
        pull(str(pushed), tmp_path / "pulled")


def test_a_truncated_or_changed_index_json_is_refused(pushed, tmp_path):
    path = pushed / "index.json"
    whole = path.read_bytes()
    wrong = [whole[:length] for length in range(0, len(whole) - 1, 97)]
    for content in [*wrong, whole.replace(b'"dim": 12', b'"dim": 11'), b"[]", b"null", b"\xff", b"[" * 100_000]:
        assert content != whole
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"index\.json is damaged"):
            pull(str(pushed), tmp_path / "pulled")


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
        digests = parts[0]["sha256"] | {"embeddings": sha256_of(path)}
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
    assert new.drop_columns(vectors).equals(old.drop_columns(vectors)) and new.column_names == old.column_names
    assert new["embedding"].is_null().to_pylist() == [False] * 8 + [True]
    expected = truncated(vectors_of(old["embedding"]), dim or DIM)
    np.testing.assert_allclose(vectors_of(new["embedding"]), expected, atol=0 if storage == "fp32" and dim else 5e-4)
    manifest = Table.open(tmp_path / "copy").manifest
    assert (manifest.dim, manifest.storage) == (dim or DIM, storage or "fp16")
    assert manifest.rescore_dim == rescore_dim


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


# --- as commands, in a process with its own caches

PUSH = """
from modeling_wavlink import search
search.main(["push", {out!r}, {repo!r}, "--private"])
search.main(["pull", {repo!r}, "--out", {pulled!r}])
search.main(["pull", {repo!r}, "--out", {rooted!r}, "--root", {copied!r}])
import datasets
print("rows", *datasets.load_dataset({repo!r}, split="train")["path"])
"""


def assert_same_windows(folder, other) -> None:
    """Of the files without errors."""
    assert rows_of(folder, "error = ''").equals(rows_of(other, "error = ''"))


@pytest.mark.slow
@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_push_pull_and_continue(sounds, tmp_path, models, embedder, hub, xet):
    """By the storage of large files, and by Xet, which is what clients use by default."""
    if xet:
        pytest.importorskip("hf_xet")
    run = partial(hub.run, home=tmp_path / "home", token=TOKEN, HF_HUB_DISABLE_XET=str(int(not xet)))
    out, pulled, repo = str(tmp_path / "index"), str(tmp_path / "pulled"), f"user/sounds-{xet}"
    index(sounds, out, str(models["model"]))
    rooted, copied = str(tmp_path / "rooted"), str(tmp_path / "copied")
    shutil.copytree(sounds, copied, copy_function=shutil.copyfile)  # with other times of change
    write(Path(copied, "bell.flac"), 8, 4.0)
    asked = len(hub.requests)
    lines = run(PUSH.format(out=out, pulled=pulled, rooted=rooted, copied=copied, repo=repo)).splitlines()
    assert any(path.startswith("/xet/v1/xorbs") for _, path in hub.requests[asked:]) == xet
    assert any(path.startswith("/xet/v1/data") for _, path in hub.requests[asked:]) == xet
    paths = sorted(set(rows_of(out)["path"].to_pylist()))
    assert lines[0].startswith(f"{hub.endpoint}/datasets/{repo}/commit/")
    assert lines[-1].split()[0] == "rows" and sorted(set(lines[-1].split()[1:])) == paths
    assert_same_windows(pulled, out)
    for path in Path(hub.root / "datasets" / repo).rglob("*.*"):
        assert str(tmp_path).encode() not in path.read_bytes()  # nor where the sounds and the model are

    message = f"says it was made by '{models['model'].name}'.*name it yourself with --model"
    with pytest.raises(ValueError, match=message):
        Index.open(pulled).query("rain")
    hits = Index.open(pulled, embedder).query("rain")
    assert [hit.path for hit in hits] == [hit.path for hit in Index.open(out, embedder).query("rain")]
    assert not any(hit.file or hit.missing or hit.changed for hit in hits)

    hits = Index.open(rooted, embedder).query("rain")
    assert [hit.path for hit in hits if hit.changed] == ["bell.flac"]
    assert index(copied, rooted, embedder).unchanged == 4

    write(sounds / "new.wav", 7)
    with pytest.raises(ValueError, match=message):
        index(sounds, pulled)
    assert index(sounds, pulled, str(models["model"])).sounds == 6
    assert Index.open(pulled).query("rain")  # a name that a user has given is trusted from then on
    index(sounds, out)
    again = f"from modeling_wavlink import search\nsearch.main(['push', {out!r}, {repo!r}])"
    run(again)
    files = hub.files(repo, kind="datasets")
    assert files - {".gitattributes"} == {"README.md", "index.json", "data/part-000000.parquet"}
    assert len(hub.history(repo, "datasets")) == 3  # each push was one commit

    folder = hub.root / "datasets" / repo
    card = (hub.find("datasets", repo, "main")[1] / "README.md").read_text()
    hub.commit(folder, "main", {"README.md": f"{card}Mine.\n".encode(), "notes.json": b"{}"})
    run(again)
    _, snapshot = hub.find("datasets", repo, "main")
    assert (snapshot / "README.md").read_text() == f"{card}Mine.\n" and (snapshot / "notes.json").exists()
    hub.commit(folder, "main", {"README.md": card.replace("# An index", "# My index").encode()})
    refused = again.replace("\n", "\ntry:\n ") + "\nexcept ValueError as error: print(error)"
    assert f"README.md of {repo} was edited on the Hub" in run(refused)


COMMIT_BETWEEN = """
from huggingface_hub import CommitOperationAdd, HfApi
from modeling_wavlink import search
real = HfApi.create_commit
def create_commit(self, repo_id, operations, **options):
    HfApi.create_commit = real
    theirs = [CommitOperationAdd("theirs.txt", b"theirs")]
    real(self, repo_id, theirs, commit_message="theirs", repo_type="dataset")
    return real(self, repo_id, operations, **options)
HfApi.create_commit = create_commit
try:
    search.main(["push", {out!r}, "user/shared"])
except OSError as error:
    print("refused:", error)
"""


@pytest.mark.slow
def test_a_push_is_refused_where_another_commit_came_between(folder, tmp_path, hub):
    """What it would delete, and what it would leave, was decided by another commit."""
    out = str(folder)
    assert "refused: the push to" in hub.run(COMMIT_BETWEEN.format(out=out), tmp_path / "home", TOKEN)
    assert hub.files("user/shared", kind="datasets") - {".gitattributes"} == {"theirs.txt"}
    hub.run(f"from modeling_wavlink import search\nsearch.main(['push', {out!r}, 'user/shared'])", tmp_path, TOKEN)
    assert {"theirs.txt", "index.json"} < hub.files("user/shared", kind="datasets")


def test_the_commands_of_a_card_can_be_parsed():
    manifest = Manifest("user/model", "0" * 40, 24, [24], 24, "fp16", 10.0, 5.0, 16000, "")
    card = index_hub._card(manifest, [parquet.Part("part-000000.parquet", 7, "")], "user/sounds")
    commands = [line for line in card.splitlines() if line.startswith("wavlink ")]
    assert len(commands) == 2 and "\n7 windows of 10 s" in card
    for command in commands:
        build_parser().parse_args(shlex.split(command.removeprefix("wavlink ")))
