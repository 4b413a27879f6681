"""Plots: each is drawn from records made by hand, whatever a caption holds."""

import numpy as np
import pytest
from PIL import Image

from tests.helpers import is_picture
from wavlink.plots import (
    _most_confused,
    draw_confusion,
    draw_dims,
    draw_loss,
    draw_recall,
    draw_similarities,
    draw_sweep,
    draw_timeline,
)


def validation(step: int, value: float) -> dict:
    dims = {dim: {f"R@{k}": {"value": value * k / 10} for k in (1, 5, 10)} for dim in ("32", "16", "8", "4")}
    return {"step": step, "validation": {"text_to_audio": dims, "audio_to_text": dims}}


def test_loss_and_scale_are_drawn(tmp_path):
    steps = [{"step": step, "loss": 1 / step, "scale": 14 + step} for step in range(1, 6)]
    draw_loss([*steps, validation(5, 0.4)], tmp_path / "loss.png")
    assert is_picture(tmp_path / "loss.png")


@pytest.mark.parametrize("count", [1, 3])
def test_recall_is_drawn(tmp_path, count):
    records = [validation(step, 0.2 * step) for step in range(1, count + 1)]
    draw_recall([{"step": 1, "loss": 2.0, "scale": 14.3}, *records], tmp_path / "recall.png")
    assert is_picture(tmp_path / "recall.png")


@pytest.mark.parametrize("names", [["a dog"], ["$5 and $_x", "a " * 40, "rain\nand wind"]])
def test_similarities_are_drawn_with_any_captions(tmp_path, names):
    cosines = np.linspace(-1, 1, len(names) ** 2).reshape(len(names), len(names))
    draw_similarities(cosines, names, tmp_path / "similarity.png")
    assert is_picture(tmp_path / "similarity.png")


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_sweep_is_drawn(tmp_path, seeds):
    ways = {
        "text_to_audio": [40.0 + seed for seed in range(seeds)],
        "audio_to_text": [50.0 - seed for seed in range(seeds)],
    }
    draw_sweep({f"clip-{number}": ways for number in range(24)}, tmp_path / "figure1.png")
    draw_sweep({"clip-0": ways}, tmp_path / "one.png")
    with Image.open(tmp_path / "figure1.png") as all_of_them, Image.open(tmp_path / "one.png") as one:
        assert all_of_them.height > 3 * one.height  # a row each
    assert is_picture(tmp_path / "figure1.png")


def test_models_are_drawn_by_their_dims(tmp_path):
    figure = {"value": 0.3, "interval": [0.3, 0.4]}
    scores = {
        way: {dim: {"R@1": figure, "R@10": figure} for dim in ("64", "8")}
        for way in ("text_to_audio", "audio_to_text")
    }
    one = {way: {"512": row["64"]} for way, row in scores.items()}
    draw_dims({"a": scores, "runs/$b_c": one}, tmp_path / "dims.png")
    assert is_picture(tmp_path / "dims.png")


@pytest.mark.parametrize("labels", [1, 2, 10, 309])
def test_confusions_are_drawn(tmp_path, labels):
    """Every label but the first, which has no clips, is taken for the next one in a quarter of its clips."""
    counts = [cell for i in range(1, labels) for cell in ([i, i, 3], [i, (i + 1) % labels, 1])] or [[0, 0, 1]]
    draw_confusion({"labels": [f"$label_{i}" for i in range(labels)], "counts": counts}, tmp_path / "confusion.png")
    assert is_picture(tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size < 10**6


def test_the_most_confused_labels_are_those_of_the_largest_confusions():
    clips = np.diag(np.full(6, 50.0))
    clips[4, 1], clips[1, 0], clips[2, 5] = 30, 20, 40
    assert _most_confused(clips, 2).tolist() == [2, 5]
    assert _most_confused(clips, 4).tolist() == [1, 2, 4, 5]
    assert _most_confused(clips, 9).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("duration", [0.5, 600, 36000])
def test_a_recording_is_drawn_with_what_was_found_in_it(tmp_path, duration):
    edges, scores = np.linspace(0, duration, 21), np.sin(np.arange(20))
    curves = {"a siren": (edges, scores, [(edges[1], edges[3])]), "$x^" * 30: (edges, -scores, [])}
    draw_timeline(np.abs(np.sin(np.arange(2000))), duration, curves, tmp_path / "timeline.png")
    assert is_picture(tmp_path / "timeline.png") and len(list(tmp_path.iterdir())) == 1
