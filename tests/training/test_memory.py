"""Memory of a training process: recomputed states, and the peak."""

import json

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
