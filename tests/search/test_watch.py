"""A watched index: it follows its sounds, with the model kept loaded, until it is stopped."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import searches
from tests.searches import assert_same_rows, index, write
from wavlink.search import watch
from wavlink.search.index import Index
from wavlink.search.metadata import described
from wavlink.search.table import Table

models, embedder, sounds = searches.models, searches.embedder, searches.sounds
ROOT = Path(__file__).parents[2]
LONGEST = 60  # seconds that a test waits on a busy machine


@contextmanager
def watched(sounds, out, model="", **options) -> Iterator[Callable[[str], str]]:
    """A function that waits for a line that begins with these words."""
    lines, stop, errors = queue.Queue(), threading.Event(), []

    def run():
        try:
            watch.watch_sounds(
                str(sounds), out, str(model), seconds=0.05, stop=stop, show=lines.put, progress=False, **options
            )
        except BaseException as error:
            errors.append(error)

    def line(words: str) -> str:
        found = ""
        while not found.startswith(words):
            assert not errors, errors
            found = lines.get(timeout=LONGEST)
        return found

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield line
    finally:
        stop.set()
        thread.join(LONGEST)
        assert not thread.is_alive()


def paths(out) -> set[str]:
    return {path for path, file in Table.open(out).files().items() if not file.error}


def test_changes_are_followed(sounds, tmp_path, models, embedder, monkeypatch):
    out, loads = tmp_path / "index", []
    real = watch.new_embedder
    monkeypatch.setattr(watch, "new_embedder", lambda *a, **o: loads.append(a) or real(*a, **o))
    with watched(sounds, out, models["model"]) as line:
        assert line("5 added") == "5 added, 0 changed, 0 removed, 0 as they were; 5 sounds in 9 windows, 0 skipped"
        opened = Index.open(out, embedder)
        write(sounds / "new/bell.wav", 7)
        line("added new/bell.wav")
        assert opened.query(sound=sounds / "new/bell.wav", top_k=1)[0].path == "new/bell.wav"
        write(sounds / "bell.flac", 8, 4.0)
        line("changed bell.flac")
        (sounds / "rain.wav").unlink()
        line("removed rain.wav")
        (sounds / "broken.wav").write_bytes(b"no sound")
        line("skipped broken.wav: cannot read")
        (sounds / "cat.ogg").rename(sounds / "dog/cat.ogg")
        line("added dog/cat.ogg")
        line("removed cat.ogg")
    assert len(loads) == 1
    index(sounds, tmp_path / "anew", embedder)
    assert_same_rows(out, tmp_path / "anew")


def test_a_file_that_is_being_written_waits(sounds, tmp_path, models, embedder):
    out = tmp_path / "index"
    index(sounds, out, embedder)
    write(tmp_path / "long.wav", 3, 20.0)
    content = (tmp_path / "long.wav").read_bytes()
    with watched(sounds, out, models["model"]) as line:
        line("0 added")
        with (sounds / "long.wav").open("wb") as file, (sounds / "bell.flac").open("ab") as known:
            for start in range(0, len(content), len(content) // 20 + 1):
                file.write(content[start : start + len(content) // 20 + 1])
                known.write(b"\0")
                file.flush(), known.flush()
                assert paths(out) == set(searches.SECONDS)  # the known one stays as it was meanwhile
                time.sleep(0.02)
        line("added long.wav")
    files = Table.open(out).files()
    assert files["long.wav"].rows == 3 and "bell.flac" in files


def test_a_long_update_does_not_delay_the_next_look(sounds, tmp_path, models, monkeypatch):
    real, waits = watch.index_sounds, []

    def slow(*arguments, **options):
        time.sleep(5)
        waits.append(time.monotonic())
        return real(*arguments, **options)

    monkeypatch.setattr(watch, "index_sounds", slow)
    with watched(sounds, tmp_path / "index", models["model"]) as line:
        line("5 added")
        write(sounds / "new.wav", 7)
        line("added new.wav")
    assert waits[1] - waits[0] < 15  # the second update takes 5 s itself; of the first one, 20 s would be waited


def test_another_process_may_index_and_lock_it(sounds, tmp_path, models, embedder):
    out = tmp_path / "index"
    with watched(sounds, out, models["model"]) as line:
        line("5 added")
        with Table.open(out).writing():  # the lock is free between changes
            write(sounds / "late.wav", 7)
            assert "another process is writing" in line("waiting: ")
        line("added late.wav")
        write(sounds / "dog/other.wav", 8)
        index(sounds, out, embedder)
        line("added dog/other.wav")
    assert paths(out) == {*searches.SECONDS, "late.wav", "dog/other.wav"}


def test_a_folder_may_be_empty_at_first_or_vanish(tmp_path, models):
    (tmp_path / "sounds").mkdir()
    with watched(tmp_path / "sounds", tmp_path / "index", models["model"]) as line:
        assert "no sounds in" in line("waiting: ")
        write(tmp_path / "sounds/a.wav", 1)
        line("1 added")
        (tmp_path / "sounds").rename(tmp_path / "moved")
        assert "does not exist" in line("waiting: ")
        (tmp_path / "moved").rename(tmp_path / "sounds")
        write(tmp_path / "sounds/b.wav", 2)
        line("added b.wav")
    assert paths(tmp_path / "index") == {"a.wav", "b.wav"}
    with pytest.raises(ValueError, match="does not exist"):
        watch.watch_sounds(str(tmp_path / "none"), tmp_path / "index", progress=False)


def test_metadata_is_followed_too(sounds, tmp_path, models):
    (sounds / "m.csv").write_text("file_name,label\nbell.flac,a\n")
    with watched(sounds, tmp_path / "index", models["model"], metadata=[sounds / "m.csv"]) as line:
        line("5 added")
        assert described(Table.open(tmp_path / "index"))["bell.flac"] == {"label": "a"}
        (sounds / "m.csv").write_text("file_name,label\nbell.flac,bell\nnew.wav,new\n")
        write(sounds / "new.wav", 7)
        line("added new.wav")
    found = described(Table.open(tmp_path / "index"))
    assert found["bell.flac"] == {"label": "bell"} and found["new.wav"] == {"label": "new"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_in_order_on_a_signal(sounds, tmp_path, models, number):
    command = [sys.executable, "-m", "wavlink", "index", sounds, "--out", tmp_path / "index", "--watch", "0.1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, "--model", models["model"]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline().startswith("5 added")
            write(sounds / "new.wav", 7)
            assert process.stdout.readline() == "added new.wav\n"
            process.send_signal(number)
            out, err = process.communicate(timeout=LONGEST)
        finally:
            process.kill()
    assert process.returncode == 128 + number and "stopping" in err
    assert re.match(r"stopped; 6 added, 0 changed, 0 removed, .*6 sounds in 10 windows", out)
    assert len(paths(tmp_path / "index")) == 6


@pytest.mark.slow
def test_a_new_file_is_found_within_five_seconds_among_thousands(tmp_path, models, embedder):
    for number in range(3000):
        write(tmp_path / f"sounds/{number % 50}/{number}.wav", number % 20, 0.1)
    out = tmp_path / "index"
    index(tmp_path / "sounds", out, embedder)
    opened = Index.open(out, embedder)
    stop, lines = threading.Event(), queue.Queue()
    thread = threading.Thread(
        target=watch.watch_sounds,
        args=(str(tmp_path / "sounds"), out, str(models["model"])),
        kwargs={"stop": stop, "show": lines.put, "progress": False},
    )
    thread.start()
    try:
        lines.get(timeout=LONGEST)
        start = time.monotonic()
        write(tmp_path / "sounds/7/new.wav", 7, 2.0)
        while not opened.query(sound=tmp_path / "sounds/7/new.wav", where="path = '7/new.wav'"):
            assert time.monotonic() - start < LONGEST
        assert time.monotonic() - start < 5
    finally:
        stop.set()
        thread.join(LONGEST)
