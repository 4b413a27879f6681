"""An index as a table on disk: round trips, damage, writers and readers side by side."""

import stat
import threading
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from tests import index_files
from tests.index_files import DIM, contents, data_files, make_index, manifest, rows_of, stray_files, vectors
from wavlink.defaults import STORAGES
from wavlink.search import rows
from wavlink.search.file_facts import UNKNOWN
from wavlink.search.location import TABLE
from wavlink.search.repair import verified
from wavlink.search.scoring import truncated, vectors_of
from wavlink.search.table import Table

ROOT = Path(__file__).parents[2]

folder = index_files.folder


# --- round trips


@pytest.mark.parametrize("storage", STORAGES)
def test_rows_round_trip(tmp_path, storage):
    with Table.create(tmp_path / "index", manifest(storage)) as made:
        made.append(rows_of(made.manifest, ["x", "y"]))
    read = Table.open(tmp_path / "index")
    assert read.manifest == made.manifest and read.metadata_columns == []
    found = pyarrow.Table.from_batches(read.scan(read.schema.names))
    assert found.equals(rows_of(made.manifest, ["x", "y"]))
    expected = truncated(np.concatenate([vectors("x", 2), vectors("y", 2)]), DIM)
    np.testing.assert_allclose(vectors_of(found["embedding"]), expected, atol=1e-7 if storage == "fp32" else 1e-3)


def test_a_second_vector_of_more_dims_is_kept(tmp_path):
    with Table.create(tmp_path / "index", manifest("fp32", rescore_dim=24)) as table:
        table.append(rows_of(table.manifest, "x"))
    (batch,) = Table.open(tmp_path / "index").scan(["rescore"])
    np.testing.assert_allclose(vectors_of(batch["rescore"]), truncated(vectors("x", 2), 24), atol=1e-7)


def test_files_are_added_up_across_commits(tmp_path):
    """A long file's windows may come in several commits, and the last one says how many there are."""
    made = manifest()
    whole = rows_of(made, ["long"], windows=6)
    open_end = whole.set_column(
        whole.column_names.index("windows"), "windows", pyarrow.array([-1] * 6, pyarrow.int32())
    )
    skipped = rows.skipped_row(made, index_files.Sound("bad", 3, 5, "bad"), "it holds no bytes")
    with Table.create(tmp_path / "index", made) as table:
        for start in (0, 2, 4):
            table.append(open_end.slice(start, 2))
            assert table.files()["long"][2:] == (start + 2, -1, "")
        table.complete("long", 6, 35.0)
        table.append(skipped)
        assert table.files() == {"long": (100, 7, 6, 6, ""), "bad": (3, 5, 0, 0, "it holds no bytes")}
        assert (table.rows(), table.windows()) == (7, 6)
        assert {batch["duration"][0].as_py() for batch in table.scan(["duration"], "path = 'long'")} == {35.0}


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_file_that_lost_a_part_of_its_windows_has_an_unknown_version(tmp_path, lost):
    made = manifest()
    whole = rows_of(made, ["long"], windows=6)
    with Table.create(tmp_path / "index", made) as table:
        for start in (0, 2, 4):
            table.append(whole.slice(start, 2))
        table.drop_fragments([table.dataset.get_fragments()[lost].fragment_id])
        known = table.files()["long"]
    assert known.version == UNKNOWN or known.rows != known.windows  # embedded again, or continued
    assert known.version == UNKNOWN or lost == 2


def test_windows_that_are_there_twice_have_an_unknown_version(tmp_path):
    with Table.create(tmp_path / "index", manifest()) as table:
        for _ in range(2):
            table.append(rows_of(table.manifest, "a"))
        assert table.files()["a"].version == UNKNOWN


NAMES = [
    *(
        "it's",
        'a "b" c',
        "a\nb\r\t",
        "ä/日本語.wav",
        "e\u0301",
        "\\xff",
        "a\\'b",
        "%_*?",
        "-- x",
        "`a`",
        "' OR '1'='1",
    ),
    *("x" * 4000, " ", "\u202e", "🐕", "NULL", "''", "a'; DROP TABLE windows;"),
]


