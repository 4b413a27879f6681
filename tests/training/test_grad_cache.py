"""The gradient of a batch in chunks, or on two processes, is that of the undivided batch."""

import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator

from modeling_wavlink import WavLinkModel
from processing.collator import AudioTextCollator
from tests.conftest import RATE, tone
from tests.model_gradients import gradients, without_chance
from tests.processes import spawn
from wavlink.training import grad_cache
from wavlink.training.grad_cache import backward, trim

CAPTIONS = ["a dog", "the cat", "the bell rings", "a dog", "low rain", "a low sound", "the high cat"]
FURTHER = [["the dog barks", "low rain"], [], ["a bell"], ["this is a dog"], [], ["low rain", "a sound", "rain"], []]


@pytest.fixture
def batch(processor) -> dict[str, torch.Tensor]:
    """Seven clips of different lengths, two with the same caption."""
    rows = [
        {"audio": {"array": tone(200 * (i + 1), 0.2 + 0.07 * i, i), "sampling_rate": RATE}, "captions": [caption]}
        for i, caption in enumerate(CAPTIONS)
    ]
    return AudioTextCollator(processor)(rows)


@pytest.fixture
def captioned(processor) -> dict[str, torch.Tensor]:
    """The same clips with one to four texts each, fourteen in all; clips 0, 4 and 5 share one, 0 and 3 another."""
    rows = [
        {
            "audio": {"array": tone(200 * (i + 1), 0.2 + 0.07 * i, i), "sampling_rate": RATE},
            "captions": [CAPTIONS[i], *further],
        }
        for i, further in enumerate(FURTHER)
    ]
    return AudioTextCollator(processor, all_captions=True)(rows)


