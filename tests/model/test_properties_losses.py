"""Both losses over any batch: the definition in plain numpy, symmetry, order, shares and pieces."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_wavlink.losses_wavlink import LOSSES, false_negatives, info_nce, sigmoid
from tests.loss_batches import Batch, gradients, same

BATCHES = st.builds(
    Batch,
    loss_type=st.sampled_from(list(LOSSES)),
    clips=st.integers(1, 7),
    width=st.integers(1, 12),
    scale=st.floats(0.05, 100),
    bias=st.floats(-12, 12),
    several=st.booleans(),
    with_ids=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1, 0.7]),
    seed=st.integers(0, 9999),
)


def softplus(x: float) -> float:
    return max(x, 0) + np.log1p(np.exp(-abs(x)))


def by_definition(batch: Batch) -> float:
    """The loss one pair at a time, from the papers' formulas."""
    clips, texts = (x.detach().numpy() for x in batch.leaves()[:2])
    owner, captions = batch.owner(), batch.captions()
    nth = [list(np.flatnonzero(owner == owner[t])).index(t) for t in range(len(owner))]
    ids = [captions[owner[t], nth[t]] for t in range(len(owner))]

    def is_negative(clip, text):
        return owner[text] != clip and not (batch.with_ids and ids[text] in captions[clip])

    total = 0.0
    for dim in batch.dims:
        a, t = (x[:, :dim] / np.linalg.norm(x[:, :dim], axis=1, keepdims=True) for x in (clips, texts))
        cosines = a @ t.T
        loss = _sigmoid(cosines, owner, is_negative, batch) if batch.loss_type == "sigmoid" else 0.0
        if batch.loss_type == "info_nce":
            there = [
                _row(cosines[i], owner == i, [is_negative(i, j) for j in range(len(t))], batch) for i in range(len(a))
            ]
            back = [
                _row(cosines[:, j], np.arange(len(a)) == owner[j], [is_negative(i, j) for i in range(len(a))], batch)
                for j in range(len(t))
            ]
            loss = (np.mean(there) + np.mean(back)) / 2
        total += loss
    return total / len(batch.dims)


def _row(cosines, positive, negative, batch: Batch) -> float:
    """Cross-entropy of one clip or text towards its positives, the smoothed share towards all that count."""
    counts = positive | np.array(negative)
    logits = batch.scale * cosines
    most = logits[counts].max()
    log_probs = logits - most - np.log(np.exp(logits[counts] - most).sum())
    return -(1 - batch.smoothing) * log_probs[positive].mean() - batch.smoothing * log_probs[counts].mean()


def _sigmoid(cosines, owner, is_negative, batch: Batch) -> float:
    logits, total = batch.scale * cosines + batch.bias, 0.0
    for clip, text in np.ndindex(*logits.shape):
        if owner[text] == clip:
            total += softplus(-logits[clip, text])
        elif is_negative(clip, text):
            total += softplus(logits[clip, text])
    return total / len(cosines)


@settings(max_examples=100)
@given(batch=BATCHES)
def test_the_loss_is_its_definition(batch):
    expected = by_definition(batch)
    assert batch.loss(batch.leaves()).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    single = [x.detach().float() for x in batch.leaves()]
    assert batch.loss(single).item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@settings(max_examples=50)
@given(batch=BATCHES, data=st.data())
def test_the_order_of_a_batch_changes_nothing(batch, data):
    leaves, about = batch.leaves(), batch.about()
    expected = [loss := batch.loss(leaves), *gradients(loss, leaves)]
    clips = torch.tensor(data.draw(st.permutations(range(batch.clips))))
    # texts move with their clips, so that each clip's stay in the order of its ids
    owner = torch.tensor(batch.owner())
    texts = torch.cat([torch.nonzero(owner == clip).ravel() for clip in clips])
    moved = [leaves[0][clips], leaves[1][texts], *leaves[2:]]
    options = {
        "text_owner": clips.argsort()[owner[texts]] if batch.several else None,
        "caption_ids": about["caption_ids"][clips] if batch.with_ids else None,
    }
    loss = batch.loss(moved, **options)
    same([loss, *gradients(loss, leaves)], expected)


@settings(max_examples=50)
@given(batch=BATCHES)
def test_swapping_clips_and_texts_keeps_the_loss(batch):
    """One text a clip: both losses see both directions alike."""
    clips, texts, scale, bias = (x.detach() for x in batch.leaves())
    options = {"text_owner": None, "caption_ids": None}
    rows = slice(0, batch.clips)
    same(
        [batch.loss([clips, texts[rows], scale, bias], **options)],
        [batch.loss([texts[rows], clips, scale, bias], **options)],
    )


@settings(max_examples=50)
@given(batch=BATCHES, chunk=st.integers(1, 15))
def test_pieces_add_up_to_the_loss_of_the_batch(batch, chunk):
    leaves = batch.leaves()
    expected = [loss := batch.loss(leaves), *gradients(loss, leaves)]
    pieces = batch.loss(leaves, chunk=chunk)
    same([pieces, *gradients(pieces, leaves)], expected)


@settings(max_examples=50)
@given(batch=BATCHES, data=st.data())
def test_shares_of_processes_add_up_to_the_loss_of_the_batch(batch, data):
    """What each of several processes computes of its rows, however unequal."""
    clips, texts, scale, bias = (x.detach() for x in batch.leaves())
    texts, loss = texts[: batch.clips], LOSSES[batch.loss_type]
    ids = torch.tensor(batch.captions())
    ignore = false_negatives(ids, ids) if batch.with_ids else None
    options = {"label_smoothing": batch.smoothing} if batch.loss_type == "info_nce" else {}
    whole = loss(clips, texts, scale, bias, ignore=ignore, **options)
    cuts = sorted({0, batch.clips, *data.draw(st.lists(st.integers(0, batch.clips), max_size=3))})
    total = 0.0
    for start, stop in pairwise(cuts):
        rows = slice(start, stop)
        local = ignore and (ignore[0][rows], ignore[1][rows])
        everyone = {"all_audio_embeds": clips, "all_text_embeds": texts, "first_row": start}
        total = total + loss(clips[rows], texts[rows], scale, bias, ignore=local, **everyone, **options)
    same([total], [whole])


@given(count=st.integers(1, 30), width=st.integers(1, 16), scale=st.floats(0.05, 100), bias=st.floats(-12, 12))
def test_closed_forms(count, width, scale, bias):
    alike = torch.full((count, width), width**-0.5, dtype=torch.float64)
    assert info_nce(alike, alike, scale).item() == pytest.approx(np.log(count), abs=1e-9)
    expected = softplus(-scale - bias) + (count - 1) * softplus(scale + bias)
    assert sigmoid(alike, alike, scale, bias).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    apart = torch.eye(count, dtype=torch.float64)
    expected = np.log1p((count - 1) * np.exp(-scale))
    assert info_nce(apart, apart, scale).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    expected = softplus(-scale - bias) + (count - 1) * softplus(bias)
    assert sigmoid(apart, apart, scale, bias).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
