"""An index is pushed to the Hub and pulled from it."""

import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from tests import pushed_index, searches
from tests.former_index import write_former
from tests.hub_server import TOKEN
from tests.pushed_index import DIM, made, rows_of
from tests.searches import index, write
from wavlink.cli import build_parser
from wavlink.hub_record import LINE, signed
from wavlink.search import copies, parquet
from wavlink.search import hub as index_hub
from wavlink.search.hub import pull, push
from wavlink.search.index import Index
from wavlink.search.listing import Sound
from wavlink.search.manifest import Manifest
from wavlink.search.rows import window_rows
from wavlink.search.table import Table

models, embedder, sounds = searches.models, searches.embedder, searches.sounds
folder, here, pushed = pushed_index.folder, pushed_index.here, pushed_index.pushed


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
