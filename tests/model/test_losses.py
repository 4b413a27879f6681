"""The losses against numbers done by hand, and the gathered loss against the same batch on one process."""

from datetime import timedelta
from math import exp, log

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from modeling_wavlink.losses_wavlink import (
    LOSSES,
    contrastive_loss,
    false_negatives,
    gather,
    info_nce,
    matryoshka,
    sigmoid,
    truncate_embeddings,
)
from tests.processes import spawn

# exp(logits) of 4 clips (rows) against 4 texts (columns). Row sums 8, 10, 16, 10; column sums 8, 12, 12, 12.
EXP_LOGITS = torch.tensor([[4.0, 2, 1, 1], [1, 6, 1, 2], [2, 2, 8, 4], [1, 2, 2, 5]])


def hand_made() -> tuple[torch.Tensor, torch.Tensor]:
    """Clips and texts whose logits at scale 1 are log(EXP_LOGITS), the texts a leaf: its gradient is the logits'."""
    return torch.eye(4), EXP_LOGITS.log().T.contiguous().requires_grad_()


def close(actual, expected, tolerance=1e-5):
    return actual.item() == pytest.approx(expected, abs=tolerance)


def softplus(x):
    return log(1 + exp(x))


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_identical_embeddings(batch):
    rows = torch.ones(batch, 4) / 2
    assert close(info_nce(rows, rows, 10.0), log(batch))
    assert close(sigmoid(rows, rows, 3.0, -1.0), softplus(-2) + (batch - 1) * softplus(2))


@pytest.mark.parametrize("batch", [2, 5])
def test_orthogonal_pairs(batch):
    rows = torch.eye(batch)
    assert close(info_nce(rows, rows, 2.0), log(exp(2) + batch - 1) - 2)
    assert close(sigmoid(rows, rows, 2.0, -0.5), softplus(-1.5) + (batch - 1) * softplus(-0.5))


def test_four_by_four_by_hand():
    audio, text = hand_made()
    rows, columns = (4 / 8) * (6 / 10) * (8 / 16) * (5 / 10), (4 / 8) * (6 / 12) * (8 / 12) * (5 / 12)
    assert close(info_nce(audio, text, 1.0), -(log(rows) + log(columns)) / 8)
    positives = (5 / 4) * (7 / 6) * (9 / 8) * (6 / 5)  # 1 + 1 / n on the diagonal
    negatives = (3 * 2 * 2) * (2 * 2 * 3) * (3 * 3 * 5) * (2 * 3 * 3)  # 1 + n elsewhere
    assert close(sigmoid(audio, text, 1.0, 0.0), log(positives * negatives) / 4)


def test_scale_and_bias_enter_the_logits():
    audio, text = hand_made()
    assert close(info_nce(audio, text / 5, 5.0), info_nce(audio, text, 1.0).item())
    assert close(sigmoid(audio, (text - 2) / 5, 5.0, 2.0), sigmoid(audio, text, 1.0).item())


def test_both_directions():
    audio, text = hand_made()
    audio_to_text = -log((4 / 8) * (6 / 10) * (8 / 16) * (5 / 10)) / 4
    text_to_audio = -log((4 / 8) * (6 / 12) * (8 / 12) * (5 / 12)) / 4
    assert abs(audio_to_text - text_to_audio) > 0.01  # a loss of one direction, or of one twice, would show it
    for loss in (info_nce(audio, text, 1.0), info_nce(text, audio, 1.0)):
        assert close(loss, (audio_to_text + text_to_audio) / 2)
    assert close(sigmoid(text, audio, 1.0, -1.0), sigmoid(audio, text, 1.0, -1.0).item())


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_every_negative_is_pushed_away_and_every_positive_pulled(loss):
    audio, text = hand_made()
    loss(audio, text, 1.0).backward()
    positive = torch.eye(4, dtype=torch.bool)
    assert (text.grad[positive] < -0.01).all()
    assert (text.grad[~positive] > 0.01).all()


