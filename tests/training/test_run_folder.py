"""The folder of a run: nothing half-written after any interruption, and records of each start."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from tests.tone_runs import folder, recipe  # noqa: F401
from wavlink.training.run_folder import (
    Metrics,
    commit_of,
    environment,
    note_seconds,
    refuse_unknown_trackers,
    remove,
    whole,
)

ROOT = Path(__file__).parents[2]


def test_a_folder_is_written_atomically(tmp_path):
    target = tmp_path / "best"
    with whole(target) as unfinished:
        (unfinished / "weights").write_text("first")
        assert not target.exists()
    with pytest.raises(OSError, match=r"could not write .*best: no space.*free space"), whole(target) as unfinished:
        (unfinished / "weights").write_text("half")
        raise RuntimeError("no space")
    assert (target / "weights").read_text() == "first"
    with whole(target) as unfinished:
        (unfinished / "other").write_text("second")
    assert [path.name for path in target.iterdir()] == ["other"]  # nothing of the older one stays
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


class Killed(BaseException):
    """As SIGKILL: nothing catches it."""


@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "removed"])
def test_a_folder_is_complete_after_a_kill_at_any_moment(tmp_path, replaced):
    """The call of that number, of those that change a folder, does not come."""

    def write(target_folder: Path, content: str) -> None:
        with whole(target_folder) as unfinished:
            for name in "abc":
                (unfinished / name).write_text(content)

    states, killed = [], True
    while killed:
        best, left = tmp_path / str(len(states)) / "best", [len(states)]
        write(best, "old")

        def after(real, left=left):
            def call(*arguments, **options):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return real(*arguments, **options)

            return call

        with pytest.MonkeyPatch.context() as patch:
            for name in ("replace", "unlink", "rmdir"):
                patch.setattr(os, name, after(getattr(os, name)))
            try:
                write(best, "new") if replaced else remove(best)
                killed = False
            except Killed:
                pass
        states.append("".join(path.name + path.read_text() for path in sorted(best.glob("*"))))
        assert states[-1] in ("aoldboldcold", "anewbnewcnew", "")
        write(best, "new")
        assert [path.name for path in best.parent.iterdir()] == ["best"]
    assert len(states) > 4 and "aoldboldcold" in states and states[-1] == ("anewbnewcnew" if replaced else "")


def test_unfinished_files_of_a_killed_run_are_removed(folder, tmp_path):  # noqa: F811
    """Also a checkpoint of a step, such as a SIGTERM's, at which the run writes none when it goes on."""
    for name in ("checkpoints/.step-00000003.unfinished", ".last.older.unfinished"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "weights").write_text("half")
    (tmp_path / "run/.loss.png.unfinished").write_text("half")
    run = train.train(recipe(folder, tmp_path / "run", "--max_steps", "2"))
    assert not list(run.rglob("*unfinished*"))


def test_an_incomplete_line_in_environment_jsonl_is_removed(tmp_path):
    (tmp_path / "environment.jsonl").write_text('{"step": 0}\n{"step": 1, "pack')
    note_seconds(tmp_path, 2, 3.0)
    assert (tmp_path / "environment.jsonl").read_text() == '{"step": 0}\n{"step": 2, "seconds": 3.0}\n'


def test_metrics_drop_lines_after_a_step_and_incomplete_lines(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 2, "valid')
    metrics = Metrics(tmp_path, 2)
    metrics.write(step=3, loss=1.5)
    assert metrics.read() == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 1.5}]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_metrics_that_cannot_be_written_name_their_file(tmp_path):
    metrics = Metrics(tmp_path, 0)
    metrics.path = Path("/dev/full")
    with pytest.raises(OSError, match="could not write /dev/full: .*No space left"):
        metrics.write(step=1)


def test_environment_names_versions_and_machine():
    facts = environment(step=3)
    assert facts["step"] == 3 and facts["packages"]["torch"].startswith("2.") and facts["cpus"] == os.cpu_count()
    json.dumps(facts)


def test_without_git_no_commit_is_on_record(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["commit"] is None


def test_the_commit_is_of_the_repository_that_tracks_the_file(tmp_path, monkeypatch):
    """Not of one that a virtual environment happens to lie in, nor of one that a hook's variables name."""

    def git(*words: str) -> str:
        line = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(line, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "venv/lib/modeling_wavlink"
    package.mkdir(parents=True)
    (package / "run_folder.py").write_text("")
    assert commit_of(package / "run_folder.py") is None
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "theirs")
    assert commit_of(package / "run_folder.py") is None
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))
    assert commit_of(package / "run_folder.py") is None
    monkeypatch.delenv("GIT_DIR")
    git("add", ".")
    git("commit", "-q", "-m", "ours")
    assert commit_of(package / "run_folder.py") == git("rev-parse", "--short", "HEAD")


