"""One gradient: a batch in small chunks is the batch in one piece."""

import pytest
import torch
from accelerate import Accelerator

from modeling_wavlink.grad_cache import backward, trim
from processing.data import AudioTextCollator

from .conftest import RATE, tone

CAPTIONS = ["a dog", "the cat", "the bell rings", "a dog", "low rain", "a low sound", "the high cat"]


@pytest.fixture
def batch(processor) -> dict[str, torch.Tensor]:
    """Seven clips of different lengths, two with the same caption."""
    rows = [
        {"audio": {"array": tone(200 * (i + 1), 0.2 + 0.07 * i, i), "sampling_rate": RATE}, "captions": [caption]}
        for i, caption in enumerate(CAPTIONS)
    ]
    return AudioTextCollator(processor)(rows)


def gradients(model, batch, micro_batch_size) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(5)
    loss = backward(Accelerator(cpu=True), model, batch, micro_batch_size)
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


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