def test_files_of_any_name_are_found_completed_and_removed(tmp_path):
    made = manifest()
    with Table.create(tmp_path / "index", made) as table:
        table.append(rows_of(made, NAMES))
        for number, name in enumerate(NAMES):
            table.complete(name, 2, 100.0 + number)
            assert table.rows(f"duration = {100.0 + number}") == 2
    before = contents(tmp_path / "index")
    assert sorted(before) == sorted(NAMES)
    for name in NAMES:
        with Table.open(tmp_path / "index").writing() as table:
            table.remove([name])
        del before[name]
        assert contents(tmp_path / "index") == before


@pytest.mark.parametrize("name", ["file:x", "memory:", "s3:bucket", "a%20b", "a#b?c", "x/", "."])
def test_an_index_in_a_folder_of_any_name_is_in_that_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with Table.create(name, manifest()) as table:
        table.append(rows_of(table.manifest, "xy"))
    assert (tmp_path / name / TABLE / "data").is_dir()
    assert Table.open(name).windows() == Table.open(tmp_path / name).windows() == 4


def test_an_index_of_a_relative_name_stays_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_index(Path("index"), NAMES)
    opened = Table.open("index")
    monkeypatch.chdir(tmp_path / "index")
    with opened.writing() as table:
        table.remove(NAMES[:1])
    assert opened.newest().windows() == 2 * len(NAMES) - 2 and not (tmp_path / "index/index").exists()


def test_many_files_are_removed_at_once(tmp_path):
    names = [f"{number}.wav" for number in range(2500)]
    make_index(tmp_path / "index", names, windows=1)
    with Table.open(tmp_path / "index").writing() as table:
        table.remove(["unknown", *names[1:]])
    assert list(contents(tmp_path / "index")) == ["0.wav"]


def test_compaction_keeps_rows_and_their_order(tmp_path):
    names = [f"{number:02d}" for number in range(40)]
    folder = make_index(tmp_path / "index", *([name] for name in names))
    before = contents(folder)
    with Table.open(folder).writing() as table:
        table.remove(["03", "04"])
        table.compact()
        assert len(table.dataset.get_fragments()) == 1
    after = contents(folder)
    assert list(after) == [name for name in names if name not in ("03", "04")]
    assert after == {name: before[name] for name in after}
    assert stray_files(folder) == [] and len(data_files(folder)) == 1


def test_an_index_that_is_opened_again_and_again_does_not_grow(folder):
    sizes = []
    for _ in range(3):
        with Table.open(folder).writing() as table:
            table.change(root="/moved")
            table.change(root="/sounds")
        assert stray_files(folder) == []
        sizes.append(table.bytes())
    assert max(sizes) - min(sizes) < 100


@pytest.mark.slow
def test_paths_of_more_than_2_gb_can_be_written(tmp_path):
    """Arrow's own offsets count 2 GB: rows of more are written in several steps."""
    made = manifest()
    one = rows_of(made, ["x" * (1 << 20)], windows=1)
    many = pyarrow.concat_tables([one] * 2100)
    assert many.nbytes > 1 << 31
    with Table.create(tmp_path / "index", made) as table:
        table.append(many)
        assert table.rows() == 2100


# --- writers and readers


def test_second_writer_is_refused_while_readers_read(folder):
    with Table.open(folder).writing() as first:
        with pytest.raises(ValueError, match="another process is writing"), Table.open(folder).writing():
            pass
        assert set(contents(folder)) == set("abcd")
        first.remove(["a"])
        assert set(contents(folder)) == set("bcd")
    with Table.open(folder).writing() as second:
        assert second.manifest == first.manifest


def test_second_writer_starts_from_the_state_of_the_first(folder):
    late = Table.open(folder)
    with Table.open(folder).writing() as table:
        table.remove(["a"])
        table.change(root="/moved")
    with late.writing():
        late.remove(["b"])
    assert set(contents(folder)) == set("cd") and late.manifest.root == "/moved"


