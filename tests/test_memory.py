"""What a training process keeps of the memory of freed tensors."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

import train
from modeling_wavlink import memory
from modeling_wavlink.memory import peak_memory
from processing.data import AudioTextCollator

from .conftest import RATE, tone

# A block of 16 MB that is freed makes glibc take all smaller ones from the heap; the last tensor keeps the heap's end.
FREED = """
import sys
import torch
from modeling_wavlink.memory import peak_memory, return_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4 >> 10

if sys.argv[1] == "True":
    print(return_freed_memory())
block = torch.ones(1 << 22)
del block
before = resident()
tensors = [torch.ones((1 << 20) - 512 * i) for i in range(100)]
assert resident() > before + 200 and peak_memory() >= resident() - 1
del tensors[:-1]
print(resident() - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")


def run(returned: bool, **environment) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRE"))}
    command = [sys.executable, "-c", FREED, str(returned)]
    options = {"capture_output": True, "text": True, "check": True, "timeout": 300}
    return subprocess.run(command, env={**clean, **environment}, **options).stdout.split()


@glibc
def test_freed_tensors_go_back_to_the_system():
    """In MiB, of 390 freed: by itself glibc keeps them."""
    assert int(run(False)[-1]) > 200
    answer, kept = run(True)
    assert answer == "True" and int(kept) < 50


@glibc
def test_settings_of_the_environment_stay():
    assert run(True, MALLOC_TRIM_THRESHOLD_="100000000")[0] == "False"


@pytest.mark.parametrize("many", [True, False])
def test_recomputed_attention_has_the_same_gradients(model, processor, monkeypatch, many):
    """To the last bit, in bf16 and with a mask."""
    model.set_attn_implementation("eager")
    rows = [{"audio": {"array": tone(300, 0.3 + i, i), "sampling_rate": RATE}, "caption": str(i)} for i in range(3)]
    batch = AudioTextCollator(processor, ["caption"])(rows)
    layers = model.audio_model.encoder.layers
    sizes, attend = [], memory._attend
    monkeypatch.setattr(
        memory, "_attend", lambda module, *piece: sizes.append(len(piece[0])) or attend(module, *piece)
    )

    def gradients():
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    monkeypatch.setattr(memory, "MANY_WEIGHTS", 1 if many else 1 << 40)
    for layer in layers:
        memory.recompute_large_attention(layer.self_attn)
    found = gradients()
    assert sizes == ([1] * 2 * len(rows) * (len(layers) - 1) if many else [])
    # a clip at a time, forward and backward; the last layer computes the token alone
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_a_run_notes_its_peak_memory(tmp_path, monkeypatch):
    for name in ("draw_loss", "draw_recall", "draw_similarities"):
        monkeypatch.setattr(train, name, lambda *_: None)
    options = ["--max_steps", "1", "--batch_size", "2", "--num_workers", "0", "--mixed_precision", "no"]
    output = train.train(train.parse_recipe(["quickstart", "--output_dir", str(tmp_path), *options]))
    last = json.loads((output / "environment.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 1 and 100 < last["peak_memory_mib"] <= peak_memory()
