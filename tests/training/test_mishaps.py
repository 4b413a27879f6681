"""A dead worker, a full disk, a changed clock: a clear error, nothing half-written, and resumption."""

import errno
import itertools
import json
import multiprocessing
import os
import resource
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import train
from tests.captioned_folders import folder as five  # noqa: F401
from tests.index_files import stray_files
from tests.searches import assert_same_rows, embedder, index, models, rows, sounds, write  # noqa: F401
from tests.tone_runs import folder, recipe  # noqa: F401
from wavlink.atomic_files import write_text
from wavlink.evaluation import command as evaluation
from wavlink.plots import draw_loss
from wavlink.search.repair import verified
from wavlink.search.table import Table
from wavlink.training import loop

DAY = 86400.0


@contextmanager
def full_disk(bytes_left: int = 0):
    """No file may grow beyond so many bytes: what a full disk does, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def moving_clock(monkeypatch):
    """The system's clock, a day late and a day early by turns."""
    jumps, real = itertools.cycle((DAY, -DAY)), time.time
    for clock in ("time.time", "tqdm.std.time"):
        monkeypatch.setattr(clock, lambda: real() + next(jumps))


def same_files(run: Path, other: Path) -> bool:
    return all(
        (run / name).read_bytes() == (other / name).read_bytes()
        for name in ("last/model.safetensors", "metrics.jsonl")
    )


# --- a worker that dies


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "call", "checkpoints"),
    [(train.Run, "learn", ["step-00000002", "step-00000003"]), (loop, "merged_state_dict", ["step-00000002"])],
    ids=["step", "writing"],
)
def test_a_killed_worker_is_reported_and_the_same_command_loses_nothing(
    folder,  # noqa: F811
    tmp_path,
    monkeypatch,
    where,
    call,
    checkpoints,
):
    """In the fourth step, and while `best/` is written after the third, where it is no full disk."""
    whole = train.train(recipe(folder, tmp_path / "whole", "--save_steps", "2"))
    real, left = getattr(where, call), [3 if call == "learn" else 0]

    def kill(*arguments):
        if not left[0]:
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGKILL)
            time.sleep(60)  # until the signal of its end arrives
        left[0] -= 1
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(where, call, kill)
        message = r"^a process that decodes sounds has died.*Killed.*the same command goes on.*--num_workers 0"
        with pytest.raises(OSError, match=message):
            train.train(recipe(folder, tmp_path / "run", "--save_steps", "2", "--num_workers", "1"))
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == checkpoints
    resumed = train.train(recipe(folder, tmp_path / "run", "--save_steps", "2"))
    assert same_files(resumed, whole) and not list(resumed.rglob("*unfinished*"))


# --- a full disk


def test_a_file_that_does_not_fit_is_named_and_the_older_one_stays(tmp_path):
    write_text(tmp_path / "sweep.json", "old")
    with full_disk(), pytest.raises(OSError, match=r"could not write .*sweep\.json: .*start the same command again"):
        write_text(tmp_path / "sweep.json", "new")
    with full_disk(), pytest.raises(OSError, match=r"could not write .*loss\.png: "):
        draw_loss([{"step": 1, "loss": 1.0, "scale": 1.0}], tmp_path / "loss.png")
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]
    assert (tmp_path / "sweep.json").read_text() == "old"


def test_an_index_that_does_not_fit_is_as_it_was_and_goes_on(sounds, tmp_path, embedder):  # noqa: F811
    out = tmp_path / "index"
    index(sounds, out, embedder)
    before = rows(out)
    for number in range(20, 24):
        write(sounds / f"{number}.wav", number, 2.0)
    for space in (0, 500, 3000):  # also a file whose last bytes alone do not fit
        with full_disk(space), pytest.raises(OSError, match=str(out)) as stopped:
            index(sounds, out, embedder)
        assert stopped.value.errno in (errno.EFBIG, errno.ENOSPC)
        assert rows(out).keys() == before.keys() and verified(out)[1] == {}
    assert index(sounds, out, embedder).added == 4
    index(sounds, tmp_path / "unbroken", embedder)
    assert_same_rows(out, tmp_path / "unbroken")
    assert stray_files(out) == []


