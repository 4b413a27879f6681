"""An index as a table on disk: round trips, damage, writers and readers side by side."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from tests import index_files
from tests.index_files import DIM, contents, data_files, make_index, manifest, rows_of, signed, stray_files, vectors
from tests.processes import run_process
from wavlink.defaults import STORAGES
from wavlink.search import checksums, rows, table_errors
from wavlink.search.file_facts import UNKNOWN
from wavlink.search.location import TABLE
from wavlink.search.manifest import METADATA
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


# --- damage


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


DAMAGE = ["truncated", "emptied", "flipped", "missing"]


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_rows_are_named_and_can_be_dropped(folder, how):
    before = contents(folder)
    damage(path := data_files(folder)[1], how)
    for read in (Table.open, verified):
        with pytest.raises(ValueError, match=f"{path.name} is (damaged|missing).*verify INDEX --drop"):
            read(folder)
    _, dropped = verified(folder, drop=True)
    assert dropped == {f"data/{path.name}": ["c"] if how == "flipped" else dropped[f"data/{path.name}"]}
    assert contents(folder) == {name: before[name] for name in "abd"}
    assert verified(folder)[1] == {} and stray_files(folder) == []


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_list_of_removed_rows_is_named_and_can_be_dropped(folder, how):
    """Which of the file's rows were removed is lost: all of them are dropped."""
    before = contents(folder)
    with Table.open(folder).writing() as table:
        table.remove(["a"])
    (path,) = (folder / TABLE / "_deletions").iterdir()
    damage(path, how)
    with pytest.raises(ValueError, match=f"{path.name} is (damaged|missing)"):
        Table.open(folder)
    _, dropped = verified(folder, drop=True)
    assert list(dropped) == [f"_deletions/{path.name}"]
    assert contents(folder) == {name: before[name] for name in "cd"}
    assert verified(folder)[1] == {}


@pytest.mark.parametrize("kind", ["_transactions", "checksums.jsonl"])
@pytest.mark.parametrize("how", DAMAGE)
def test_damage_beside_the_rows_loses_none(folder, kind, how):
    before = contents(folder)
    path = folder / kind if kind.endswith("jsonl") else next((folder / TABLE / kind).iterdir())
    damage(path, how)
    if (kind, how) != ("checksums.jsonl", "missing"):  # then each file is taken as it is
        with pytest.raises(ValueError, match=f"{path.name} is (damaged|missing).*verify INDEX --drop"):
            Table.open(folder)
    verified(folder, drop=True)
    assert contents(folder) == before and verified(folder)[1] == {}
    with Table.open(folder).writing() as table:
        table.append(rows_of(table.manifest, "e"))
    assert set(contents(folder)) == set("abcde") and verified(folder)[1] == {}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_version_is_refused_and_nothing_is_written(folder, how):
    (path,) = (folder / TABLE / "_versions").glob("*.manifest")
    damage(path, how)
    if how == "missing":
        (folder / TABLE / "_versions/latest_version_hint.json").unlink()
    state = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for attempt in (Table.open, verified, lambda index: verified(index, drop=True)):
        with pytest.raises(ValueError, match=str(folder)):
            attempt(folder)
    with pytest.raises(ValueError, match=r"is there already|damaged"), Table.create(folder, manifest()):
        pass
    assert state == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_flipped_bit_of_a_version_is_noticed(folder):
    """It holds no checksum of its own, so that a changed number might be believed."""
    (path,) = (folder / TABLE / "_versions").glob("*.manifest")
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path.name} is damaged"):
            Table.open(folder)
    path.write_bytes(whole)
    assert set(contents(folder)) == set("abcd")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 3}, "it is of format 3, this program knows 2"),
        ({"storage": "int4"}, "damaged"),
        ({"dim": 0}, "damaged"),
        ({"dim": 25}, "damaged"),
        ({"extra": 1}, "damaged"),
        ({"dim": 11}, "has other columns than its manifest says"),
        ({"storage": "fp32"}, "has other columns than its manifest says"),
        ({"rescore_dim": 24}, "has other columns than its manifest says"),
    ],
    ids=str,
)
def test_forged_manifest_is_refused(folder, fields, message):
    """Its checksum right: whoever writes the file can write that too."""
    signed(folder, **fields)
    with pytest.raises(ValueError, match=message):
        Table.open(folder)


def test_changed_manifest_is_refused(folder):
    dataset = Table.open(folder).dataset
    text = dataset.schema.metadata[METADATA].decode()
    wrong = [text[:length] for length in range(0, len(text), 37)]
    wrong += [text.replace('"model": "model"', '"model": "m0del"'), "[]", "null", "[" * 100_000, "\\ud800"]
    for content in wrong:
        dataset.update_schema_metadata({METADATA.decode(): content})
        with pytest.raises(ValueError, match="says of its model is damaged"):
            Table.open(folder)
    dataset.update_schema_metadata({METADATA.decode(): text})
    assert set(contents(folder)) == set("abcd")


