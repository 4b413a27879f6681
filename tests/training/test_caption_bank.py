"""The caption bank: its loss against loops, and one gradient for pieces, processes and an independent formula."""

import json
import os
from datetime import timedelta
from math import exp, log

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.nn import functional as F

import train
from modeling_wavlink import WavLinkModel
from modeling_wavlink.losses_wavlink import bank_cross_entropy, contrastive_loss
from processing import WavLinkProcessor
from processing.collator import AudioTextCollator, caption_key
from tests import tone_runs
from tests.conftest import RATE, tone
from tests.model_gradients import without_chance
from tests.processes import spawn
from tests.tone_runs import TEXT_CONFIG, recipe
from wavlink.training import loop
from wavlink.training.caption_bank import CaptionBank
from wavlink.training.finetuning import set_trainable
from wavlink.training.grad_cache import backward
from wavlink.training.recipe_fields import Recipe

folder = tone_runs.folder
# The captions of seven clips; the first is the text. Clips 0 and 3 share a caption but for its case, 4 has one twice.
CAPTIONS = [
    ["a dog", "the dog barks"],
    ["the cat"],
    ["the bell rings", "a bell", "a sound"],
    ["A dog ", "this is a dog"],
    ["low rain", "low rain"],
    ["a low sound", "rain"],
    ["the high cat"],
]
FURTHER = ["a high bell", "the low dog", "rain rings"]  # of clips that are not in the batch


def test_loss_equals_loops_over_single_pairs():
    generator = torch.Generator().manual_seed(0)
    audio, bank = (torch.randn(rows, 6, generator=generator, dtype=torch.float64) for rows in (3, 5))
    positives = torch.tensor([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=torch.bool)
    expected = 0.0
    for dim in (6, 4):
        for i in range(3):
            logits = [3.0 * F.cosine_similarity(audio[i, :dim], bank[j, :dim], dim=0).item() for j in range(5)]
            total = sum(exp(logit) for logit in logits)
            own = [j for j in range(5) if positives[i, j]]
            expected -= sum(log(exp(logits[j]) / total) for j in own) / len(own) / 2
    assert bank_cross_entropy(audio, bank, 3.0, positives, [6, 4]).item() == pytest.approx(expected, rel=1e-12)


def test_a_bank_of_the_clips_own_captions_has_no_loss():
    one = torch.ones(2, 1, dtype=torch.bool)
    assert bank_cross_entropy(torch.randn(2, 4), torch.randn(1, 4), 9.0, one, [4]).abs() < 1e-6


def locked(model: WavLinkModel, scope: str = "audio", regime: str = "full") -> WavLinkModel:
    """A scale of 2, so that gradients are of a size of which fp32 knows 1e-5."""
    set_trainable(model, regime, scope)
    torch.nn.init.constant_(model.logit_scale, log(2))
    return without_chance(model, "info_nce")


def bank_of(model, processor) -> CaptionBank:
    return CaptionBank(model, processor, [text for texts in [*CAPTIONS, FURTHER] for text in texts])


@pytest.fixture
def batch(processor) -> dict[str, torch.Tensor]:
    return batch_of(processor, CAPTIONS)


def batch_of(processor, captions: list[list[str]]) -> dict[str, torch.Tensor]:
    rows = [
        {"audio": {"array": tone(200 * (i + 1), 0.2 + 0.07 * i, i), "sampling_rate": RATE}, "captions": texts}
        for i, texts in enumerate(captions)
    ]
    return AudioTextCollator(processor)(rows)


def test_a_bank_holds_distinct_captions_and_their_pooled_outputs(model, processor, batch):
    bank = bank_of(model.train(), processor)
    assert model.training and not bank.pooled.requires_grad
    assert bank.pooled.shape == (14, model.config.text_config.hidden_size) and len(bank.ids.unique()) == 14
    assert bank.positives(batch["caption_ids"]).sum(-1).tolist() == [2, 1, 3, 2, 1, 2, 1]
    model.eval()
    with torch.no_grad():
        expected = model.get_text_features(**processor(text=["the cat"], return_tensors="pt")).pooler_output[0]
        got = F.normalize(model.text_projection(bank.pooled), dim=-1)[bank.positives(batch["caption_ids"])[1]][0]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="lacks a caption"):
        bank.positives(torch.tensor([[5, -1]]))
    again = bank_of(model, processor)
    assert torch.equal(again.pooled, bank.pooled) and torch.equal(again.ids, bank.ids)


