"""Several texts a clip and label smoothing: against loops over single pairs, closed forms and numbers done by hand."""

from math import exp, log

import pytest
import torch
from torch.nn import functional as F

from modeling_wavlink.losses_wavlink import (
    LOSSES,
    contrastive_loss,
    false_negatives,
    info_nce,
    matryoshka,
    sigmoid,
    text_ids,
    truncate_embeddings,
)

OWNER = torch.tensor([0, 0, 1, 2, 2])
# exp(logits) of 3 clips (rows) against 5 texts (columns); rows add up to 12, 10, 20, columns to 6, 9, 10, 10, 7.
EXP_LOGITS = torch.tensor([[3.0, 4, 1, 2, 2], [1, 2, 5, 1, 1], [2, 3, 4, 7, 4]])


def hand_made() -> tuple[torch.Tensor, torch.Tensor]:
    """Clips and texts whose logits at scale 1 are log(EXP_LOGITS), the texts a leaf: its gradient is the logits'."""
    return torch.eye(3), EXP_LOGITS.log().T.contiguous().requires_grad_()


def random_batch(clips=3, texts=5, width=6, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(clips + texts, width, generator=generator, dtype=torch.float64)
    return tuple(F.normalize(rows, dim=-1).split([clips, texts]))


def softmax_term(logits: list[float], positives: list[int], kept: list[int], smoothing: float) -> float:
    """-sum of target * log p over one row, the target as the definition has it, pair by pair."""
    total = sum(exp(logits[j]) for j in kept)
    loss = 0.0
    for j in kept:
        target = smoothing / len(kept) + ((1 - smoothing) / len(positives) if j in positives else 0.0)
        loss -= target * log(exp(logits[j]) / total)
    return loss


def info_nce_in_loops(audio, text, scale, owner, ignored=(), smoothing=0.0) -> float:
    """`ignored` holds (clip, text) pairs."""
    clips, texts = range(len(audio)), range(len(text))
    logits = [[scale * sum(a * t for a, t in zip(x, y, strict=True)) for y in text.tolist()] for x in audio.tolist()]
    audio_to_text = text_to_audio = 0.0
    for i in clips:
        own, kept = [j for j in texts if owner[j] == i], [j for j in texts if (i, j) not in ignored]
        audio_to_text += softmax_term(logits[i], own, kept, smoothing) / len(audio)
    for j in texts:
        column, kept = [row[j] for row in logits], [i for i in clips if (i, j) not in ignored]
        text_to_audio += softmax_term(column, [owner[j]], kept, smoothing) / len(text)
    return (audio_to_text + text_to_audio) / 2


def sigmoid_in_loops(audio, text, scale, bias, owner, ignored=()) -> float:
    loss = 0.0
    for i, clip in enumerate(audio.tolist()):
        for j, sentence in enumerate(text.tolist()):
            logit = scale * sum(a * t for a, t in zip(clip, sentence, strict=True)) + bias
            if (i, j) not in ignored:
                loss += log(1 + exp(-logit if owner[j] == i else logit))
    return loss / len(audio)


def mask(pairs, shape) -> torch.Tensor:
    out = torch.zeros(shape, dtype=torch.bool)
    for row, column in pairs:
        out[row, column] = True
    return out


@pytest.mark.parametrize("owner", [[0, 0, 1, 2, 2], [2, 0, 1, 0, 2], [1, 1, 0, 1, 2]])
@pytest.mark.parametrize("ignored", [[], [(0, 2), (1, 0)]])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_five_texts_of_three_clips_are_the_loops(owner, ignored, smoothing):
    audio, text = random_batch()
    ignored = [(i, j) for i, j in ignored if owner[j] != i]
    ignore = mask(ignored, (3, 5)), mask(ignored, (3, 5)).T
    rows = torch.tensor(owner)
    loss = info_nce(audio, text, 4.0, ignore=ignore, text_owner=rows, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(info_nce_in_loops(audio, text, 4.0, owner, ignored, smoothing), abs=1e-12)
    loss = sigmoid(audio, text, 4.0, -1.5, ignore=ignore, text_owner=rows)
    assert loss.item() == pytest.approx(sigmoid_in_loops(audio, text, 4.0, -1.5, owner, ignored), abs=1e-12)


def test_three_by_five_by_hand():
    audio, text = hand_made()
    audio_to_text = -(log(3 / 12 * 4 / 12) / 2 + log(5 / 10) + log(7 / 20 * 4 / 20) / 2) / 3
    text_to_audio = -log(3 / 6 * 4 / 9 * 5 / 10 * 7 / 10 * 4 / 7) / 5
    loss = info_nce(audio, text, 1.0, text_owner=OWNER)
    assert loss.item() == pytest.approx((audio_to_text + text_to_audio) / 2, abs=1e-6)
    loss.backward()
    # (softmax - 1 / |P|) / (2 * 3 clips) + (softmax - 1) / (2 * 5 texts), and without the target elsewhere.
    assert text.grad[0, 0].item() == pytest.approx((3 / 12 - 1 / 2) / 6 + (3 / 6 - 1) / 10, abs=1e-6)
    assert text.grad[2, 1].item() == pytest.approx((5 / 10 - 1) / 6 + (5 / 10 - 1) / 10, abs=1e-6)
    assert text.grad[4, 1].item() == pytest.approx(1 / 10 / 6 + 1 / 7 / 10, abs=1e-6)
    positives = (1 + 1 / 3) * (1 + 1 / 4) * (1 + 1 / 5) * (1 + 1 / 7) * (1 + 1 / 4)
    negatives = (2 * 3 * 3) * (2 * 3 * 2 * 2) * (3 * 4 * 5)
    pair_loss = sigmoid(audio, text, 1.0, text_owner=OWNER)
    assert pair_loss.item() == pytest.approx(log(positives * negatives) / 3, abs=1e-5)


def test_captions_all_alike_end_at_the_logarithm_of_their_number():
    """Two texts on top of each of two orthogonal clips: the best a softmax over both of a clip's texts can do."""
    audio = torch.eye(2)
    text, owner = audio.repeat_interleave(2, 0), torch.tensor([0, 0, 1, 1])
    loss = info_nce(audio, text, 100.0, text_owner=owner)
    assert loss.item() == pytest.approx(log(2) / 2, abs=1e-6)  # audio to text log 2, text to audio 0


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("with_ids", [False, True])
def test_one_text_a_clip_is_the_loss_of_pairs(loss_type, with_ids):
    audio, text = (x.float() for x in random_batch(7, 7))
    ids = torch.tensor([[0, 3], [1, 0], [2, -1], [0, 8], [4, 5], [5, -1], [6, 2]]) if with_ids else None
    arguments = audio, text, torch.tensor(9.0), torch.tensor(-2.0), loss_type, [6, 3], ids
    pairs = contrastive_loss(*arguments)
    assert torch.equal(contrastive_loss(*arguments, text_owner=torch.arange(7)), pairs)
    # The same, written for pairs alone.
    ignore = None if ids is None else false_negatives(ids, ids)
    expected = 0.0
    for dim in (6, 3):
        logits = 9 * truncate_embeddings(audio, dim) @ truncate_embeddings(text, dim).T
        if loss_type == "info_nce":
            ways = [logits, logits.T]
            if ignore is not None:
                ways = [way.masked_fill(i, -torch.inf) for way, i in zip(ways, ignore, strict=True)]
            expected += sum(F.cross_entropy(way, torch.arange(7)) for way in ways).item() / 4
        else:
            losses = F.softplus(-(2 * torch.eye(7) - 1) * (logits - 2))
            expected += (losses if ignore is None else losses[~ignore[0]]).sum().item() / 7 / 2
    assert pairs.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_nested_dims_of_several_texts_a_clip(loss):
    audio, text = random_batch()
    each = [loss(truncate_embeddings(audio, d), truncate_embeddings(text, d), 5.0, text_owner=OWNER) for d in (6, 2)]
    together = matryoshka(loss, [6, 2], audio, text, 5.0, text_owner=OWNER)
    assert together.item() == pytest.approx(sum(each).item() / 2, abs=1e-12) and abs(each[0] - each[1]) > 0.01


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_order_of_texts_does_not_matter(loss):
    audio, text = random_batch()
    order = torch.tensor([3, 0, 4, 2, 1])
    ids = torch.tensor([[1, 2], [3, 2], [4, 5]])
    losses = []
    for rows, owner in ((text, OWNER), (text[order], OWNER[order])):
        # The texts of clip 2 keep their order in `order`, those of clip 0 too.
        losses.append(loss(audio, rows, 5.0, ignore=false_negatives(ids, ids, text_owner=owner), text_owner=owner))
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-12)


@pytest.mark.parametrize(
    ("caption_ids", "clips_to_texts"),
    [
        ([[0, 1], [2, -1], [3, 4]], []),
        ([[0, 1], [1, -1], [3, 4]], [(0, 2), (1, 1)]),  # clips 0 and 1 share a text that both have in the batch
        ([[0, 1, -1], [2, 4, 0], [3, 4, -1]], [(1, 0), (1, 4)]),  # clip 1 has captions that are not in the batch
        ([[0, 0], [2, 2], [3, 3]], []),  # a text given twice is twice the clip's own
        ([[7, 8], [9, -1], [8, 7]], [(0, 3), (0, 4), (2, 0), (2, 1)]),
    ],
)
def test_false_negatives_of_several_texts_a_clip(caption_ids, clips_to_texts):
    ids = torch.tensor(caption_ids)
    actual = false_negatives(ids, ids, text_owner=OWNER)
    assert torch.equal(actual[0], mask(clips_to_texts, (3, 5)))
    assert torch.equal(actual[1], actual[0].T)


def test_false_negatives_of_a_later_process_with_several_texts_a_clip():
    """Clips 0 and 1 elsewhere with texts 0, 1 | 2; here clip 2 with texts 3 and 4 and clip 3 with text 5."""
    everyone = torch.tensor([[0, 1, -1], [2, 4, -1], [3, 4, 2], [1, -1, -1]])
    local = torch.tensor([0, 0, 1])
    clips_to_texts, texts_to_clips = false_negatives(
        everyone[2:], everyone, 2, local, torch.tensor([0, 1, 2, 3, 4, 1]), first_text=3
    )
    assert torch.equal(clips_to_texts, mask([(0, 2), (1, 1)], (2, 6)))
    assert torch.equal(texts_to_clips, mask([(1, 1), (2, 0)], (3, 4)))


def test_texts_take_the_ids_of_their_clips_in_order():
    ids = torch.tensor([[10, 11, 12], [20, -1, -1], [30, 31, -1]])
    assert text_ids(ids).tolist() == [10, 20, 30]
    assert text_ids(ids, torch.tensor([2, 0, 1, 0, 2])).tolist() == [30, 10, 20, 11, 31]
    for owner in ([0, 1, 1, 2], [0, 0, 0, 0, 1, 2]):  # two texts and one id; four texts and three columns
        with pytest.raises(ValueError, match="must hold the ids of all of a clip's texts"):
            text_ids(ids, torch.tensor(owner))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_smoothing_in_closed_form(smoothing):
    rows = torch.ones(5, 4) / 2
    assert info_nce(rows, rows, 10.0, label_smoothing=smoothing).item() == pytest.approx(log(5), abs=1e-6)
    # Orthogonal pairs: the matched logit is 2 above the four others.
    expected = log(exp(2) + 4) - 2 * (1 - smoothing + smoothing / 5)
    rows = torch.eye(5)
    assert info_nce(rows, rows, 2.0, label_smoothing=smoothing).item() == pytest.approx(expected, abs=1e-6)


def test_smoothing_without_masks_is_torchs():
    audio, text = random_batch(6, 6)
    logits = 5 * audio @ text.T
    ways = [F.cross_entropy(way, torch.arange(6), label_smoothing=0.2) for way in (logits, logits.T)]
    assert info_nce(audio, text, 5.0, label_smoothing=0.2).item() == pytest.approx(sum(ways).item() / 2, abs=1e-12)


def test_smoothing_leaves_ignored_pairs_alone():
    """Where torch's own smoothing gives inf: clip 0 against text 2 is ignored, so clip 0 has 4 texts that count."""
    audio, text = hand_made()
    ignore = mask([(0, 2)], (3, 5)), mask([(2, 0)], (5, 3))
    smoothing = 0.4
    rows = {
        # a row's logits that count, its total, its positives
        0: ([3, 4, 2, 2], 11, [3, 4]),
        1: ([1, 2, 5, 1, 1], 10, [5]),
        2: ([2, 3, 4, 7, 4], 20, [7, 4]),
    }
    columns = [([3, 1, 2], 6, 3), ([4, 2, 3], 9, 4), ([5, 4], 9, 5), ([2, 1, 7], 10, 7), ([2, 1, 4], 7, 4)]
    audio_to_text = text_to_audio = 0.0
    for kept, total, positives in rows.values():
        audio_to_text -= 0.6 * sum(log(x / total) for x in positives) / len(positives) / 3
        audio_to_text -= smoothing * sum(log(x / total) for x in kept) / len(kept) / 3
    for kept, total, positive in columns:
        text_to_audio -= (0.6 * log(positive / total) + smoothing * sum(log(x / total) for x in kept) / len(kept)) / 5
    loss = info_nce(audio, text, 1.0, ignore=ignore, text_owner=OWNER, label_smoothing=smoothing)
    assert loss.item() == pytest.approx((audio_to_text + text_to_audio) / 2, abs=1e-6)
    loss.backward()
    assert text.grad.isfinite().all() and text.grad[2, 0] == 0
    # Clip 0 and text 3: softmax minus its share of the smoothing, in both directions.
    expected = (2 / 11 - smoothing / 4) / 6 + (2 / 10 - smoothing / 3) / 10
    assert text.grad[3, 0].item() == pytest.approx(expected, abs=1e-6)


def loss_of(clips=3, texts=5, loss_type="info_nce", **options):
    audio, text = random_batch(clips, texts)
    return contrastive_loss(audio, text, torch.tensor(1.0), torch.tensor(0.0), loss_type, [6], **options)


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        (None, r"got 3 clips and 5 texts: give text_owner \[5\]"),
        (torch.tensor([0, 0, 1, 1, 0]), r"rows 0 to 2 at least once; got torch.int64 \[5\] with 2 rows"),
        (torch.tensor([0, 1, 2, 3, 0]), "with 4 rows"),
        (torch.tensor([-1, 0, 1, 2, 0]), "with 4 rows"),
        (torch.tensor([0, 1, 2]), r"text_owner must be int64 \[5\].* got torch.int64 \[3\]"),
        (torch.tensor([0, 1, 2, 0, 0], dtype=torch.int32), r"text_owner must be int64 \[5\].* got torch.int32"),
    ],
)
@pytest.mark.parametrize("loss_type", LOSSES)
def test_impossible_owners_are_refused(loss_type, owner, message):
    with pytest.raises(ValueError, match=message):
        loss_of(loss_type=loss_type, text_owner=owner)


def test_smoothing_of_a_sigmoid_is_refused():
    with pytest.raises(ValueError, match="label_smoothing=0.1 needs loss_type='info_nce'"):
        loss_of(texts=3, loss_type="sigmoid", label_smoothing=0.1)
