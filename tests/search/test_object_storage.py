"""An index in object storage, against an S3 server on loopback: several writers without a lock, several readers."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.torch import load_file, save_file

from tests import pushed_index
from tests.conftest import RATE, tone
from tests.object_storage import s3_server
from tests.processes import run_process

pytest.importorskip("lance", reason="of the optional extra search")
pytest.importorskip("moto.server", reason="of the optional extra dev")

import pyarrow  # noqa: E402
from pyarrow.fs import S3FileSystem  # noqa: E402

from wavlink import cli  # noqa: E402
from wavlink.search import concurrent_writes  # noqa: E402
from wavlink.search.build import index_sounds  # noqa: E402
from wavlink.search.column_updates import describe  # noqa: E402
from wavlink.search.copies import publish  # noqa: E402
from wavlink.search.index import Index  # noqa: E402
from wavlink.search.listing import Sound  # noqa: E402
from wavlink.search.manifest import Manifest  # noqa: E402
from wavlink.search.metadata import update  # noqa: E402
from wavlink.search.migration import migrate  # noqa: E402
from wavlink.search.repair import verified  # noqa: E402
from wavlink.search.roots import change_root  # noqa: E402
from wavlink.search.rows import skipped_row, window_rows  # noqa: E402
from wavlink.search.table import Table  # noqa: E402
from wavlink.search.table_place import has_table  # noqa: E402

here = pushed_index.here
ROOT = Path(__file__).parents[2]
TIMES = {"window": 2.0, "hop": 1.0}
MANIFEST = Manifest("model", "sha256:0", 8, [8], 8, "fp16", 2.0, 1.0, RATE, "/sounds")


@pytest.fixture(scope="module")
def server():
    with s3_server() as (bucket, options):
        yield bucket, options


@pytest.fixture
def place(server, tmp_path) -> tuple[str, dict[str, str]]:
    """The address of an index that does not exist yet, and the options to reach it."""
    bucket, options = server
    return f"{bucket}/{tmp_path.name}/index", options


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "sounds"
    for number in range(6):
        write(folder / f"{'ab'[number % 2]}/{number}.wav", 1.0 + number, number)
    (folder / "b/broken.wav").write_bytes(b"RIFF and no more")
    return folder


def write(file: Path, seconds: float, number: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, tone(200 + 90 * number, seconds, number), RATE, subtype="FLOAT")


def rows(path: str, first: int, count: int, windows: int = -1, version: int = 1) -> pyarrow.Table:
    """Windows of one file, whose vectors are their numbers."""
    numbers = np.arange(first, first + count)
    vectors = np.repeat(numbers[:, None] + 1.0, 8, axis=1)
    times = [(float(number), number + 2.0) for number in numbers]
    return window_rows(MANIFEST, Sound(path, 10, version, path), times, vectors, first=first, windows=windows)


def windows_of(table: Table) -> Counter:
    table.refresh()
    return Counter((row["path"], row["window"]) for row in table.dataset.to_table(["path", "window"]).to_pylist())


def once(**files: int) -> Counter:
    return Counter((path, number) for path, count in files.items() for number in range(count))


def writers(place, count: int = 2) -> list[Table]:
    """Writers of a new index, which have all begun."""
    address, options = place
    with Table.create(address, MANIFEST, options):
        pass
    held = [Table.open(address, options).writing() for _ in range(count)]
    return [each.__enter__() for each in held]


def test_windows_that_another_writer_has_added_are_left_out(place):
    first, second = writers(place)
    mine = second.write(pyarrow.concat_tables([rows("a", 0, 3, 3), rows("b", 0, 2, 2)]))
    first.append(rows("a", 0, 3, 3))
    second.commit(mine)
    assert windows_of(first) == windows_of(second) == once(a=3, b=2)
    first.append(rows("b", 0, 2, 2))
    first.append(pyarrow.concat_tables([rows("b", 0, 2, 2), rows("c", 0, 1, 1)]))
    assert windows_of(second) == once(a=3, b=2, c=1)
    assert {path: (file.rows, file.windows) for path, file in second.files().items()} == {
        "a": (3, 3),
        "b": (2, 2),
        "c": (1, 1),
    }


def test_other_writers_are_waited_for_longer_than_lance_does(place, monkeypatch):
    """On a busy machine its 30 seconds pass within a few attempts."""
    (table,) = writers(place, 1)
    table.append(rows("a", 0, 2))
    seconds = []
    for name in ("update", "delete"):
        method = getattr(type(table.dataset), name)

        def noting(self, *args, method=method, **options):
            seconds.append(options["retry_timeout"].total_seconds())
            return method(self, *args, **options)

        monkeypatch.setattr(type(table.dataset), name, noting)
    table.complete("a", 2, 1.0)
    table.remove(["a"])
    assert windows_of(table) == once() and min(seconds) >= 300 and len(seconds) == 2


def test_parts_of_a_long_file_by_two_writers_make_it_whole(place):
    first, second = writers(place)
    first.append(rows("a", 0, 4))
    second.append(rows("a", 0, 6))
    first.append(rows("a", 4, 5))
    second.append(rows("a", 6, 6))
    first.append(rows("a", 9, 3))
    second.complete("a", 12, 14.0)
    first.complete("a", 12, 14.0)
    assert windows_of(first) == once(a=12)
    first.compact()
    assert first.files()["a"][2:] == (12, 12, "")
    second.append(rows("a", 3, 4))
    assert windows_of(second) == once(a=12)


def test_neither_an_error_nor_another_version_is_added_beside_windows(place):
    first, second = writers(place)
    first.append(rows("a", 0, 2, 2))
    first.append(skipped_row(MANIFEST, Sound("b", 10, 1, "b"), "broken"))
    second.append(rows("a", 0, 3, 3, version=2))
    second.append(skipped_row(MANIFEST, Sound("a", 10, 1, "a"), "broken"))
    second.append(rows("b", 0, 2, 2))
    second.append(skipped_row(MANIFEST, Sound("b", 10, 1, "b"), "broken"))
    assert windows_of(second) == once(a=2) + Counter({("b", -1): 1})


def test_what_a_writer_has_removed_may_be_added_again(place):
    first, second = writers(place)
    second.append(rows("a", 0, 2))
    first.append(rows("a", 0, 3))
    first.remove(["a"])
    first.append(skipped_row(MANIFEST, Sound("a", 10, 1, "a"), "broken in its middle"))
    assert windows_of(second) == Counter({("a", -1): 1})
    second.append(rows("a", 2, 2))
    assert windows_of(second) == Counter({("a", -1): 1})


def test_what_a_writer_finds_when_it_begins_is_its_to_change(place):
    (first,) = writers(place, 1)
    first.append(rows("a", 0, 2, 2))
    second = Table.open(*place)
    with second.writing():
        second.remove(["a"])
        second.append(rows("a", 0, 3, 3, version=2))
    assert windows_of(first) == once(a=3)


def test_a_number_of_a_fragment_is_not_given_twice(place):
    """A vector index goes on naming fragments that are gone."""
    first, second = writers(place)
    first.append(rows("a", 0, 2, 2))
    first.append(rows("b", 0, 2, 2))
    first.dataset.create_scalar_index("path", "BTREE")
    first.remove(["b"])
    second.append(rows("c", 0, 2, 2))
    assert windows_of(first) == once(a=2, c=2)
    assert first.rows("path = 'c'") == 2 and first.rows("path = 'b'") == 0
    fragments = [fragment.fragment_id for fragment in first.dataset.get_fragments()]
    assert len(fragments) == 2 and max(fragments) > 1


def test_columns_that_another_writer_has_added_meanwhile_are_null(place):
    first, second = writers(place)
    first.append(rows("a", 0, 2, 2))
    mine = first.write(rows("b", 0, 2, 2))
    second.refresh()
    describe(second, pyarrow.table({"path": ["a"], "label": ["dog"]}))
    first.commit(mine)
    first.append(rows("c", 0, 1, 1))
    assert windows_of(second) == once(a=2, b=2, c=1)
    found = second.dataset.to_table(["path", "label"]).to_pylist()
    assert {(row["path"], row["label"]) for row in found} == {("a", "dog"), ("b", None), ("c", None)}
    assert second.rows("label = 'dog'") == 2 and second.rows("label is null") == 3


@pytest.mark.parametrize("column", ["label", "new", "number"])
def test_columns_are_set_beside_another_writer_again_and_again(place, monkeypatch, column):
    """Its commit comes before the one that sets a known column, a new one, or one of another type."""
    first, second = writers(place)
    first.append(rows("a", 0, 2, 2))
    second.refresh()
    update(second, {"a": {"label": "dog", "number": 1}}, ["label", "number"])
    real, left = Table.commit_operation, [3]

    def commit_operation(table, operation):
        if table is second and left[0]:
            left[0] -= 1
            first.append(rows(f"b{left[0]}", 0, 1, 1))
        real(table, operation)

    monkeypatch.setattr(Table, "commit_operation", commit_operation)
    update(second, {"a": {column: "cat"}}, [column])
    second.append(rows("c", 0, 1, 1))
    assert left == [0] and windows_of(second) == once(a=2, b0=1, b1=1, b2=1, c=1)
    found = {row["path"]: row[column] for row in second.dataset.to_table(["path", column]).to_pylist()}
    assert found == {"a": "cat", "b0": None, "b1": None, "b2": None, "c": None}


def test_another_root_beside_another_writer(place, tmp_path, monkeypatch):
    first, second = writers(place)
    for name in "ab":
        (tmp_path / "sounds").mkdir(exist_ok=True)
        (tmp_path / "sounds" / name).write_bytes(b"x" * 10)
    first.append(rows("a", 0, 2, 2))
    second.change(root=str(tmp_path / "sounds"))
    real, left = Table.commit_operation, [1]

    def commit_operation(table, operation):
        if table is second and left[0]:
            left[0] -= 1
            first.append(rows("b", 0, 1, 1))
        real(table, operation)

    monkeypatch.setattr(Table, "commit_operation", commit_operation)
    change_root(second, str(tmp_path))
    found = second.dataset.to_table(["path"])["path"].to_pylist()
    assert sorted(found) == ["sounds/a", "sounds/a", "sounds/b"] and second.manifest.root == str(tmp_path)


def test_writers_in_a_race_add_each_window_once(place):
    files, count = 6, 3
    tables = writers(place, count)
    errors = []

    def add(table: Table, seed: int) -> None:
        try:
            for number in np.random.default_rng(seed).permutation(files).tolist():
                table.append(rows(f"f{number}", 0, 3, 3))
                if number % 3 == seed:
                    table.compact()
                    table.change(probes=seed + 1)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=add, args=(table, seed)) for seed, table in enumerate(tables)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert windows_of(tables[0]) == once(**{f"f{number}": 3 for number in range(files)})


def test_a_writer_that_never_gets_its_turn_says_so(place, monkeypatch):
    first, second = writers(place)
    first.append(rows("a", 0, 1, 1))
    fragments = first.write(rows("b", 0, 1, 1))
    monkeypatch.setattr(concurrent_writes, "TRIES", 2)
    monkeypatch.setattr(first.others, "_look", lambda: second.append(rows(f"c{time.monotonic()}", 0, 1, 1)))
    with pytest.raises(ValueError, match="changed by other writers again and again"):
        first.commit(fragments)
    assert first.rows("path = 'b'") == 0


def test_two_processes_may_make_one_index(place):
    address, options = place
    with Table.create(address, MANIFEST, options) as first, Table.create(address, MANIFEST, options) as second:
        first.append(rows("a", 0, 1, 1))
        second.append(rows("a", 0, 1, 1))
    assert windows_of(Table.open(address, options)) == once(a=1)
    other = Manifest(**{**vars(MANIFEST), "model": "other"})
    with (
        pytest.raises(ValueError, match="just become the index of another process"),
        Table.create(address, other, options),
    ):
        pass


def test_index_query_info_and_remove(place, folder, wavlink_folder, tmp_path, capsys, monkeypatch):
    address, options = place
    report = index_sounds(str(folder), address, str(wavlink_folder), **TIMES, storage_options=options, progress=False)
    assert (report.added, report.sounds, len(report.skipped)) == (6, 6, 1)
    index_sounds(str(folder), str(tmp_path / "local"), str(wavlink_folder), **TIMES, progress=False)
    local, far = Index.open(tmp_path / "local"), Index.open(address, storage_options=options)
    columns = [name for name in local.table.schema.names]
    assert far.table.dataset.to_table(columns) == local.table.dataset.to_table(columns)
    assert far.query("a low sound") == local.query("a low sound")

    write(folder / "a/new.wav", 2.0, 40)
    (folder / "a/0.wav").unlink()
    write(folder / "b/1.wav", 3.0, 41)
    pairs = ["--storage_options", *(f"{name}={value}" for name, value in options.items())]
    assert cli.main(["index", str(folder), "--out", address, *pairs]) == 0
    assert capsys.readouterr().out.startswith("1 added, 1 changed, 1 removed, 4 as they were; 6 sounds")
    assert cli.main(["query", address, "a low sound", "--json", *pairs]) == 0
    hits = json.loads(capsys.readouterr().out)["results"]
    assert {"a/new.wav", "b/1.wav"} < {hit["path"] for hit in hits} and len(hits) == 6
    assert cli.main(["info", address, "--json", *pairs]) == 0
    facts = json.loads(capsys.readouterr().out)["results"]
    assert facts["sounds"] == 6 and facts["bytes"] > 0 and [*facts["skipped"]] == ["b/broken.wav"]
    assert cli.main(["remove", address, "a/new.wav", *pairs]) == 0
    assert capsys.readouterr().out.startswith("1 sound removed")
    for name, value in options.items():
        monkeypatch.setenv(f"AWS_{name.removeprefix('aws_').upper()}", value)
    assert cli.main(["remove", address, "a"]) == 0
    assert capsys.readouterr().out.startswith("2 sounds removed")
    assert {path for path, _ in windows_of(Table.open(address))} == {f"b/{name}.wav" for name in (1, 3, 5, "broken")}


def test_every_command_that_opens_an_index_takes_storage_options(place, tmp_path, capsys, here):
    address, options = place
    with Table.create(address, MANIFEST, options) as table:
        table.append(pyarrow.concat_tables([rows("a", 0, 2, 2), rows("b", 0, 1, 1)]))
    pairs = ["--storage_options", *(f"{name}={value}" for name, value in options.items())]
    copy = str(tmp_path / "copy")
    for arguments, printed in (
        (["verify", address], "3 windows can be read; object storage keeps no checksums here"),
        (["reindex", address, "--out", copy, "--storage", "fp32"], "copy holds 3 windows"),
        (["duplicates", address, "--any_duration"], "2 sounds in 1 group"),
        (["push-index", address, "user/from-storage"], "user/from-storage"),
        (["map", address, "--out", str(tmp_path / "map.html")], "map.html: 2 sounds"),
    ):
        assert cli.main([*arguments, *pairs]) == 0, capsys.readouterr().err
        assert printed in capsys.readouterr().out
    assert Table.open(copy).manifest.storage == "fp32" and here.files("user/from-storage", kind="datasets")
    assert publish(address, tmp_path / "published", options) == ("/sounds", ["a", "b"])
    names = {"query", "duplicates", "info", "verify", "remove", "reindex", "map", "push-index", "push"}
    names |= {"space", "serve", "index", "ray"}
    parsers = cli.build_parser().commands
    assert names == {name for name, parser in parsers.items() if "--storage_options" in parser.format_help()}


def test_a_file_that_is_gone_from_object_storage_is_found_by_verify(place):
    address, options = place
    with Table.create(address, MANIFEST, options) as table:
        table.append(rows("a", 0, 2, 2))
        table.append(rows("b", 0, 2, 2))
    assert verified(address, storage_options=options)[1] == {}
    name = table.dataset.get_fragments()[1].metadata.files[0].path
    keys = {"access_key": options["aws_access_key_id"], "secret_key": options["aws_secret_access_key"]}
    place = {"endpoint_override": options["aws_endpoint"].partition("//")[2], "scheme": "http", "region": "us-east-1"}
    S3FileSystem(**keys, **place).delete_file(f"{address.removeprefix('s3://')}/windows.lance/data/{name}")
    with pytest.raises(ValueError, match="lacks a file"):
        verified(address, storage_options=options)


def test_an_index_is_migrated_beside_another_writer(place, folder, wavlink_folder, tmp_path, monkeypatch):
    """It adds a sound just before the switch, and begins another one, which is of the old model then."""
    address, options = place
    run = {"storage_options": options, "progress": False}
    for name in "ab":
        shutil.copytree(wavlink_folder, tmp_path / name)
    weights = load_file(tmp_path / "b/model.safetensors")
    save_file(
        {name: value * 1.01 for name, value in weights.items()}, tmp_path / "b/model.safetensors", {"format": "pt"}
    )
    index_sounds(str(folder), address, str(tmp_path / "a"), **TIMES, **run)
    old, writer = Table.open(address, options), Table.open(address, options).writing()
    late = writer.__enter__()
    real, left = Table.commit_operation, [1]

    def commit_operation(table, operation):
        if table.index == address and left[0]:
            left[0] -= 1
            write(folder / "a/late.wav", 1.0, 40)
            index_sounds(str(folder / "a"), address, **run)
        real(table, operation)

    monkeypatch.setattr(Table, "commit_operation", commit_operation)
    report = migrate(address, str(tmp_path / "b"), **run)
    assert (report.sounds, report.changed, left) == (7, 7, [0])
    index_sounds(str(folder), str(tmp_path / "anew"), str(tmp_path / "b"), **TIMES, progress=False)
    made, anew = Table.open(address, options), Table.open(tmp_path / "anew")
    assert windows_of(made) == windows_of(anew) and made.manifest.revision == anew.manifest.revision
    assert made.manifest.revision != old.manifest.revision and not has_table(f"{address}/.migration", options)
    with pytest.raises(ValueError, match="another process has changed the model or the columns of .*: start again"):
        late.append(window_rows(late.manifest, Sound("x", 1, 1, ""), [(0.0, 1.0)], np.ones((1, 64)), windows=1))


def test_no_index_and_no_bucket_are_named(server, capsys):
    bucket, options = server
    pairs = ["--storage_options", *(f"{name}={value}" for name, value in options.items())]
    assert cli.main(["query", f"{bucket}/none", "a dog", *pairs]) == 2
    assert f"{bucket}/none is no index: make one" in capsys.readouterr().err
    assert cli.main(["query", "s3://elsewhere/none", "a dog", *pairs]) == 2
    line = capsys.readouterr().err
    assert line == (
        "wavlink query: s3://elsewhere/none cannot be read or written: The specified bucket does not exist\n"
    )
    assert not has_table(f"{bucket}/none", options)


def test_lancedb_opens_the_same_table(place, tmp_path):
    lancedb = pytest.importorskip("lancedb", reason="of the optional extra dev")
    address, options = place
    for index, how in ((address, options), (str(tmp_path / "index"), None)):
        with Table.create(index, MANIFEST, how) as table:
            table.append(rows("a", 0, 3, 3))
        opened = lancedb.connect(index, storage_options=how).open_table("windows")
        assert opened.count_rows() == 3
        (hit,) = opened.search([1.0] * 8, vector_column_name="embedding").where("start > 1").limit(1).to_list()
        assert (hit["path"], hit["window"]) == ("a", 2)
        added = opened.to_arrow().slice(0, 1)
        opened.add(added.set_column(0, added.schema.field("path"), [["b"]]))
        assert Table.open(index, how).dataset.count_rows() == 4


WRITER = """
import sys
from wavlink.search.build import index_sounds
*sources, root, out, model, options = sys.argv[1:]
times = {"window": 2.0, "hop": 1.0, "commit_seconds": 0}
report = index_sounds(sources, out, model, root=root, storage_options=eval(options), progress=False, **times)
print(report)
"""
READER = """
import sys, time
from wavlink import Index
address, model, options = sys.argv[1:]
index, found = Index.open(address, model, storage_options=eval(options)), 0
while found < 30:
    hits = index.query("a low sound", top_k=100)
    assert len({hit.path for hit in hits}) == len(hits) >= found
    found = len(hits)