@pytest.mark.parametrize("error", [MemoryError("no memory"), pyarrow.ArrowMemoryError("malloc of size 64 failed")])
def test_memory_error_is_not_treated_as_damage(folder, monkeypatch, error):
    def digest(path):
        raise error

    monkeypatch.setattr(checksums, "sha256_of", digest)
    with pytest.raises(MemoryError):
        verified(folder, drop=True)
    monkeypatch.undo()
    with pytest.raises(MemoryError), table_errors.explained(str(folder)):
        raise error
    assert set(contents(folder)) == set("abcd")


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


# --- stopped at any moment

WRITER = """
import sys
from tests.index_files import manifest, rows_of
from wavlink.search.table import Table
from wavlink.search.table_place import has_table
folder = sys.argv[1]
print("begin", flush=True)
while True:
    if not has_table(folder):
        with Table.create(folder, manifest()):
            pass
    with Table.open(folder).writing() as table:
        table.remove([*table.files()])
        for name in "abc":
            table.append(rows_of(table.manifest, [name + "1", name + "2"]))
        table.remove(["a1"])
        table.dataset.optimize.compact_files()
        table.refresh()
        table.change(root="/moved")
        table.remove(["a2", "b1", "b2", "c1", "c2"])
        table.change(root="/sounds")
"""


@pytest.mark.slow
def test_killed_writer_leaves_a_state_between_two_commits(tmp_path):
    """SIGKILL at random moments; the next writer removes what the killed one has left."""
    folder, random, states = tmp_path / "index", np.random.default_rng(0), set()
    for _ in range(25):
        command = [sys.executable, "-c", WRITER, str(folder)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"begin\n"
            time.sleep(random.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
        if not (folder / TABLE / "_versions").is_dir():
            continue
        with suppress(ValueError):  # killed before the first version
            found = contents(folder)
            states.add(tuple(sorted(found)))
            with Table.open(folder).writing() as table:
                pass
            assert contents(folder) == found and stray_files(folder) == []
            assert verified(folder)[1] == {} and table.rows() == 2 * len(found)
    whole = [["a1", "a2"], ["a1", "a2", "b1", "b2"], ["a1", "a2", "b1", "b2", "c1", "c2"], []]
    whole.append(["a2", "b1", "b2", "c1", "c2"])
    assert states <= {tuple(names) for names in whole} and len(states) > 2


FULL = """
import resource, signal, sys
from tests.index_files import contents, rows_of
from wavlink.search.table import Table
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
table = Table.open(sys.argv[1])
changes = {
    "append": lambda: table.append(rows_of(table.manifest, ["new.wav"], 200)),
    "complete": lambda: table.complete("a", 2, 15.0),
    "remove": lambda: table.remove(["a"]),
    "compact": table.compact,
    "change": lambda: table.change(root="/moved"),
}
wanted, hard = changes[sys.argv[2]], resource.getrlimit(resource.RLIMIT_FSIZE)[1]
before = contents(sys.argv[1])
for limit in range(0, 1 << 20, int(sys.argv[3])):
    try:
        with table.writing():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            wanted()
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        print("enough")
        break
    except OSError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert error.errno in (27, 28), error
        assert contents(sys.argv[1]) == before
        print("full")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "step"), [("append", 700), ("complete", 100), ("remove", 100), ("compact", 400), ("change", 200)]
)
def test_full_disk_is_an_oserror_and_the_state_before_counts(tmp_path, change, step):
    """No file may grow beyond a limit: also one that cuts off the last bytes of a file alone."""
    folder = make_index(tmp_path / "index", *"abcdefghijklmnopqr")
    before = contents(folder)
    command = [sys.executable, "-c", FULL, str(folder), change, str(step)]
    done = run_process(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    *full, enough = done.stdout.split()
    assert {*full} == {"full"} and len(full) > 9 and enough == "enough"
    expected = {*before, "new.wav"} if change == "append" else {*before} - {"a"} if change == "remove" else {*before}
    assert set(contents(folder)) == expected and verified(folder)[1] == {} and stray_files(folder) == []


def test_a_file_that_is_shorter_than_its_commit_says_is_damaged(folder):
    """Also where its checksum was noted after it was cut off."""
    before = contents(folder)
    path = data_files(folder)[1]
    os.truncate(path, path.stat().st_size - 1)
    (folder / "checksums.jsonl").unlink()
    with pytest.raises(ValueError, match=f"{path.name} is damaged, it is shorter than what was written"):
        Table.open(folder)
    assert list(verified(folder, drop=True)[1]) == [f"data/{path.name}"]
    assert contents(folder) == {name: before[name] for name in "abd"}