@pytest.mark.parametrize("loss_type", ["info_nce", "sigmoid"])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 6])
@pytest.mark.parametrize("masked", [True, False])
def test_chunks_give_the_gradients_of_the_whole(model, batch, loss_type, micro_batch_size, masked):
    model.config.loss_type = loss_type
    model.freeze_constants()
    model.eval()  # no dropout: chance differs between one piece and chunks
    if not masked:
        batch.pop("caption_ids")
    loss, expected = gradients(model, batch, 0)
    cached_loss, cached = gradients(model, batch, micro_batch_size)
    assert cached_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(cached[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert expected["logit_scale"].abs() > 1e-6 and expected["audio_model.global_token"].abs().max() > 1e-6


@pytest.mark.parametrize("loss_type", ["info_nce", "sigmoid"])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 6])
def test_chunks_of_several_texts_a_clip(model, captioned, loss_type, micro_batch_size):
    model.config.loss_type = loss_type
    model.config.label_smoothing = 0.1 if loss_type == "info_nce" else 0.0
    model.freeze_constants()
    loss, expected = gradients(model, captioned, 0)
    assert loss == pytest.approx(model(**captioned, return_loss=True).loss.item(), rel=1e-6)
    cached_loss, cached = gradients(model, captioned, micro_batch_size)
    assert cached_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(cached[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def share(batch: dict[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """The first four clips, or the other three, with their texts."""
    first, stop = ((0, 4), (4, 7))[rank]
    texts = (batch["text_owner"] >= first) & (batch["text_owner"] < stop)
    of_clips = ("input_features", "input_features_mask", "caption_ids")
    batch = {name: rows[first:stop] if name in of_clips else rows[texts] for name, rows in batch.items()}
    return {**batch, "text_owner": batch["text_owner"] - first}


def work(rank, folder):
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {**ranks, "ACCELERATE_USE_CPU": "true"}
    dist.init_process_group("gloo", f"file://{folder}/meeting", timeout=timedelta(minutes=3), rank=rank, world_size=2)
    accelerator = Accelerator(cpu=True)
    batch = share(torch.load(f"{folder}/batch.pt", weights_only=True), rank)
    found = {}
    for loss_type in ("info_nce", "sigmoid"):
        for micro_batch_size in (0, 2):
            model = without_chance(WavLinkModel.from_pretrained(folder), loss_type)
            model = accelerator.prepare(model)
            loss = accelerator.reduce(backward(accelerator, model, batch, micro_batch_size), "mean")
            named = accelerator.unwrap_model(model).named_parameters()
            found[loss_type, micro_batch_size] = loss, {name: p.grad for name, p in named if p.requires_grad}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_several_texts_a_clip_on_two_processes_and_in_chunks(model, captioned, tmp_path):
    model.save_pretrained(tmp_path)
    torch.save(captioned, tmp_path / "batch.pt")
    spawn(work, (str(tmp_path),), 2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for (loss_type, micro_batch_size), (loss, together) in ranks[0].items():
        alone, expected = gradients(without_chance(model, loss_type), captioned, 0)
        assert loss.item() == pytest.approx(alone, rel=1e-6)
        assert set(together) == set(expected) and expected["audio_projection.weight"].abs().max() > 1e-2
        for name, gradient in expected.items():
            where = f"{loss_type}, chunks of {micro_batch_size}, {name}"
            torch.testing.assert_close(
                together[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, w=where: f"{w}: {m}"
            )
            assert torch.equal(together[name], ranks[1][loss_type, micro_batch_size][1][name])


def test_dropout_is_replayed(model, batch):
    """The second pass must meet the first one's chance: finite differences of the loss then agree."""
    model.train()
    model.config.text_config.hidden_dropout_prob = 0.5
    for module in model.text_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    _, cached = gradients(model, batch, 3)
    name, parameter = "text_projection.weight", model.text_projection.weight
    direction = torch.randn_like(parameter)
    slope = (cached[name] * direction).sum().item()
    losses = []
    for step in (1e-3, -1e-3):
        with torch.no_grad():
            parameter.add_(step * direction)
        losses.append(gradients(model, batch, 3)[0])
        with torch.no_grad():
            parameter.sub_(step * direction)
    assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(slope, rel=0.02)


def test_trim_drops_only_common_padding():
    chunk = {
        "input_features": torch.ones(2, 80, 9),
        "input_features_mask": torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0, 0]]),
        "input_ids": torch.ones(2, 4),
        "attention_mask": torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]),
    }
    assert {name: x.shape[-1] for name, x in trim(chunk).items()} == {
        "input_features": 5,
        "input_features_mask": 5,
        "input_ids": 2,
        "attention_mask": 2,
    }


def test_trim_keeps_texts_that_are_padded_on_the_left():
    chunk = {
        "input_ids": torch.arange(10).view(2, 5),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 0], [0, 0, 0, 1, 0]]),
    }
    trimmed = trim(chunk)
    assert trimmed["input_ids"].tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]]
    assert trimmed["attention_mask"].tolist() == [[0, 0, 1, 1], [0, 0, 0, 1]]


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_chunks_of_texts_padded_on_the_left(model, batch, micro_batch_size):
    model.eval()
    masks = batch["attention_mask"] == 1
    texts = [torch.cat([row[~own], row[own]]) for row, own in zip(batch["input_ids"], masks, strict=True)]
    batch |= {"input_ids": torch.stack(texts), "attention_mask": batch["attention_mask"].flip(-1)}
    loss, expected = gradients(model, batch, 0)
    cached_loss, cached = gradients(model, batch, micro_batch_size)
    assert cached_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(cached[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


class FakeDevice:
    """Stands for `torch.mps` or `torch.xpu`: a random state, as a number."""

    def __init__(self, takes_device: bool):
        self.takes_device, self.state = takes_device, 7

    def get_rng_state(self, *device):
        assert bool(device) == self.takes_device
        return self.state

    def set_rng_state(self, state, *device):
        assert bool(device) == self.takes_device
        self.state = state


@pytest.mark.parametrize("kind", ["mps", "xpu", "cuda"])
def test_dropout_is_replayed_on_every_kind_of_device(kind, monkeypatch):
    fake, device = FakeDevice(kind != "mps"), torch.device(kind)
    monkeypatch.setattr(torch, "get_device_module", lambda device: fake)
    states = grad_cache._random_state(device)
    fake.state, first = 9, torch.rand(3)
    with grad_cache._replay(states, device):
        assert fake.state == 7 and torch.equal(torch.rand(3), first)
        fake.state = 8
    assert fake.state == 9


def test_a_device_whose_random_state_cannot_be_set_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "get_device_module", lambda device: object())
    with pytest.raises(ValueError, match="micro_batch_size replays dropout.* a xpu's .*: leave it at 0"):
        grad_cache._random_state(torch.device("xpu"))
