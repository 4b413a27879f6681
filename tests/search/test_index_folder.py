"""The index on disk: what is written is read, what is damaged is told, and a stop at any step leaves it whole."""

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
def test_what_is_written_is_read(tmp_path, storage):
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


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads where Linux tells them")
def test_no_thread_of_arrow_outlives_a_read(folder):
    """One that lets go of a part's bytes at Python's exit would abort a command that has done its work."""
    script = """
import os, sys
from modeling_wavlink.index_folder import IndexFolder
index = IndexFolder.open(sys.argv[1])
before = len(os.listdir("/proc/self/task"))
for part in index.manifest.parts:
    index.read(part, "embeddings"), index.read(part, "files")
print(len(os.listdir("/proc/self/task")) - before)
"""
    done = run_process([sys.executable, "-c", script, folder], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_datasets_opens_it(folder):
    windows = load_dataset(str(folder), split="train")
    assert windows["path"][:] == list("aabbccdd") and np.shape(windows["embedding"][:]) == (8, DIM)
    files = load_dataset(str(folder), "files", split="train")
    assert files["path"][:] == list("abcd") and set(files["windows"]) == {2}


def test_drop_and_merge_keep_all_else(folder):
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
def test_stopped_at_any_step_it_is_as_before_or_as_after(tmp_path, error):
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


def test_an_index_half_made_is_made_again(tmp_path):
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
def test_a_damaged_part_is_named_and_can_be_forgotten(folder, kind, how):
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


def test_a_manifest_cut_anywhere_or_changed_is_refused_and_nothing_is_touched(folder):
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
def test_a_manifest_that_a_stranger_made_up_is_refused(folder, field, value):
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


def test_two_do_not_write_at_once_but_others_read(folder):
    with IndexFolder.open(folder).writing() as first:
        with pytest.raises(ValueError, match="another process is writing"), IndexFolder.open(folder).writing():
            pass
        assert set(contents(folder)) == set("abcd")
        first.drop(["a"])
        assert set(contents(folder)) == set("bcd")
    with IndexFolder.open(folder).writing() as second:
        assert second.manifest == first.manifest


def test_the_second_to_write_starts_from_what_the_first_left(folder):
    late = IndexFolder.open(folder)
    with IndexFolder.open(folder).writing() as index:
        index.drop(["a"])
    with late.writing():
        late.drop(["b"])
    assert set(contents(folder)) == set("cd")


def test_a_folder_of_something_else_is_not_taken(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there already and is no index"), IndexFolder.create(tmp_path, manifest()):
        pass
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("name", ["README.md", "files/part-000000.parquet", "embeddings/notes.txt"])
def test_a_folder_of_something_else_with_names_of_an_index_is_not_taken(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match="is there already and is no index"), IndexFolder.create(tmp_path, manifest()):
        pass
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("kind", ["embeddings", "files"])
def test_files_of_others_beside_the_parts_stay(folder, kind):
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
def test_a_push_replaces_and_deletes_no_file_of_others(folder, hub, monkeypatch, tmp_path, theirs):
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
    _, place = hub.find("datasets", other, "main")
    assert {name: (place / name).read_bytes() for name in theirs} == theirs
