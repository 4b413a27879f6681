"""The loop on two processes equals the loop on one."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import run_process
from tests.tone_runs import (
    TEXT_CONFIG,
    folder,  # noqa: F401
)

ROOT = Path(__file__).parents[2]
TWO = ["-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu_2.yaml"]


def losses(launcher: list[str], data, output, *options) -> list[float]:
    """The losses of six steps; the mean over processes is the loss of the whole batch."""
    command = ["train.py", "quickstart", "--data", str(data), "--output_dir", str(output), "--label_prompt", ""]
    command += ["--batch_size", "5", "--max_steps", "6", "--num_workers", "0", "--mixed_precision", "no", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = run_process(
        [sys.executable, *launcher, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["info_nce", "sigmoid"])
def test_two_processes_train_as_one(folder, tmp_path, loss_type):  # noqa: F811
    """Five clips a batch: three on one process, which chunks of two cut, and two on the other. Dropout is off, since
    chance differs by process."""
    options = ["--loss_type", loss_type, "--text_config", json.dumps(TEXT_CONFIG), "--token_start", "mean_frame"]
    alone = losses([], folder, tmp_path / "alone", *options)
    together = losses(TWO, folder, tmp_path / "together", *options)
    cached = losses(TWO, folder, tmp_path / "cached", *options, "--micro_batch_size", "2")
    assert together == pytest.approx(alone, rel=1e-5) and cached == pytest.approx(alone, rel=1e-5)
    assert len(alone) == 6 and alone[-1] != alone[0]


@pytest.mark.slow
def test_two_processes_train_as_one_with_bank_labels_and_average(folder, tmp_path):  # noqa: F811
    options = ["--text_config", json.dumps(TEXT_CONFIG), "--scope", "audio", "--caption_bank", "true"]
    options += ["--label_prompts", "a {},the sound of {}", "--label_share", "0.4", "--ema_decay", "0.9"]
    options += ["--learning_rate", "1e-4"]
    alone = losses([], folder, tmp_path / "alone", *options)
    together = losses(TWO, folder, tmp_path / "together", *options)
    cached = losses(TWO, folder, tmp_path / "cached", *options, "--micro_batch_size", "2")
    assert together == pytest.approx(alone, rel=1e-5) and cached == pytest.approx(alone, rel=1e-5)
    expected = load_file(tmp_path / "alone/last/model.safetensors")
    for run in ("together", "cached"):
        for name, weights in load_file(tmp_path / run / "last/model.safetensors").items():
            torch.testing.assert_close(weights, expected[name], atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
