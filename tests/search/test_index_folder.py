"""The index on disk: round trips, damage, and consistency after a stop at any step."""

import dataclasses
import errno
import json
import os
import sys
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from huggingface_hub import HfApi, constants

from tests import index_files
from tests.hub_server import TOKEN
from tests.index_files import DIM, contents, manifest, tables
from tests.processes import run_process
from wavlink.search import store as index_folder
from wavlink.search import transfer as index_copies
from wavlink.search.manifest import checksum
from wavlink.search.quantization import STORAGES, encode
from wavlink.search.store import IndexFolder

ROOT = Path(__file__).parents[2]

folder = index_files.folder


class Stopped(BaseException):
    """As SIGKILL: nothing catches it."""


@pytest.mark.parametrize("storage", STORAGES)
def test_parts_round_trip(tmp_path, storage):
    with IndexFolder.create(tmp_path / "index", manifest(storage)) as index:
        windows, files = tables(index.manifest, ["x", "y"])
        index.append(windows, files)
    read = IndexFolder.open(tmp_path / "index")
    assert read.manifest == index.manifest
    (part,) = read.manifest.parts
    assert read.read(part, "embeddings").equals(windows) and read.files().equals(files)
    codes = read.manifest.codes(read.read(part, "embeddings"))
    expected = np.concatenate([np.random.default_rng([ord(name)]).normal(size=(2, DIM)) for name in "xy"])
    np.testing.assert_array_equal(codes, encode(expected, DIM, storage))
    assert codes.dtype == encode(expected, DIM, storage).dtype


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_no_thread_of_arrow_outlives_a_read(folder):
    """One that lets go of a part's bytes at Python's exit would abort a command that has done its work."""
    script = """
import os, sys
from wavlink.search.store import IndexFolder
index = IndexFolder.open(sys.argv[1])
before = len(os.listdir("/proc/self/task"))
for part in index.manifest.parts:
    index.read(part, "embeddings"), index.read(part, "files")
print(len(os.listdir("/proc/self/task")) - before)
"""
    done = run_process([sys.executable, "-c", script, folder], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_load_dataset_reads_an_index(folder):
    windows = load_dataset(str(folder), split="train")
    assert windows["path"][:] == list("aabbccdd") and np.shape(windows["embedding"][:]) == (8, DIM)
    files = load_dataset(str(folder), "files", split="train")
    assert files["path"][:] == list("abcd") and set(files["windows"]) == {2}


def test_drop_and_merge_keep_other_files(folder):
    before = contents(folder)
    with IndexFolder.open(folder).writing() as index:
        index.drop(["a", "d", "unknown"])
        assert [part.rows for part in index.manifest.parts] == [2, 2]
        assert contents(folder) == {name: before[name] for name in "bc"}
        index.append(*tables(index.manifest, "e"))
        index.merge()
    assert [part.rows for part in index.manifest.parts] == [6]
    assert contents(folder) == {name: before[name] for name in "bc"} | {"e": contents(folder)["e"]}
    on_disk = {path.name for path in folder.rglob("part-*")}
    assert on_disk == {part.name for part in index.manifest.parts}  # what it replaced is gone


def test_merge_stops_at_the_size_of_a_part(folder, monkeypatch):
    index = IndexFolder.open(folder)
    monkeypatch.setattr(index_folder, "_PART_BYTES", sum(part.bytes for part in index.manifest.parts[:2]))
    before = contents(folder)
    with index.writing():
        index.merge()
        assert [part.rows for part in index.manifest.parts] == [6, 2]
        index.merge()
    assert [part.rows for part in index.manifest.parts] == [6, 2] and contents(folder) == before


@contextmanager
def failing(error: BaseException, number: int):
    """The call of that number, of those that bring something to the disk, raises; None follow a SIGKILL."""
    left = [number]

    def after(real):
        def call(*arguments):
            left[0] -= 1
            if left[0] < 0:
                raise error
            return real(*arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "fsync"):
            patch.setattr(os, name, after(getattr(os, name)))
        yield


@pytest.mark.parametrize(
    "error", [Stopped(), OSError(errno.ENOSPC, "No space left on device")], ids=["killed", "full"]
)
def test_interrupted_drop_leaves_the_state_before_or_after(tmp_path, error):
    states, ended = [], False
    while not ended:
        folder = tmp_path / str(len(states))
        with IndexFolder.create(folder, manifest()) as index:
            index.append(*tables(index.manifest, "abc"))
        before = contents(folder)
        after = {name: before[name] for name in "ac"}
        try:
            with failing(error, len(states)), IndexFolder.open(folder).writing() as index:
                index.drop(["b"])
            ended = True
        except type(error):
            pass
        states.append(contents(folder))
        assert states[-1] in (before, after)
        with IndexFolder.open(folder).writing() as index:
            index.drop(["b"])
        assert contents(folder) == after
        assert {path.name for path in folder.rglob("*part-*")} == {part.name for part in index.manifest.parts}
        assert not list(folder.rglob("*unfinished"))
    assert len(states) > 9 and before in states[:-1] and after in states[:-1]


def test_create_after_an_interrupted_create(tmp_path):
    for number in range(4):
        with suppress(Stopped), failing(Stopped(), number), IndexFolder.create(tmp_path / "index", manifest()):
            pass
        if not (tmp_path / "index/index.json").exists():
            with pytest.raises(ValueError, match="is no index, it has no index.json"):
                IndexFolder.open(tmp_path / "index")
    with IndexFolder.create(tmp_path / "index", manifest()) as index:
        index.append(*tables(index.manifest, "a"))
    assert set(contents(tmp_path / "index")) == {"a"}


def damage(path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[len(content) // 2 :]
    elif how == "emptied":
        content.clear()
    else:
        content[len(content) // 2] ^= 1
    path.unlink()
    if how != "missing":
        path.write_bytes(content)


@pytest.mark.parametrize("kind", ["embeddings", "files"])
@pytest.mark.parametrize("how", ["truncated", "emptied", "flipped", "missing"])
def test_damaged_part_is_named_and_can_be_dropped(folder, kind, how):
    before = contents(folder)
    part = IndexFolder.open(folder).manifest.parts[1]
    damage(folder / kind / part.name, how)
    index = IndexFolder.open(folder)
    with pytest.raises(ValueError, match=f"{kind}/{part.name} is (damaged|missing)"):
        index.read(part, kind)
    assert list(index.damaged()) == [part.name]
    with index.writing():
        index.drop_parts(index.damaged())
    assert contents(folder) == {name: before[name] for name in "abd"}
    assert index.damaged() == {}


def test_truncated_or_changed_manifest_is_refused_without_writing(folder):
    path = folder / "index.json"
    whole = path.read_bytes()
    parts = {part: part.read_bytes() for part in folder.rglob("part-*")}
    wrong = [whole[:length] for length in range(0, len(whole) - 1, 37)]
    wrong += [whole.replace(b'"dim": 12', b'"dim": 11'), whole.replace(b"model", b"m0del", 1), b"[]", b"null", b"\xff"]
    for content in wrong:
        assert content != whole
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"index\.json is damaged"):
            IndexFolder.open(folder)
        with pytest.raises(ValueError, match=r"is there already|damaged"), IndexFolder.create(folder, manifest()):
            pass
    assert parts == {part: part.read_bytes() for part in folder.rglob("part-*")}
    path.write_bytes(whole)
    assert set(contents(folder)) == set("abcd")


@pytest.mark.parametrize(
    ("field", "value"),
    [("format", 2), ("storage", "int4"), ("dim", 0), ("dim", 25), ("parts", [{"name": "../x"}]), ("extra", 1)],
)
def test_forged_manifest_is_refused(folder, field, value):
    """Its checksum right: whoever writes the file can write that too."""
    fields = json.loads((folder / "index.json").read_text())
    del fields["sha256"]
    if field == "parts":
        value = [fields["parts"][0] | value[0]]
    fields[field] = value
    (folder / "index.json").write_text(json.dumps(fields | {"sha256": checksum(fields)}))
    with pytest.raises(
        ValueError, match="it is of format 2, this program knows 1" if field == "format" else "damaged"
    ):
        IndexFolder.open(folder)


def test_a_part_with_other_columns_is_refused(folder):
    """Though its checksum is that of the manifest: dims that are not the index's."""
    index = IndexFolder.open(folder)
    wider = dataclasses.replace(index.manifest, dim=DIM * 2)
    with index.writing():
        values = np.ones((2, DIM * 2), np.int8)
        index.append(wider.windows("ee", [0.0, 5.0], [10.0, 15.0], values), tables(index.manifest, "e")[1])
    with pytest.raises(ValueError, match="has other columns or rows"):
        index.read(index.manifest.parts[-1], "embeddings")


def test_second_writer_is_refused_while_readers_read(folder):
    with IndexFolder.open(folder).writing() as first:
        with pytest.raises(ValueError, match="another process is writing"), IndexFolder.open(folder).writing():
            pass
        assert set(contents(folder)) == set("abcd")
        first.drop(["a"])
        assert set(contents(folder)) == set("bcd")
    with IndexFolder.open(folder).writing() as second:
        assert second.manifest == first.manifest


def test_second_writer_starts_from_the_state_of_the_first(folder):
    late = IndexFolder.open(folder)
    with IndexFolder.open(folder).writing() as index:
        index.drop(["a"])
    with late.writing():
        late.drop(["b"])
    assert set(contents(folder)) == set("cd")


def test_create_refuses_a_folder_of_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there already and is no index"), IndexFolder.create(tmp_path, manifest()):
        pass
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("name", ["README.md", "files/part-000000.parquet", "embeddings/notes.txt"])
def test_create_refuses_other_files_with_names_of_an_index(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match="is there already and is no index"), IndexFolder.create(tmp_path, manifest()):
        pass
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("kind", ["embeddings", "files"])
def test_other_files_beside_the_parts_are_kept(folder, kind):
    names = ["part-000000.parquet.bak", "my-part-000009.parquet", ".part-000000.parquet.swp", "notes.txt"]
    ours = ["part-000999.parquet", ".part-000999.parquet.unfinished", ".part-000999.parquet.0a1b2c.unfinished"]
    for name in [*names, *ours]:
        (folder / kind / name).write_text("mine")
    with IndexFolder.open(folder).writing() as index:
        index.drop(["a"])
        index.merge()
    left = {path.name for path in (folder / kind).iterdir()} - {part.name for part in index.manifest.parts}
    assert left == {*names}


@pytest.mark.parametrize(
    "theirs",
    [
        {"index.json": b'{"weight_map": {}}'},
        {"index.json": b"{}", "files/part-000123.parquet": b"theirs"},
        {"files/part-000003.parquet": b"theirs"},
    ],
)
def test_push_neither_replaces_nor_deletes_files_of_others(folder, hub, monkeypatch, tmp_path, theirs):
    ours, other = f"user/ours-{tmp_path.name}", f"user/other-{tmp_path.name}"
    with IndexFolder.open(folder).writing() as index:
        index.merge()
    api = partial(HfApi, endpoint=hub.endpoint, token=TOKEN)
    monkeypatch.setattr(index_copies, "HfApi", api)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    index_copies.push(folder, ours)
    with IndexFolder.open(folder).writing() as index:
        index.drop(["a"])
    index_copies.push(folder, ours)
    names = {f"{kind}/{part.name}" for kind in ("embeddings", "files") for part in index.manifest.parts}
    assert hub.files(ours, kind="datasets") - {".gitattributes"} == {"README.md", "index.json", *names}

    theirs = {name.replace("part-000003", index.manifest.parts[0].name[:11]): text for name, text in theirs.items()}
    api().create_repo(other, repo_type="dataset")
    hub.commit(hub.root / "datasets" / other, "main", theirs)
    with pytest.raises(ValueError, match="of no earlier push"):
        index_copies.push(folder, other)
    _, snapshot = hub.find("datasets", other, "main")
    assert {name: (snapshot / name).read_bytes() for name in theirs} == theirs
