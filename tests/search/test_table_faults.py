"""A table that is damaged, forged, stopped at any moment, or on a full disk."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from tests import index_files
from tests.index_files import contents, data_files, make_index, manifest, rows_of, signed, stray_files
from tests.processes import run_process
from wavlink.search import checksums, table_errors
from wavlink.search import command as search
from wavlink.search.location import TABLE
from wavlink.search.manifest import METADATA
from wavlink.search.repair import verified
from wavlink.search.table import Table

ROOT = Path(__file__).parents[2]

folder = index_files.folder


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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
@pytest.mark.parametrize("what", ["pipe", "device"])
def test_what_reads_without_end_is_refused(folder, what):
    """Files of rows and of versions, checksums and what no index has: reading them would never end.

    Links to themselves, which cannot be looked at, hide none of them.
    """
    version = next((folder / TABLE / "_versions").glob("*.manifest"))
    places = (folder, folder / TABLE, folder / TABLE / "data", version.parent)
    loops = [place / f"loop{number}" for place in places for number in range(8)]
    for loop in loops:
        loop.symlink_to(loop.name)
    for path in (version, data_files(folder)[1], folder / "checksums.jsonl", folder / TABLE / "other"):
        kept = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        os.mkfifo(path) if what == "pipe" else path.symlink_to("/dev/zero")
        for read in (Table.open, verified):
            with pytest.raises(ValueError, match=f"{re.escape(str(path))} is no file but a pipe"):
                read(folder)
        path.unlink()
        if kept is not None:
            path.write_bytes(kept)
    for loop in loops:
        loop.unlink()
    assert [*contents(folder)]


@pytest.mark.parametrize("what", ["folder", "loop", "nowhere"])
def test_a_file_that_is_a_folder_or_a_link_to_no_file_is_refused_by_name_or_not_needed(folder, what):
    before, files = contents(folder), [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        kept = path.read_bytes()
        path.unlink()
        path.mkdir() if what == "folder" else path.symlink_to(path.name if what == "loop" else "nowhere")
        for read in (contents, verified):
            try:
                found = read(folder)
                assert read != contents or found == before, path
            except ValueError as error:
                assert str(folder) in str(error), path
        path.rmdir() if what == "folder" else path.unlink()
        path.write_bytes(kept)
    assert contents(folder) == before


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
        with pytest.raises(ValueError, match=str(folder)) as error:
            attempt(folder)
        assert "--drop" not in str(error.value)  # which does not help
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

    monkeypatch.setattr(checksums, "digest_of", digest)
    with pytest.raises(MemoryError):
        verified(folder, drop=True)
    monkeypatch.undo()
    with pytest.raises(MemoryError), table_errors.explained(str(folder)):
        raise error
    assert set(contents(folder)) == set("abcd")


# --- stopped at any moment

WRITER = """
import sys
from tests.index_files import manifest, rows_of
from wavlink.search.table import Table
from wavlink.search.table_place import has_table
folder = sys.argv[1]
steps = [
    lambda table: table.remove([*table.files()]),
    *(lambda table, name=name: table.append(rows_of(table.manifest, [name + "1", name + "2"])) for name in "abc"),
    lambda table: table.remove(["a1"]),
    lambda table: (table.dataset.optimize.compact_files(), table.refresh()),
    lambda table: table.change(root="/moved"),
    lambda table: table.remove(["a2", "b1", "b2", "c1", "c2"]),
    lambda table: table.change(root="/sounds"),
]
print("begin", flush=True)
while True:
    if not has_table(folder):
        with Table.create(folder, manifest()):
            pass
    with Table.open(folder).writing() as table:
        for step in steps:
            step(table)
            print("done", flush=True)
"""


@pytest.mark.slow
def test_killed_writer_leaves_a_state_between_two_commits(tmp_path):
    """SIGKILL within a random step; the next writer removes what the killed one has left."""
    folder, random, states = tmp_path / "index", np.random.default_rng(0), set()
    for _ in range(25):
        command = [sys.executable, "-c", WRITER, str(folder)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            for _ in range(random.integers(1, 12)):
                assert process.stdout.readline() in (b"begin\n", b"done\n")
            time.sleep(random.uniform(0, 0.02))
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


def test_verify_says_of_how_many_files_no_checksum_is_noted(folder, capsys):
    (folder / "checksums.jsonl").unlink()
    search.main(["verify", str(folder)])
    assert re.search(r"of [1-9]\d* of these files no checksum is noted", capsys.readouterr().out)
    with Table.open(folder).writing():
        pass
    search.main(["verify", str(folder)])
    assert "no checksum" not in capsys.readouterr().out