def learned(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def step(model, batch, bank, micro_batch_size=0, accelerator=None):
    accelerator = accelerator or Accelerator(cpu=True)
    accelerator.unwrap_model(model).zero_grad()
    added_loss = bank.loss_of(batch["caption_ids"])
    loss = accelerator.reduce(backward(accelerator, model, batch, micro_batch_size, added_loss), "mean")
    return loss.item(), learned(accelerator.unwrap_model(model))


@pytest.mark.parametrize("micro_batch_size", [0, 3])
def test_texts_of_the_bank_have_the_loss_and_gradients_of_the_text_tower(model, processor, micro_batch_size):
    model = locked(model)
    bank = bank_of(model, processor)
    # The bank has the first spelling of equal captions, so that spellings must not differ here.
    batch = batch_of(processor, [[caption_key(text) for text in texts] for texts in CAPTIONS])
    loss, gradients = step(model, batch, bank)
    pooled = bank.with_pooled_texts(batch, batch["caption_ids"])
    assert "input_ids" not in pooled and pooled["text_pooled"].shape == (7, model.config.text_config.hidden_size)
    calls = []
    model.text_model.register_forward_hook(lambda *_: calls.append(1))
    got, got_gradients = step(model, pooled, bank, micro_batch_size)
    assert got == pytest.approx(loss, abs=1e-6) and not calls
    for name, gradient in gradients.items():
        torch.testing.assert_close(got_gradients[name], gradient, atol=1e-5, rtol=0, msg=name)
    with torch.no_grad():
        assert torch.allclose(model(**pooled).text_embeds, model(**batch).text_embeds, atol=1e-6)
    with pytest.raises(ValueError, match="one text per clip, got 7 clips and 6 texts"):
        model(**pooled | {"text_pooled": pooled["text_pooled"][:6]}, return_loss=True)


def assert_equal_gradients(got, expected) -> None:
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("scope, regime", [("audio", "full"), ("audio", "lora"), ("both", "projector")])
def test_gradients_equal_an_independent_formula_and_those_of_pieces(model, processor, batch, scope, regime):
    model = locked(model, scope, regime)
    bank = bank_of(model, processor)
    loss, got = step(model, batch, bank)

    texts = sorted({text.strip().lower() for row in [*CAPTIONS, FURTHER] for text in row})
    own = [[text.strip().lower() for text in row] for row in CAPTIONS]
    target = torch.tensor([[float(text in row) for text in texts] for row in own])
    target /= target.sum(-1, keepdim=True)
    model.zero_grad()
    output = model(**batch, return_loss=False)
    candidates = model.get_text_features(**processor(text=texts, return_tensors="pt")).pooler_output
    audio, scale, config = output.audio_embeds, model.logit_scale.exp(), model.config
    # mean over dims of the usual loss and of the bank's
    expected = contrastive_loss(
        audio, output.text_embeds, scale, 0.0, "info_nce", config.matryoshka_dims, batch["caption_ids"]
    )
    for dim in config.matryoshka_dims:
        logits = scale * F.normalize(audio[:, :dim], dim=-1) @ F.normalize(candidates[:, :dim], dim=-1).T
        expected = expected + F.cross_entropy(logits, target) / len(config.matryoshka_dims)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert_equal_gradients(got, learned(model))
    assert all(got[name].abs().max() > 1e-5 for name in ("text_projection.weight", "logit_scale"))

    without = backward(Accelerator(cpu=True), model, batch).item()
    assert loss > without + 1
    for micro_batch_size in (1, 3, 6):
        pieces_loss, pieces = step(model, batch, bank, micro_batch_size)
        assert pieces_loss == pytest.approx(loss, rel=1e-6)
        assert_equal_gradients(pieces, got)


def work(rank, path):
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {**ranks, "ACCELERATE_USE_CPU": "true"}
    dist.init_process_group("gloo", f"file://{path}/meeting", timeout=timedelta(minutes=3), rank=rank, world_size=2)
    accelerator = Accelerator(cpu=True)
    batch = torch.load(f"{path}/batch.pt", weights_only=True)
    share = {name: rows[slice(0, 4) if rank == 0 else slice(4, 7)] for name, rows in batch.items()}
    processor = WavLinkProcessor.from_pretrained(path)
    found = []
    for micro_batch_size in (0, 2):
        plain = locked(WavLinkModel.from_pretrained(path))
        bank = bank_of(plain, processor)
        found.append(step(accelerator.prepare(plain), share, bank, micro_batch_size, accelerator))
    torch.save(found, f"{path}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_and_pieces_have_the_gradient_of_one(model, processor, batch, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    torch.save(batch, tmp_path / "batch.pt")
    loss, expected = step(locked(model), batch, bank_of(model, processor))
    spawn(work, (str(tmp_path),), 2)
    for rank in range(2):
        for other_loss, gradients in torch.load(tmp_path / f"{rank}.pt", weights_only=True):
            assert other_loss == pytest.approx(loss, rel=1e-5)
            assert_equal_gradients(gradients, expected)


OPTIONS = ["--caption_bank", "true", "--scope", "audio", "--label_prompts", "a {},the sound of {}"]


@pytest.mark.parametrize("scope", ["audio", "both"])
def test_killed_run_with_a_bank_resumes_bit_equal(folder, tmp_path, monkeypatch, scope):
    options = [*OPTIONS, "--label_share", "0.3", "--save_steps", "2", "--text_config", json.dumps(TEXT_CONFIG)]
    options += ["--scope", scope, "--spec_augment", "true", "--equalization", "1.5", "--text_learning_rate", "1e-3"]
    whole = train.train(recipe(folder, tmp_path / "whole", *options))
    learn = train.Run.learn

    def die(self, *arguments):
        if self.step == 3:
            raise KeyboardInterrupt
        return learn(self, *arguments)

    monkeypatch.setattr(train.Run, "learn", die)
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe(folder, tmp_path / "killed", *options))
    monkeypatch.setattr(train.Run, "learn", learn)
    resumed = train.train(recipe(folder, tmp_path / "killed", *options))
    expected, got = (load_file(run / "last/model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert (whole / "metrics.jsonl").read_text() == (resumed / "metrics.jsonl").read_text()


@pytest.mark.parametrize("masked", ["true", "false"])
def test_the_bank_of_a_run_holds_captions_and_wordings(folder, tmp_path, masked):
    """Seven captions in two columns each, and three wordings of seven labels."""
    options = ["--mask_false_negatives", masked, "--max_steps", "1"]
    run = train.Run(recipe(folder, tmp_path / masked, *OPTIONS, *options))
    assert len(run.bank.ids) == 7 * 5
    batch = next(iter(run.feed.batches(run.processor, 0)))
    assert run.bank.positives(batch["bank_ids"]).sum(-1).tolist() == [5] * 4
    seen = []
    model, forward = run.accelerator.unwrap_model(run.model), run.model.forward
    model.forward = lambda **inputs: seen.append({*inputs}) or forward(**inputs)
    run.learn(batch)
    assert ("caption_ids" in seen[0]) is (masked == "true")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"loss_type": "sigmoid", "scope": "audio"}, "no softmax over candidates"),
        ({"streaming": True, "scope": "audio", "max_steps": 2}, "leave --streaming out"),
    ],
)
def test_a_bank_that_cannot_work_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe("mine", init="any", caption_bank=True, **fields)
    Recipe("mine", init="any", caption_bank=True)


