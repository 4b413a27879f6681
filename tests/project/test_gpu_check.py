"""The check of a card, on the CPU with a tiny model: the same code without a card."""

import json
import sys

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
