"""Memory of a training process: freed tensors, recomputed states, and the peak."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import generic

import train
from processing.collator import AudioTextCollator
from tests.conftest import RATE, tone
from tests.tone_runs import folder, recipe  # noqa: F401
from wavlink.training import memory
from wavlink.training.factory import prepared
from wavlink.training.finetuning import set_trainable
from wavlink.training.memory import peak_memory

# A block of 16 MB that is freed makes glibc take all smaller ones from the heap; the last tensor keeps the heap's end.
FREED = """
import sys
import torch
from wavlink.training.memory import limit_kept_memory, peak_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4 >> 10

if sys.argv[1] == "True":
    print(limit_kept_memory())
block = torch.ones(1 << 22)
del block
before = resident()
tensors = [torch.ones((1 << 20) - 512 * i) for i in range(100)]
assert resident() > before + 200 and peak_memory() >= resident() - 1
del tensors[:-1]
print(resident() - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")


def run(returned: bool, code: str = FREED, **environment) -> list[str]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRE", "LRU_", "ONEDNN_"))
    }
    command = [sys.executable, "-c", code, str(returned)]
    options = {"capture_output": True, "text": True, "check": True, "timeout": 300}
    return subprocess.run(command, env={**clean, **environment}, **options).stdout.split()


@pytest.mark.slow
@glibc
def test_freed_tensors_go_back_to_the_system():
    """In MiB, of 390 freed: by itself glibc keeps them."""
    assert int(run(False)[-1]) > 200
    answer, kept = run(True)
    assert answer == "True" and int(kept) < 50


@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_recomputed_states_come_without_a_warning_of_a_cache(folder, tmp_path, monkeypatch, checkpointing):  # noqa: F811
    """BERT's config says `use_cache`, which a saved model keeps."""
    warned = []
    monkeypatch.setattr(generic.logger, "warning_once", lambda *words: warned.append(words))
    monkeypatch.setattr(memory, "MANY_TOKENS", 1)
    options = ["--max_steps", "1", "--gradient_checkpointing", checkpointing]
    run = train.train(recipe(folder, tmp_path / "run", *options))
    config = json.loads((run / "last/config.json").read_text(encoding="utf-8"))
    assert not warned and config["text_config"].get("use_cache", True)


@pytest.mark.slow
@glibc
def test_settings_of_the_environment_stay():
    assert run(True, MALLOC_TRIM_THRESHOLD_="100000000")[0] == "False"


# Products in bf16 of ever other lengths: what oneDNN keeps of all of them is much more than of the last 32.
LENGTHS = """
import sys
import torch
from wavlink.training.memory import limit_kept_memory, return_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4 >> 10

if sys.argv[1] == "True":
    limit_kept_memory()
layer = torch.nn.Linear(384, 1536).bfloat16()
for length in range(100, 300):
    if length == 110:
        before = resident()
    layer(torch.ones(8 * length, 384, dtype=torch.bfloat16)).sum().backward()
    return_freed_memory()
print(resident() - before)
"""


@pytest.mark.slow
@glibc
def test_new_lengths_take_no_new_memory():
    """In MiB, over 190 lengths; 916 without the limits, on a CPU whose products in bf16 are oneDNN's."""
    assert int(run(True, code=LENGTHS)[-1]) < 100


def gradients(model, processor) -> dict:
    """Of three clips of unequal length and their captions, in bf16, with dropout in the text tower."""
    rows = [
        {"audio": {"array": tone(300, 0.3 + i, i), "sampling_rate": RATE}, "caption": "a " * (1 + i)} for i in range(3)
    ]
    batch = AudioTextCollator(processor, ["caption"])(rows)
    model.train()
    for module in model.text_model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.1
    model.zero_grad()
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch, return_loss=True).loss
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(results: dict, expected: dict) -> None:
    assert results.keys() == expected.keys()
    assert all(torch.equal(results[name], gradient) for name, gradient in expected.items())


@pytest.mark.parametrize("many", [True, False])
def test_recomputed_attention_has_the_same_gradients(model, processor, monkeypatch, many):
    """To the last bit, in bf16 and with a mask, a clip at a time."""
    model.set_attn_implementation("eager")
    expected, sizes = gradients(model, processor), []
    monkeypatch.setattr(memory, "MANY_WEIGHTS", 1 if many else 1 << 40)
    recompute = lambda run, *piece, **options: sizes.append(len(piece[0])) or checkpoint(run, *piece, **options)  # noqa: E731
    monkeypatch.setattr(memory, "checkpoint", recompute)
    memory.recompute_attention(model.audio_model)
    assert_equal(gradients(model, processor), expected)
    assert bool(sizes) == many and {*sizes} <= {1}


@pytest.mark.parametrize("many", [True, False])
def test_recomputed_texts_have_the_same_gradients(model, processor, monkeypatch, many):
    """To the last bit, dropout included; each layer runs again in backward."""
    layer = next(module for module in model.text_model.modules() if isinstance(module, GradientCheckpointingLayer))
    calls = []
    next(layer.children()).register_forward_hook(lambda *_: calls.append(1))
    expected = gradients(model, processor)
    assert len(calls) == 1
    monkeypatch.setattr(memory, "MANY_TOKENS", 2 if many else 1 << 40)
    memory.recompute_long_texts(model.text_model)
    assert_equal(gradients(model, processor), expected)
    assert len(calls) == (3 if many else 2)
    with torch.no_grad():
        model.get_text_features(**processor(text=["a"], return_tensors="pt"))
    assert not layer.gradient_checkpointing


@pytest.mark.parametrize("how", ["recompute_long_texts", "gradient_checkpointing"])
def test_a_text_tower_that_does_not_learn_has_no_backward(model, processor, monkeypatch, how):
    """transformers' checkpointing lets a tower's input require gradients, so that a frozen tower has them too."""
    frozen = set_trainable(model, "full", "audio").train()
    if how == "gradient_checkpointing":
        options = "--scope", "audio", "--gradient_checkpointing", "true"
        frozen = prepared(frozen, recipe("synthetic", "out", *options)).train()
        layers = [layer for layer in frozen.modules() if isinstance(layer, GradientCheckpointingLayer)]
        assert 0 < sum(layer.gradient_checkpointing for layer in layers) < len(layers)
    monkeypatch.setattr(memory, "MANY_TOKENS", 2)
    memory.recompute_long_texts(frozen.text_model)
    states = frozen.get_text_features(**processor(text=["a"], return_tensors="pt")).last_hidden_state
    assert not states.requires_grad


def test_a_run_notes_its_peak_memory(folder, tmp_path, monkeypatch):  # noqa: F811
    for name in ("draw_loss", "draw_recall", "draw_similarities"):
        monkeypatch.setattr(f"wavlink.training.log.{name}", lambda *_: None)
    output = train.train(recipe(folder, tmp_path / "run", "--max_steps", "1"))
    last = json.loads((output / "environment.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 1 and 100 < last["peak_memory_mib"] <= peak_memory()
