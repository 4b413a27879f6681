"""`benchmarks/load.py` compares every answer, also beside hostile connections, and counts those that are wrong."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.processes import run_process

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM"),
]


def load(model, tmp_path, *options: str):
    command = [sys.executable, ROOT / "benchmarks/load.py", model, "--seconds", "2", "--clip_seconds", "0.3", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return run_process(command, env=environment, capture_output=True, text=True)


def test_every_answer_is_compared_and_the_record_holds_the_figures(wavlink_folder, tmp_path):
    record = tmp_path / "load.json"
    done = load(wavlink_folder, tmp_path, "--clients", "1", "6", "--hostile", "30", "--record", str(record))
    assert done.returncode == 0, done.stderr
    phases = json.loads(record.read_text())["raw"]["phases"]
    assert [phase["clients"] for phase in phases] == [1, 6]
    assert all(phase["answers"] > 0 and phase["errors"] == phase["wrong"] == 0 for phase in phases)
    assert json.loads(record.read_text())["raw"]["exit_code"] == 143
    assert "| clients | requests a second |" in done.stdout


def test_wrong_answers_and_errors_fail_the_run(wavlink_folder, tmp_path):
    options = "--clients", "2", "--serve", "--max_seconds", "0.1"
    done = load(wavlink_folder, tmp_path, *options)
    assert done.returncode == 1 and "errors or wrong answers" in done.stderr