def test_one_of_two_who_create_an_index_is_refused(tmp_path):
    with Table.create(tmp_path / "index", manifest()) as first:
        with (
            pytest.raises(ValueError, match="another process is writing"),
            Table.create(tmp_path / "index", manifest()),
        ):
            pass
        first.append(rows_of(first.manifest, "a"))
    with pytest.raises(ValueError, match="index of another process"), Table.create(tmp_path / "index", manifest()):
        pass
    assert set(contents(tmp_path / "index")) == {"a"}


def test_reading_begins_again_where_a_writer_replaced_the_files(folder):
    """It removes old versions, from under the reader."""
    left, seen = list("abc"), []

    def read(table: Table) -> set[str]:
        if left:
            with Table.open(folder).writing() as other:
                other.remove([left.pop()])
                other.dataset.optimize.compact_files()
                other.refresh()
        seen.append(table.dataset.version)
        return {path for batch in table.scan(["path"]) for path in batch["path"].to_pylist()}

    assert Table.reading(folder, read) == {"d"} | {*"abc"[: len(left)]}
    assert len(seen) > 1 and seen == sorted({*seen})


def test_damage_beside_a_writer_is_an_error(folder):
    data_files(folder)[0].unlink()
    opened = []

    def read(table):
        opened.append(table)
        if len(opened) < 3:
            with Table.unverified(folder).writing() as other:
                other.append(rows_of(other.manifest, [f"new {len(opened)}"]))
        return list(table.scan(["path"]))

    with pytest.raises(ValueError, match="is missing from the index"):
        Table.reading(folder, read)


def test_readers_beside_a_writer_see_one_state_each(folder):
    """Each state has all files of a generation or none."""
    stop, wrong, seen = threading.Event(), [], set()

    def read():
        while not stop.is_set():
            try:
                names = Table.reading(
                    folder, lambda t: [p for b in t.scan(["path"], "path != 'a'") for p in b["path"].to_pylist()]
                )
            except Exception as error:
                wrong.append(error)
                return
            generations = {name.split("-")[0] for name in names if "-" in name}
            seen.add(tuple(sorted(generations)))
            if len([name for name in names if "-" in name]) != 10 * len(generations):
                wrong.append(names)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(12):
        with Table.open(folder).writing() as table:
            table.append(rows_of(table.manifest, [f"{number}-{part}" for part in range(5)]))
            if number % 3 == 2:
                table.remove([f"{number - 1}-{part}" for part in range(5)])
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong and len(seen) > 1


def test_an_index_without_a_right_to_write_can_be_read(folder):
    """Nothing is locked or noted by reading."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    state = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    try:
        assert set(contents(folder)) == set("abcd") and verified(folder)[1] == {}
        assert state == {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    finally:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)


# --- folders of others


@pytest.mark.parametrize("name", ["notes.txt", "README.md", "data/part-000000.parquet", "checksums.jsonl"])
def test_create_refuses_a_folder_of_other_files(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match="is there already and is no index"), Table.create(tmp_path, manifest()):
        pass
    assert (tmp_path / name).read_text() == "mine" and len([*tmp_path.iterdir()]) == 1


def test_other_files_beside_the_table_are_kept(folder):
    for name in ("notes.txt", "mine/data.lance"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    with Table.open(folder).writing() as table:
        table.remove(["a"])
        table.compact()
    assert stray_files(folder) == ["mine/data.lance", "notes.txt"]


def test_a_table_of_another_program_is_refused(tmp_path):
    import lance

    lance.write_dataset(pyarrow.table({"a": [1]}), str(tmp_path / TABLE))
    with pytest.raises(ValueError, match="is a table of another program: index the sounds into another folder"):
        Table.open(tmp_path)


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, Path.touch])
def test_no_index_is_refused(tmp_path, make):
    make(tmp_path / "index")
    with pytest.raises(ValueError, match="is no index: make one with `wavlink index"):
        Table.open(tmp_path / "index")
    assert (tmp_path / "index").exists() == (make in (Path.mkdir, Path.touch))