def test_scores_that_do_not_fit_are_named_and_the_same_command_goes_on(wavlink_folder, five, tmp_path, capsys):  # noqa: F811
    def score(name: str) -> dict:
        command = ["--model", str(wavlink_folder), "--benchmark", str(five), "--output", str(tmp_path / name)]
        evaluation.main(command)
        return json.loads((tmp_path / name).read_text(encoding="utf-8"))

    unbroken = score("unbroken.json")
    named = set()
    for space in (0, 600, 4000):  # for nothing; for what tells the parts' origin; for the parts too
        with full_disk(space), pytest.raises(OSError, match="could not write ") as stopped:
            score("scores.json")
        named.add(str(stopped.value).split(":")[0].split("/")[-1])
        assert not (tmp_path / "scores.json").exists() and not list(tmp_path.rglob("*unfinished*"))
    assert named == {"key.json", "part-000000.safetensors", "scores.json"}
    assert score("scores.json") == unbroken and not (tmp_path / "scores.json.parts").exists()


# --- a clock that is moved


@pytest.mark.slow
def test_a_moving_clock_changes_nothing_of_a_run(folder, tmp_path, monkeypatch, request):  # noqa: F811
    """It goes on from the newest checkpoint by its step, whatever the times of files say."""
    options = ["--save_steps", "2"]
    whole = train.train(recipe(folder, tmp_path / "whole", *options))
    request.getfixturevalue("moving_clock")
    learn, steps = train.Run.learn, []

    def die(self, *arguments):
        steps.append(self.step)
        if steps == [0, 1, 2, 3, 4, 5]:
            raise KeyboardInterrupt
        return learn(self, *arguments)

    monkeypatch.setattr(train.Run, "learn", die)
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe(folder, tmp_path / "run", *options))
    older, newer = sorted((tmp_path / "run/checkpoints").iterdir())
    os.utime(newer, (0, 0))
    resumed = train.train(recipe(folder, tmp_path / "run", *options))
    assert (newer.name, steps[6:]) == ("step-00000004", [4, 5]) and same_files(resumed, whole)
    kept = sorted(path.name for path in (resumed / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000006"] and not older.exists()
    lines = [json.loads(line) for line in (resumed / "environment.jsonl").read_text().splitlines()]
    (seconds,) = [line["seconds"] for line in lines if "seconds" in line]
    assert 0 < seconds < DAY / 2


def test_a_moving_clock_commits_an_index_no_sooner(sounds, tmp_path, embedder, monkeypatch, moving_clock):  # noqa: F811
    written, append = [], Table.append
    monkeypatch.setattr(Table, "append", lambda self, rows: (written.append(1), append(self, rows)))
    index(sounds, tmp_path / "index", embedder, commit_seconds=DAY / 2)
    assert len(written) == 1
    index(sounds, tmp_path / "other", embedder, commit_seconds=0)
    assert len(written) > 5
    assert_same_rows(tmp_path / "index", tmp_path / "other")


@pytest.mark.parametrize("when", [-DAY, DAY], ids=["earlier", "later"])
def test_a_file_changed_while_the_clock_was_wrong_is_a_changed_file(sounds, tmp_path, embedder, when):  # noqa: F811
    """Of the same size as before, and of a time before that one, or to come."""
    index(sounds, tmp_path / "index", embedder)
    size = (sounds / "dog/far.wav").stat().st_size
    write(sounds / "dog/far.wav", 9)
    os.utime(sounds / "dog/far.wav", (time.time() + when,) * 2)
    assert (sounds / "dog/far.wav").stat().st_size == size
    report = index(sounds, tmp_path / "index", embedder)
    assert (report.changed, report.unchanged) == (1, 4)
    index(sounds, tmp_path / "anew", embedder)
    assert_same_rows(tmp_path / "index", tmp_path / "anew")
    assert index(sounds, tmp_path / "index", embedder).unchanged == 5