def test_a_text_tower_that_learns_embeds_the_bank_anew_after_each_epoch(folder, tmp_path, monkeypatch):
    banks, learn, refresh = [], train.Run.learn, CaptionBank.refresh
    made = []

    def learning(self, batch, stop=False):
        banks.append(self.bank.pooled)
        return learn(self, batch, stop)

    monkeypatch.setattr(train.Run, "learn", learning)
    monkeypatch.setattr(CaptionBank, "refresh", lambda self: made.append(1) or refresh(self))
    options = [*OPTIONS, "--scope", "both", "--text_config", json.dumps(TEXT_CONFIG), "--max_steps", "0"]
    run = train.train(recipe(folder, tmp_path / "run", *options, "--epochs", "3", "--learning_rate", "1e-2"))
    per_epoch = len(banks) // 3
    assert len(made) == 3 and len(banks) == 3 * per_epoch
    for step, bank in enumerate(banks[1:], 1):
        assert torch.equal(bank, banks[step - 1]) is (step % per_epoch > 0)
    assert (run / "last").is_dir()


def test_a_checkpoint_without_its_bank_is_refused(folder, tmp_path):
    options = [*OPTIONS, "--scope", "both", "--text_config", json.dumps(TEXT_CONFIG)]
    run = train.train(recipe(folder, tmp_path / "run", *options))
    (saved,) = sorted((run / "checkpoints").glob("step-*"))[-1].glob("caption_bank.safetensors")
    saved.unlink()
    with pytest.raises(ValueError, match="no bank of these captions"):
        train.Run(recipe(folder, tmp_path / "run", *options)).resume()


def test_a_bank_is_refused_with_fsdp2(folder, tmp_path, monkeypatch):
    start = loop.sharding.start

    def sharded(*arguments):
        accelerator = start(*arguments)
        monkeypatch.setattr(type(accelerator), "is_fsdp2", True)
        return accelerator

    monkeypatch.setattr(loop.sharding, "start", sharded)
    with pytest.raises(ValueError, match="does not work with FSDP2"):
        train.Run(recipe(folder, tmp_path / "run", *OPTIONS))
