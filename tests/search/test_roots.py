"""An index whose paths become relative to another folder: nothing is embedded again, and no old path stays."""

import os
import shutil

import numpy as np
import pytest

from tests import searches
from tests.index_files import make_index
from tests.searches import SECONDS, assert_same_rows, index, rows, write
from wavlink.search import column_updates
from wavlink.search.index import Index
from wavlink.search.metadata import described, update
from wavlink.search.roots import change_root
from wavlink.search.table import Table
from wavlink.search.vector_index import candidates

models, embedder, sounds = searches.models, searches.embedder, searches.sounds


def version(folder) -> int:
    return Table.open(folder).dataset.version


def test_a_root_above_gives_new_paths_in_one_commit_without_embedding(sounds, tmp_path, embedder, monkeypatch):
    out = tmp_path / "index"
    (sounds / "broken.wav").write_bytes(b"no sound")
    (sounds / "m.csv").write_text("file_name,label\nbell.flac,bell\n")
    index(sounds, out, embedder, metadata=sounds / "m.csv")
    before, was = rows(out), version(out)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        report = index("sounds", out, root=".")  # and no model is loaded
        assert (report.added, report.changed, report.removed, report.unchanged) == (0, 0, 0, len(SECONDS))
        assert [*report.skipped] == ["sounds/broken.wav"]
        assert version(out) == was + 1
    after = rows(out)
    assert after.keys() == {(f"sounds/{path}", *times) for path, *times in before}
    for (path, start, end), vector in before.items():
        assert (after[f"sounds/{path}", start, end] == vector).all()
    assert Table.open(out).manifest.root == str(tmp_path)
    assert described(Table.open(out))["sounds/bell.flac"] == {"label": "bell"}
    assert not any(hit.missing or hit.changed for hit in Index.open(out, embedder).query("a dog"))
    write(tmp_path / "more/new.wav", 7)
    report = index("more", out, embedder)
    assert (report.added, report.unchanged, report.sounds) == (1, 0, 6)
    index("sounds", tmp_path / "anew", embedder, root=".")
    index("more", tmp_path / "anew", embedder)
    assert_same_rows(out, tmp_path / "anew")


def test_a_root_below_takes_the_folder_off_the_paths(sounds, tmp_path, embedder):
    out = tmp_path / "index"
    index(sounds, out, embedder, root=str(tmp_path))
    report = index(sounds, out, root=str(sounds))
    assert (report.unchanged, report.removed, {path for path, *_ in rows(out)}) == (5, 0, {*SECONDS})
    with pytest.raises(ValueError, match=r"3 of the 5 sounds of .* are not below .*/dog, such as bell.flac: leave --"):
        index(sounds / "dog", out, root=str(sounds / "dog"))
    assert Table.open(out).manifest.root == str(sounds) and len(rows(out)) == 9


def test_a_moved_folder_keeps_its_paths_also_where_it_is_moved_up(sounds, tmp_path, embedder):
    out, up = tmp_path / "index", tmp_path / "sounds"
    shutil.move(sounds, tmp_path / "deep")
    (tmp_path / "sounds").mkdir()
    shutil.move(tmp_path / "deep", up / "deep")
    index(up / "deep", out, embedder)
    for path in (up / "deep").iterdir():
        shutil.move(path, up)
    report = index(up, out, root=str(up))
    assert (report.unchanged, report.removed) == (5, 0) and {path for path, *_ in rows(out)} == {*SECONDS}


def test_a_link_to_the_folder_is_no_other_folder(sounds, tmp_path, embedder):
    out = tmp_path / "index"
    index(sounds, out, embedder)
    os.symlink(sounds, tmp_path / "link")
    assert index(tmp_path / "link", out, root=str(tmp_path / "link")).unchanged == 5
    os.symlink(tmp_path, tmp_path / "above")
    report = index(tmp_path / "above/sounds", out, root=str(tmp_path / "above"))
    assert report.unchanged == 5 and {path for path, *_ in rows(out)} == {f"sounds/{name}" for name in SECONDS}