def test_every_start_of_a_run_is_recorded_with_plots_beside_it(folder, tmp_path, plots):  # noqa: F811
    for steps in ("2", "2"):
        train.train(recipe(folder, tmp_path / "run", "--max_steps", steps, "--save_steps", "1"))
    lines = [json.loads(line) for line in (tmp_path / "run/environment.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "python" in line] == [0, 2]
    assert [line["step"] for line in lines if "seconds" in line] == [2, 2] and lines[1]["seconds"] > 0
    assert lines[0]["on_disk"] == [str(folder)]
    for name in ("loss.png", "recall.png", "similarity.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")


def test_unknown_trackers_are_refused_before_any_work():
    with pytest.raises(ValueError, match=r"no tracker paper here .*pip install"):
        refuse_unknown_trackers(["paper"])


def test_trackers_get_loss_and_recall(folder, tmp_path):  # noqa: F811
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train.train(recipe(folder, tmp_path / "run", "--trackers", "tensorboard", "--max_steps", "3"))
    (events,) = (run / "wavlink").glob("events*")
    log = reader.EventAccumulator(str(events))
    log.Reload()
    losses = [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [event.value for event in log.Scalars("loss")] == pytest.approx([x for x in losses if x], rel=1e-6)
    assert "text_to_audio/128/R@1" in log.Tags()["scalars"]


def started_run(start, data, output, *options, limit: int | None = None) -> subprocess.Popen:
    command = [sys.executable, "train.py", "quickstart", "--data", str(data), "--output_dir", str(output)]
    command += ["--batch_size", "4", "--num_workers", "0", "--mixed_precision", "no", "--label_prompt", ""]
    command += options
    if limit is not None:  # a file may not grow beyond it: what a full disk does, without one
        command = ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "limited", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: sums depend on the number of threads
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return start(command, cwd=ROOT, env=environment, **pipes)


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_and_a_full_disk_the_last_one(folder, tmp_path, start):  # noqa: F811
    options = ["--max_steps", "40", "--epochs", "2"]
    process = started_run(start, folder, tmp_path / "run", *options)
    metrics = tmp_path / "run/metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("loss") > 1):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, output
    stopped = int(re.search(r"stopped by SIGTERM after step (\d+)", output)[1])
    *_, checkpoint = kept = sorted((tmp_path / "run/checkpoints").iterdir())  # an epoch may have ended before
    assert checkpoint.name == f"step-{stopped:08d}" and stopped < 40

    process = started_run(start, folder, tmp_path / "run", *options, limit=100)  # kB; a checkpoint has some MB
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 2 and re.search(r"train.py: could not write .*tmp.*run/.*free space", output), output
    assert sorted((tmp_path / "run/checkpoints").iterdir()) == kept

    resumed = train.train(recipe(folder, tmp_path / "run", *options, "--label_prompt", ""))
    unbroken = train.train(recipe(folder, tmp_path / "unbroken", *options, "--label_prompt", ""))
    got, expected = (load_file(run / "last/model.safetensors") for run in (resumed, unbroken))
    assert all(bool((got[name] == expected[name]).all()) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_to_all_processes_of_a_run_leaves_a_checkpoint(folder, tmp_path, start, number):  # noqa: F811
    """Twice, as `timeout` sends it; the workers that decode sounds get it too."""
    options = ["--max_steps", "40", "--epochs", "2", "--num_workers", "2"]
    process = started_run(start, folder, tmp_path / "run", *options)
    metrics = tmp_path / "run/metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("loss") > 1):
        time.sleep(0.01)
    for _ in range(2):
        os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + number, output
    stopped = int(re.search(rf"stopped by {number.name} after step (\d+)", output)[1])
    newest = max(path.name for path in (tmp_path / "run/checkpoints").iterdir())  # an epoch may have ended before
    assert newest == f"step-{stopped:08d}"
    assert stopped < 40 and not re.search("died|Terminated|Traceback", output), output
    options += ["--label_prompt", ""]
    resumed = train.train(recipe(folder, tmp_path / "run", *options, "--num_workers", "0"))
    unbroken = train.train(recipe(folder, tmp_path / "unbroken", *options, "--num_workers", "0"))
    got, expected = (load_file(run / "last/model.safetensors") for run in (resumed, unbroken))
    assert all(bool((got[name] == expected[name]).all()) for name in expected)


def test_checkpoints_carry_all_state_that_training_has(folder, tmp_path):  # noqa: F811
    """The scaler of fp16 by a stand-in: Accelerate makes one on GPUs alone."""
    run = train.Run(recipe(folder, tmp_path / "run", "--max_steps", "2"))
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=32.0)
    run.save_checkpoint()
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    names = {"model.safetensors", "optimizer.bin", "scaler.pt", "random_states_0.pkl"}
    own = {"place.json"}  # the run's step, its schedule and its position in the data
    assert {path.name for path in checkpoint.iterdir()} == names | own
    again = train.Run(recipe(folder, tmp_path / "run", "--max_steps", "2"))
    again.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    again.resume()
    assert again.accelerator.scaler.state_dict()["scale"] == 32.0
