"""Retrieval on vectors small enough to check by hand: both directions, nested dims, groups, Trainer's metrics."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wavlink.evaluation.metrics import Correspondence, percent
from wavlink.evaluation.report import retrieval_report
from wavlink.evaluation.retrieval import compute_metrics, retrieval_scores


def test_retrieval_at_nested_dims_by_hand():
    # Full vectors tell the two clips apart; their first two channels, equal once normalised again, do not.
    clips = torch.tensor([[0.6, 0.0, 0.8, 0.0], [0.06, 0.0, -0.08, 0.0]])
    scores = retrieval_scores(clips, clips * 3, Correspondence([[0], [1]], 2), [4, 2])
    for direction in ("text_to_audio", "audio_to_text"):
        values = {dim: [score["value"] for score in row.values()] for dim, row in scores[direction].items()}
        assert values == {"4": [1, 1, 1, 1, 1], "2": [0, 1, 1, 0.5, 2]}  # R@1, R@5, R@10, mAP@10, median rank
        change = {name: score["value"] for name, score in scores["difference"][direction].items()}
        assert change == {"R@1": -1, "R@5": 0, "R@10": 0, "mAP@10": -0.5}
    assert scores["difference"]["dims"] == [2, 4]
    assert scores["chance"]["text_to_audio"] == {"R@1": 0.5, "R@5": 1, "R@10": 1}


def test_both_directions_are_distinguished():
    # Both texts are nearest to clip 0, each clip is nearest to its own text.
    clips, texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.1], [1.0, 0.9]])
    scores = retrieval_scores(clips, texts, Correspondence([[0], [1]], 2), [2])
    assert scores["text_to_audio"]["2"]["R@1"]["value"] == 0.5
    assert scores["audio_to_text"]["2"]["R@1"]["value"] == 1


# Clips 0 and 1 share caption 7. Text 0 is nearest to clip 1, text 1 to clip 0; clip 2 is nearest to text 2.
AUDIO = np.eye(3, dtype=np.float32)
TEXT = np.array([[0.1, 0.9, 0], [0.9, 0.1, 0], [0, 0, 1]], dtype=np.float32)


@pytest.mark.parametrize(
    ("label_ids", "recall"),
    [
        (None, 1 / 3),
        (np.array([[7, 8, -1], [7, -1, -1], [9, -1, -1]]), 1),
        (np.array([[7, 8, -100], [7, -100, -100], [9, -1, -100]]), 1),  # as Trainer pads between batches
        (np.array([[5, 7, -1], [6, 7, -1], [9, -1, -1]]), 1 / 3),  # shared, but the texts given are others
        (np.array([[5, 6, -1], [6, -1, -1], [9, -1, -1]]), 2 / 3),  # text 1 fits clip 0, not text 0 clip 1
    ],
)
def test_compute_metrics_by_hand(label_ids, recall):
    metrics = compute_metrics(SimpleNamespace(predictions=(AUDIO, TEXT, np.zeros(3)), label_ids=label_ids))
    names = {f"{direction}_R@{k}" for direction in ("text_to_audio", "audio_to_text") for k in (1, 5, 10)}
    assert set(metrics) == names
    assert metrics["text_to_audio_R@1"] == metrics["audio_to_text_R@1"] == pytest.approx(recall)
    assert metrics["text_to_audio_R@5"] == 1


def test_groups_by_hand_and_clips_without_texts():
    # Clip 2 has no text, but is nearest to text 1, which is of clip 1.
    clips = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.1], [0.1, 1.0]])
    scores = retrieval_scores(clips, texts, Correspondence([[0], [1], []], 2), [2], ["a", "b", "c"])
    assert scores["text_to_audio"]["2"]["R@1"]["value"] == 0.5
    assert scores["audio_to_text"]["2"]["R@1"]["value"] == 1
    assert list(scores["groups"]) == ["a", "b"]
    assert scores["groups"]["a"]["text_to_audio"]["R@1"]["value"] == 1
    assert scores["groups"]["b"]["text_to_audio"]["R@1"]["value"] == 0
    assert scores["groups"]["b"]["text_to_audio"]["median_rank"]["value"] == 2
    assert "difference" not in scores
    printed = retrieval_report(scores)
    assert "text → audio        2 dims" in printed and "50.0 [0.0, 100.0]" in printed


def test_differences_are_paired():
    # Cut vectors lose the same clips whichever are drawn, so the difference is surer than either score.
    rng = np.random.default_rng(0)
    texts = torch.from_numpy(np.concatenate([np.eye(40), np.zeros((40, 40))], 1)).float()
    clips = texts + 0.02 * torch.from_numpy(rng.normal(size=texts.shape)).float()
    clips[:20] = clips[torch.arange(20) + 20]  # the first half is lost at either dim
    scores = retrieval_scores(clips, texts, Correspondence([[i] for i in range(40)], 40), [80, 40])
    assert scores["difference"]["audio_to_text"]["R@1"] == {"value": 0, "interval": [0, 0]}
    low, high = scores["audio_to_text"]["40"]["R@1"]["interval"]
    assert low < 0.5 < high
    assert percent(scores["difference"]["audio_to_text"]["R@1"], signed=True) == "+0.0 [+0.0, +0.0]"
