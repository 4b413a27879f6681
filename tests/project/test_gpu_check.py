"""The check of a card, on the CPU with a tiny model: the same code without a card."""

import json
import os
import signal
import sys
import threading

import pytest
import torch

from benchmarks import gpu_check, records
from tests.processes import run_process


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_one_line_says_so(capsys, tmp_path):
    assert gpu_check.main(["--record", str(tmp_path / "gpu_check.json")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == "gpu_check.py: there is no CUDA card here, so nothing was checked\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.device_count() > 99, reason="there are cards")
@pytest.mark.parametrize("device, line", [("cuda:99", "no CUDA card 99 here"), ("gpu", "no device 'gpu' is known")])
def test_unknown_devices_are_one_line(device, line, capsys):
    try:
        code = gpu_check.main(["--device", device])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2 and line in capsys.readouterr().err.splitlines()[-1]


def check(tmp_path) -> gpu_check.Check:
    return gpu_check.Check(torch.device("cpu"), True, tmp_path / "results.json")


@pytest.mark.parametrize("name", ["vectors", "train", "cached"])
def test_stage_passes_on_a_cpu(name, tmp_path):
    stage = check(tmp_path)
    stage.run(name, gpu_check.STAGES[name])
    results = json.loads(stage.file.read_text())
    assert results["failed"] == [] and results["rows"][-1][1] == "time"
    assert any(row[3] == "yes" for row in results["rows"])


def test_failed_stage_is_recorded_with_what_it_had(tmp_path):
    def fails(stage: gpu_check.Check, _: float) -> None:
        stage.add("train", "steps", 1, "", 0, True)
        raise RuntimeError("CUDA error: out of memory\nand more")

    stage = check(tmp_path)
    stage.run("train", fails)
    results = json.loads(stage.file.read_text())
    assert results["failed"] == ["train: RuntimeError: CUDA error: out of memory and more"]
    assert [row[1] for row in results["rows"]][:2] == ["steps", "RuntimeError: CUDA error: out of memory and more"]
    assert "Traceback" in results["raw"]["train error"]


def test_wrong_vectors_fail(tmp_path, monkeypatch):
    stage = check(tmp_path)
    monkeypatch.setattr(gpu_check, "LEAST_COSINE", {"fp32": 1.1, "bf16": 0.0, "flash": 0.0})
    stage.run("vectors", gpu_check.vectors)
    assert stage.failed and all(": fp32" in line for line in stage.failed)


def test_figures_that_are_not_finite_are_recorded(tmp_path):
    stage = check(tmp_path)
    stage.add("train", "loss: last of first", float("nan"), "", 3, False)
    stage.add("train", "clips a second", float("inf"), "", 1)
    records.write(
        tmp_path / "a.json", title="a", seed=0, values={"checks": records.table(["a", "b", "c", "d"], stage.rows)}
    )
    rows = records.read(tmp_path / "a.json")["values"]["checks"]["rows"]
    assert [row[2] for row in rows] == ["nan", "inf"] and rows[0][3] == "no"


def recorded(tmp_path, stages: str) -> tuple[int, list]:
    """The exit code of a check, and the rows of its record."""
    file = tmp_path / "gpu_check.json"
    code = gpu_check.main(["--device", "cpu", "--tiny", "--stages", stages, "--record", str(file)])
    return code, records.read(file)["values"]["checks"]["rows"]


def test_stage_that_takes_too_long_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu_check.BUDGETS, "train", 0.2)  # less than the start of a process takes
    assert recorded(tmp_path, "train") == (1, [["train", "was stopped after its 0.2 s", None, "no"]])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_check_is_recorded(number, tmp_path):
    before = signal.getsignal(number)

    def stop():
        for _ in range(2):  # launchers send a signal twice
            os.kill(os.getpid(), number)

    timer = threading.Timer(0.5, stop)
    timer.start()
    code, rows = recorded(tmp_path, "train,vectors")
    timer.join()
    assert code == 128 + number and rows[-1] == ["train", "was stopped by a signal", None, "no"]
    assert signal.getsignal(number) is before


def test_budgets_are_under_8_minutes():
    assert set(gpu_check.BUDGETS) == set(gpu_check.STAGES) and sum(gpu_check.BUDGETS.values()) < 8 * 60


@pytest.mark.slow
def test_all_stages_are_recorded(tmp_path):
    file = tmp_path / "gpu_check.json"
    command = [sys.executable, gpu_check.__file__, "--device", "cpu", "--tiny", "--record", str(file)]
    done = run_process(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = records.read(file)["values"]["checks"]["rows"]
    assert {row[0] for row in rows} == set(gpu_check.STAGES) and not [row for row in rows if row[3] == "no"]