def test_gradients_by_hand():
    audio, text = hand_made()
    info_nce(audio, text, 1.0).backward()
    # (p(text 1 | clip 0) + p(clip 0 | text 1)) / (2 * 4), and the same with the target taken off.
    assert close(text.grad[1, 0], (2 / 8 + 2 / 12) / 8)
    assert close(text.grad[1, 1], (6 / 10 + 6 / 12 - 2) / 8)
    audio, text = hand_made()
    sigmoid(audio, text, 1.0).backward()
    assert close(text.grad[1, 0], (2 / 3) / 4)  # sigmoid(log 2) = 2 / 3
    assert close(text.grad[1, 1], -(1 / 7) / 4)  # sigmoid(-log 6) = 1 / 7


def test_matryoshka_is_the_mean_of_renormalised_slices():
    audio = torch.tensor([[0.6, 0.8], [-0.6, 0.8]])
    text = torch.tensor([[1.0, 0.0], [-0.8, 0.6]])
    one = log(1 + exp(-2))  # at dim 1 both are [1, -1]
    two = (log(1 + exp(-0.6)) + log(1 + exp(-1.56)) + log(1 + exp(-1.2)) + log(1 + exp(-0.96))) / 4
    assert close(matryoshka(info_nce, [1], audio, text, 1.0), one)
    assert close(matryoshka(info_nce, [2, 1], audio, text, 1.0), (one + two) / 2)
    two = (softplus(-0.6) + softplus(0.0) + softplus(-0.6) + softplus(-0.96)) / 2  # logits .6, 0, -.6, .96
    one = (softplus(-1) + softplus(-1) + softplus(-1) + softplus(-1)) / 2
    assert close(matryoshka(sigmoid, [2, 1], audio, text, 1.0, 0.0), (one + two) / 2)


def test_truncate_embeddings():
    embeds = torch.tensor([[3.0, 4.0, 12.0], [0.0, -2.0, 5.0]])
    assert torch.allclose(truncate_embeddings(embeds, 2), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))
    assert torch.allclose(truncate_embeddings(embeds, 3)[0] * 13, embeds[0])
    assert truncate_embeddings(embeds.expand(5, 2, 3), 2).shape == (5, 2, 2)


@pytest.mark.parametrize("dim", [0, -1, 4])
def test_truncate_embeddings_refuses(dim):
    with pytest.raises(ValueError, match=f"between 1 and the embeddings' width 3, got {dim}"):
        truncate_embeddings(torch.ones(2, 3), dim)


def mask(*pairs, shape):
    out = torch.zeros(shape, dtype=torch.bool)
    for row, column in pairs:
        out[row, column] = True
    return out


@pytest.mark.parametrize(
    ("caption_ids", "clips_to_texts"),
    [
        ([[0], [1], [2]], []),
        ([[5], [7], [5]], [(0, 2), (2, 0)]),  # two clips with the same text
        ([[0, 3], [1, 0], [2, -1]], [(1, 0)]),  # clip 1 could also have been captioned by the text of clip 0
        ([[0, 1, 2], [1, -1, -1], [2, 9, -1]], [(0, 1), (0, 2)]),  # a clip with several captions in the batch
        ([[0, 4], [1, 4], [2, -1]], []),  # a shared caption that is not in the batch
        ([[3, 3], [1, 3], [2, -1]], [(1, 0)]),
    ],
)
def test_false_negatives_by_hand(caption_ids, clips_to_texts):
    ids = torch.tensor(caption_ids)
    actual = false_negatives(ids, ids)
    expected = mask(*clips_to_texts, shape=(3, 3))
    assert torch.equal(actual[0], expected)
    assert torch.equal(actual[1], expected.T)


def test_false_negatives_of_a_later_process():
    everyone = torch.tensor([[0, 2], [1, -1], [2, 0], [1, -1]])
    clips_to_texts, texts_to_clips = false_negatives(everyone[2:], everyone, first_row=2)
    assert torch.equal(clips_to_texts, mask((0, 0), (1, 1), shape=(2, 4)))
    assert torch.equal(texts_to_clips, mask((0, 0), (1, 1), shape=(2, 4)))


