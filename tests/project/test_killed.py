"""What benchmarks/killed.py compares, and that it sees what it is for."""

import importlib
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.processes import run_process
from wavlink.locks import locked

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize(
    ("found", "equal"),
    [
        ({"data": [{"score": 0.5, "path": "a.wav"}], "n": 1}, True),
        ({"data": [{"score": 0.50002, "path": "a.wav"}], "n": 1}, True),
        ({"data": [{"score": 0.501, "path": "a.wav"}], "n": 1}, False),
        ({"data": [{"score": float("nan"), "path": "a.wav"}], "n": 1}, False),
        ({"data": [{"score": 0.5, "path": "b.wav"}], "n": 1}, False),
        ({"data": [{"score": 0.5, "path": "a.wav"}] * 2, "n": 1}, False),
        ({"data": [{"score": 0.5}], "n": 1}, False),
        ({"data": [{"score": 0.5, "path": "a.wav"}], "n": True}, False),
        ([], False),
    ],
)
def test_answers_are_equal_but_for_last_digits(found, equal, module):
    assert module("killed_serve").same(found, {"data": [{"score": 0.5, "path": "a.wav"}], "n": 1}) is equal


def test_what_was_accepted_must_be_answered_but_after_sigkill(module):
    serve = module("killed_serve")
    subject = object.__new__(serve.Serve)
    subject.expected, subject.tally = [{"score": 0.5}], serve.Counter()
    for asked, at_once, wrong in (
        (serve.Asked(0, status=200, answer=b'{"score": 0.5}'), False, ""),
        (serve.Asked(0, status=200, answer=b'{"score": 0.6}'), True, "request 0 got 200"),
        (serve.Asked(0, status=500, answer=b"{}"), True, "request 0 got 500"),
        (serve.Asked(0, waits=True), False, ""),
        (serve.Asked(0, waits=True, accepted=True), False, "accepted, not answered"),
        (serve.Asked(0, waits=True, accepted=True), True, ""),
        (serve.Asked(0, answer=b"HTTP/1.1 200"), False, "half an answer"),
        (serve.Asked(0, answer=b"HTTP/1.1 200"), True, ""),
    ):
        told = subject.wrong(asked, at_once)
        assert told.startswith(wrong) and bool(told) == bool(wrong)
    assert subject.tally == {"answered": 3, "not accepted": 1, "accepted, not answered": 2, "half an answer": 2}


def test_a_file_that_has_changed_or_is_new_changes_the_digests(tmp_path, module):
    digests = module("killed_serve").digests
    (tmp_path / "a").write_text("1")
    before = digests(tmp_path)
    (tmp_path / ".lock").touch()
    assert digests(tmp_path) != before
    (tmp_path / ".lock").unlink()
    assert digests(tmp_path) == before
    (tmp_path / "a").write_text("2")
    assert digests(tmp_path) != before


INTERRUPTED = """
import os, signal, sys, time
from pathlib import Path
from forked import start
for _ in range(20):
    process = start(time.sleep, [60], Path(sys.argv[1]))
    os.kill(process.pid, signal.SIGINT)
    process.join()
    print(process.exitcode)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="fork")
def test_a_command_that_is_interrupted_as_it_begins_ends_as_interrupted(tmp_path):
    command = [sys.executable, "-c", INTERRUPTED, tmp_path / "log"]
    done = run_process(command, cwd=BENCHMARKS, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [str(128 + signal.SIGINT)] * 20 and not done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's list of locks is Linux's")
def test_a_lock_that_is_held_is_told_from_one_that_lies_there(tmp_path, module):
    holds, lock = module("killed_index").holds, tmp_path / ".lock"
    assert not holds(os.getpid(), lock)
    with locked(lock):
        assert holds(os.getpid(), lock)
    lock.touch()
    assert not holds(os.getpid(), lock)


def test_rows_of_two_models_are_neither_ones(module, monkeypatch):
    index = module("killed_index")
    draw = np.random.default_rng(0)
    old, new = ({("a", 0, 1): draw.normal(size=4), ("b", 0, 1): draw.normal(size=4)} for _ in range(2))
    found = {
        "old": old,
        "new": new,
        "mixed": old | {("b", 0, 1): new["b", 0, 1]},
        "fewer": {("a", 0, 1): old["a", 0, 1]},
    }
    monkeypatch.setattr(index, "rows", found.__getitem__)
    index.rows_of_either("old", "old", "new")
    index.rows_of_either("new", "old", "new")
    for name in ("mixed", "fewer"):
        with pytest.raises(ValueError, match="neither the old rows nor the new ones"):
            index.rows_of_either(name, "old", "new")