def test_a_folder_that_holds_none_of_the_sounds_is_refused(sounds, tmp_path, embedder):
    out = tmp_path / "index"
    index(sounds, out, embedder)
    write(tmp_path / "other/new.wav", 7)
    before = version(out)
    with pytest.raises(
        ValueError, match=r"none of the 5 sounds of .*index is in .*/other, such as bell.flac: name by"
    ):
        index(tmp_path / "other", out, embedder, root=str(tmp_path / "other"))
    shutil.move(sounds, tmp_path / "other/sounds")  # moved, and at the same time relative to another folder
    with pytest.raises(ValueError, match="name by --root the folder that they are in now"):
        index(tmp_path / "other", out, embedder, root=str(tmp_path / "other"))
    assert version(out) == before
    assert index(tmp_path / "other/sounds", out, root=str(tmp_path / "other/sounds")).unchanged == 5
    assert index(tmp_path / "other", out, embedder, root=str(tmp_path / "other")).unchanged == 5


def test_names_of_every_kind_are_renamed(tmp_path):
    """Also of a table whose columns have changed their types, and which has lost rows."""
    names = ["a", "it's", "ä/日本語.wav", "a\nb", "x" * 200, "sounds/a"]
    folder = make_index(tmp_path / "index", names[:3], names[3:])
    for name in names:
        (tmp_path / "sounds" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sounds" / name).write_bytes(b"x" * 100)
    with Table.open(folder).writing() as table:
        table.change(root=str(tmp_path / "sounds"))
        update(table, {name: {"n": 1} for name in names}, ["n"])
        update(table, {"a": {"n": "text"}}, ["n"])
        table.remove(["it's"])
        change_root(table, str(tmp_path))
        assert table.manifest.root == str(tmp_path)
    table = Table.open(folder)
    assert {*described(table)} == {f"sounds/{name}" for name in names if name != "it's"}
    assert described(table)["sounds/a"] == {"n": "text"} and table.damaged() == {}


def test_a_vector_index_stays(tmp_path):
    folder = make_index(tmp_path / "index", [f"{number}.wav" for number in range(300)], windows=1)
    for number in range(300):
        (tmp_path / "s").mkdir(exist_ok=True)
        (tmp_path / f"s/{number}.wav").write_bytes(b"x" * 100)
    with Table.open(folder).writing() as table:
        table.dataset.create_index("embedding", "IVF_SQ", metric="cosine", num_partitions=2, name="embedding_idx")
        table.refresh()
        table.change(root=str(tmp_path / "s"), probes=2)
        change_root(table, str(tmp_path))
        assert table.dataset.stats.index_stats("embedding_idx")["num_unindexed_rows"] == 0
        found = candidates(table, np.ones(12, np.float32), 5, 2, ["path"])
        assert len(found) == 5 and all(path.startswith("s/") for path in found["path"].to_pylist())


def test_a_kill_before_the_commit_leaves_the_old_paths(sounds, tmp_path, embedder, monkeypatch):
    out = tmp_path / "index"
    index(sounds, out, embedder)
    before = rows(out)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(column_updates.Table, "commit_operation", killed)
        with pytest.raises(KeyboardInterrupt):
            index(sounds, out, root=str(tmp_path))
    assert rows(out).keys() == before.keys() and Table.open(out).manifest.root == str(sounds)
    assert index(sounds, out, root=str(tmp_path)).unchanged == 5


def test_a_table_whose_columns_another_program_has_changed_is_refused(tmp_path):
    folder = make_index(tmp_path / "index", ["a"])
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds/a").write_bytes(b"x" * 100)
    with Table.open(folder).writing() as table:
        table.change(root=str(tmp_path / "sounds"))
        table.dataset.add_columns({"mine": "1"})
        table.dataset.add_columns({"label": "'x'"})
        table.dataset.drop_columns(["mine"])
        table.dataset.checkout_latest()
        with pytest.raises(ValueError, match="another program has changed the columns of .*: index into another"):
            change_root(table, str(tmp_path))