def test_ignored_pairs_leave_the_loss():
    audio, text = hand_made()
    ids = torch.tensor([[0, 1], [1, -1], [2, -1], [3, -1]])  # the text of clip 1 is also true of clip 0
    ignore = false_negatives(ids, ids)
    rows, columns = (4 / 6) * (6 / 10) * (8 / 16) * (5 / 10), (4 / 8) * (6 / 10) * (8 / 12) * (5 / 12)
    loss = info_nce(audio, text, 1.0, ignore=ignore)
    assert close(loss, -(log(rows) + log(columns)) / 8)
    pair_loss = sigmoid(audio, text, 1.0, ignore=ignore)
    assert close(pair_loss, sigmoid(audio, text, 1.0).item() - log(1 + 2) / 4)
    (loss + pair_loss).backward()
    assert text.grad[1, 0] == 0
    assert (text.grad[text.grad != 0]).numel() == 15


# Two processes, 5 and 3 rows: rows 0 and 5 have the same text, clip 6 could also have been captioned by text 1.
LOCAL_ROWS = [slice(0, 5), slice(5, 8)]
CAPTION_IDS = torch.tensor([[0, -1], [1, -1], [2, -1], [3, 9], [4, -1], [0, -1], [6, 1], [7, -1]])
CASES = [(loss_type, with_ids) for loss_type in LOSSES for with_ids in (False, True)]


class Projections(nn.Module):
    """As the model: two projections, a log scale, and a bias that only SigLIP trains."""

    def __init__(self, loss_type: str):
        super().__init__()
        torch.manual_seed(0)
        self.audio, self.text = nn.Linear(6, 8, bias=False), nn.Linear(6, 8, bias=False)
        self.scale, self.bias = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor(-2.0))
        self.bias.requires_grad_(loss_type == "sigmoid")
        self.loss_type = loss_type

    def forward(self, clips, texts, ids):
        embeds = self.audio(clips), self.text(texts)
        scale = self.scale.exp(), self.bias
        return contrastive_loss(*embeds, *scale, self.loss_type, [8, 4, 2], ids, gather_negatives=True)


def loss_and_gradients(case, rows=slice(None), wrap=lambda model: model):
    loss_type, with_ids = case
    model = wrap(Projections(loss_type))
    inputs = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(1))
    loss = model(inputs[0, rows], inputs[1, rows], CAPTION_IDS[rows] if with_ids else None)
    loss.backward()
    gradients = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {"loss": loss.detach(), **gradients}


def work(rank, folder):
    dist.init_process_group(
        "gloo", f"file://{folder}/meeting", timeout=timedelta(minutes=3), rank=rank, world_size=len(LOCAL_ROWS)
    )
    rows = LOCAL_ROWS[rank]
    results = {case: loss_and_gradients(case, rows, DistributedDataParallel) for case in CASES}
    leaf = torch.arange(16.0).view(8, 2)[rows].requires_grad_()
    together, first_row = gather(leaf)
    (together * torch.arange(8.0)[:, None] * (rank + 1)).sum().backward()
    torch.save({**results, "gather": (together.detach(), first_row, leaf.grad)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_processes")
    spawn(work, (str(folder),), len(LOCAL_ROWS))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(LOCAL_ROWS))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}{'-caption_ids' if case[1] else ''}")
def test_two_processes_are_one(case, two_processes):
    expected = loss_and_gradients(case)
    for name, value in expected.items():
        ranks = torch.stack([results[case][name] for results in two_processes])
        together = ranks.mean(0) if name == "loss" else ranks[0]  # DDP has averaged the gradients
        assert torch.allclose(together, value, rtol=0, atol=1e-5), name
        assert name == "loss" or value.abs().max() > 1e-3
    without_ids = loss_and_gradients((case[0], False))["loss"]
    assert (abs(expected["loss"] - without_ids) > 1e-2) == case[1]  # the ids of both processes matter


def test_gather_of_uneven_batches(two_processes):
    for rank, rows in enumerate(LOCAL_ROWS):
        together, first_row, gradient = two_processes[rank]["gather"]
        assert torch.equal(together, torch.arange(16.0).view(8, 2))
        assert first_row == rows.start
        assert torch.equal(gradient, 3 * torch.arange(8.0)[rows, None].expand(-1, 2))  # from both processes: 1 + 2


def test_gather_without_a_process_group():
    rows = torch.ones(3, 2)
    assert gather(rows) == (rows, 0)
