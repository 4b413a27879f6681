"""A short slice of benchmarks/fuzz.py in this process, and that it sees what it is for."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
INPUTS = {"config": 25, "checkpoint": 60, "shard": 40, "metadata": 60, "manifest": 60, "index": 80}  # else 100
INPUTS |= {"index folder": 60, "json request": 60, "form request": 60, "raw request": 25, "sound request": 50}
PACKED = ["m4a", "webm", "wma", "video"]
TARGETS = ["wav", "flac", "ogg", "opus", "mp3", "other", *PACKED, *INPUTS]


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return importlib.import_module("fuzz")


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_damaged_is_refused_by_name_or_read_rightly(target, fuzz, tmp_path):
    targets = fuzz.load_targets(fuzz.MODULES)
    assert sorted(targets) == sorted([*TARGETS, "forged index"])
    if target in PACKED:
        pytest.importorskip("av")
    draw, read = targets[target](tmp_path, "")
    tally = fuzz.Tally()
    for number in range(INPUTS.get(target, 100)):
        error = fuzz.read_one(read, draw(fuzz.generator(1, target, number)), tally)
        assert not error, f"{target}, seed 1, number {number}: {error}"
    unread = ("checkpoint", "raw request")  # of those few in a hundred are read, of these answers are not
    assert tally.refused > 5 and (tally.decoded or target in unread)


@pytest.mark.slow
def test_a_forged_index_is_refused_or_read_in_a_process_of_its_own(fuzz, tmp_path, capsys):
    """Its checksums are right. Lance itself may abort at what it reads: of some thousand inputs at one or two."""
    options = ["--targets", "forged index", "--inputs", "60", "--seed", "1", "--failures", str(tmp_path)]
    assert fuzz.main(options) == 0, capsys.readouterr().out
    assert int(capsys.readouterr().out.splitlines()[-1].split("|")[3]) > 20


KINDS = ("refused", "decoded", "exception", "abort", "hang", "memory", "segment", "prints")
BAD = """
import ctypes, os
def make(folder, sounds):
    def read(content):
        kind = content.decode()
        if kind == "exception": raise KeyError("no name")
        if kind == "abort": os.abort()
        while kind == "hang": pass
        if kind == "memory": bytearray(1 << 30)
        if kind == "segment": ctypes.string_at(0)
        if kind == "prints": print('[7, "what a library prints"]', flush=True)
        return kind != "refused"
    return (lambda rng: KINDS[rng.integers(len(KINDS))].encode()), read
TARGETS = {"bad": make}
INPUTS = 12
"""
FOUND = {
    "exception": "KeyError: 'no name'",
    "abort": "crash: SIGABRT",
    "hang": "hang: SIG",
}  # by the processor, or on a busy machine by the clock
FOUND |= {"memory": "MemoryError: ", "segment": "crash: SIGSEGV"}


def test_exceptions_crashes_hangs_and_memory_are_found_with_their_inputs(fuzz, tmp_path, monkeypatch, capsys):
    (tmp_path / "bad_target.py").write_text(f"KINDS = {KINDS}\n{BAD}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    draw, _ = fuzz.load_targets(["bad_target"])["bad"](tmp_path, "")
    kinds = [draw(fuzz.generator(95, "bad", number)).decode() for number in range(12)]
    assert {*kinds} == {*KINDS} and kinds[0] not in FOUND  # the first is read before anything is bounded
    options = ["--modules", "bad_target", "--inputs", "12", "--seed", "95", "--memory", "300", "--seconds", "1"]
    assert fuzz.main([*options, "--failures", str(tmp_path / "found")])
    lines = capsys.readouterr().out.splitlines()
    told = {int(line.split()[1][:-1]): line.split(": ", 1)[1] for line in lines if line.startswith("  bad ")}
    assert sorted(told) == [number for number, kind in enumerate(kinds) if kind in FOUND]
    for number, error in told.items():
        assert error.startswith(FOUND[kinds[number]])
        assert (tmp_path / f"found/bad-95-{number}.bin").read_bytes().decode() == kinds[number]
    counts = kinds.count("refused"), kinds.count("decoded") + kinds.count("prints")
    assert lines[-1].startswith(f"| bad | 12 | {counts[0]} | {counts[1]} |") and lines[-1].endswith(f"| {len(told)} |")


def test_a_run_goes_on_with_the_blocks_that_are_kept(fuzz, tmp_path, monkeypatch, capsys):
    """Two shards read all, a third run nothing; the table is of all, and of fewer inputs only what was asked for."""
    (tmp_path / "good_target.py").write_text("import pathlib\n" + GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(fuzz, "_BLOCK", 4)
    options = ["--modules", "good_target", "--kept", str(tmp_path / "kept"), "--failures", str(tmp_path / "found")]
    for more, inputs, files in (
        (["--minutes", "0"], None, 0),
        (["--shard", "1/2"], 6, 2),
        (["--shard", "2/2"], 10, 3),
        ([], 10, 3),
    ):
        assert fuzz.main([*options, *more]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1].startswith(f"| good | {inputs} | 0 | {inputs} |" if inputs else "| ---")
        assert len([*(tmp_path / "kept").glob("*")]) == files
    assert (tmp_path / "read").read_text() == "xxx"  # a child a block, each of which reads one input more, the first


GOOD = """
def make(folder, sounds):
    with open(pathlib.Path(__file__).with_name("read"), "a") as file:
        file.write("x")
    return (lambda rng: b""), (lambda content: True)
TARGETS = {"good": make}
INPUTS = 10
"""