print(found)
"""


def process(start, code: str, *arguments: object, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return start([sys.executable, "-c", code, *map(str, arguments)], env=environment, **options)


@pytest.mark.slow
def test_two_writers_of_overlapping_folders_beside_readers(place, tmp_path, wavlink_folder, start):
    address, options = place
    folder = tmp_path / "sounds"
    for number in range(30):
        write(folder / f"{'abc'[number % 3]}/{number}.wav", 1.0 + number % 5, number)
    index_sounds(str(folder), str(tmp_path / "local"), str(wavlink_folder), **TIMES, progress=False)
    wanted = windows_of(Table.open(tmp_path / "local"))
    halves = ([folder / "a", folder / "b"], [folder / "b", folder / "c"])
    indexing = [process(start, WRITER, *half, folder, address, wavlink_folder, options) for half in halves]
    while not (has_table(address, options) and Table.open(address, options).windows()):
        assert any(writer.poll() is None for writer in indexing)
        time.sleep(0.1)
    reading = [process(start, READER, address, wavlink_folder, options) for _ in range(2)]
    assert [each.wait(200) for each in (*indexing, *reading)] == [0] * 4
    assert windows_of(Table.open(address, options)) == wanted
    files = Table.open(address, options).files()
    assert all(file.rows == file.windows for file in files.values()) and len(files) == 30


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_windows_and_the_next_goes_on(place, folder, wavlink_folder, tmp_path, start):
    address, options = place
    write(folder / "a/long.wav", 60.0, 50)
    writer = process(start, WRITER, folder, folder, address, wavlink_folder, options)
    while not (has_table(address, options) and Table.open(address, options).rows() > 3):
        assert writer.poll() is None
        time.sleep(0.02)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    index_sounds(str(folder), str(tmp_path / "local"), str(wavlink_folder), **TIMES, progress=False)
    wanted = windows_of(Table.open(tmp_path / "local"))
    left = windows_of(Table.open(address, options))
    assert 0 < left.total() < wanted.total() and left <= wanted
    code = WRITER.replace("print(report)", "print(report.unchanged)")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    again = [sys.executable, "-c", code, folder, folder, address, wavlink_folder, str(options)]
    assert int(run_process(again, env=environment, capture_output=True, text=True, check=True).stdout) >= 1
    assert windows_of(Table.open(address, options)) == wanted


SIZES = {f"f{number}": 1 + number % 9 for number in range(20)}  # windows of each file
PARTS = """
import random, sys
from tests.search.test_object_storage import SIZES, rows
from wavlink.search.table import Table
table = Table.open(sys.argv[1], eval(sys.argv[2]))
with table.writing():
    known, paths = table.files(), list(SIZES)
    random.shuffle(paths)
    for path in paths:
        first = known[path].rows if path in known else 0
        while first < SIZES[path]:
            count = min(SIZES[path] - first, random.randint(1, 4))
            table.append(rows(path, first, count))
            first += count
        table.complete(path, SIZES[path], 9.0)
    table.compact()
"""


@pytest.mark.slow
def test_three_writers_that_are_killed_again_and_again_end_with_each_window_once(place, start):
    address, options = place
    with Table.create(address, MANIFEST, options):
        pass
    random, kills = np.random.default_rng(0), 0
    writing = [process(start, PARTS, address, options) for _ in range(3)]
    while kills < 12:
        time.sleep(random.uniform(0.5, 3))
        writer = writing.pop(random.integers(3))
        kills += writer.poll() is None
        writer.kill()
        assert writer.wait() in (0, -signal.SIGKILL)
        assert max(windows_of(Table.open(address, options)).values(), default=1) == 1
        writing.append(process(start, PARTS, address, options))
    assert [writer.wait(200) for writer in writing] == [0] * 3
    table = Table.open(address, options)
    assert windows_of(table) == once(**SIZES)
    assert {path: file.windows for path, file in table.files().items()} == SIZES
