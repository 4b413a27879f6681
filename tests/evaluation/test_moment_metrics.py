"""Metrics of moments: numbers worked out by hand, and an independent implementation on random windows."""

import numpy as np
import pytest

from wavlink.evaluation.moment_metrics import IOUS, average_precision, moment_figures, overlaps


def test_overlaps_are_intersection_over_union():
    found = [[0, 10], [5, 15], [20, 21]]
    relevant = [[0, 10], [10, 20]]
    assert overlaps(found, relevant) == pytest.approx(np.array([[1, 0], [5 / 15, 5 / 15], [0, 0]]))


def test_no_found_window_has_no_overlaps():
    assert overlaps(np.empty((0, 2)), [[0, 1]]).shape == (0, 1)


def test_iou_steps_are_those_that_papers_name():
    assert IOUS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@pytest.mark.parametrize(
    ("iou", "expected"),
    [
        ([[1.0]], 1.0),
        ([[0.5]], 1.0),  # the least itself is enough
        ([[0.49]], 0.0),
        ([[0.1], [0.9]], 1 / 2),  # the hit is the second: precision 1/2 at recall 1
        ([[0.9], [0.9]], 1.0),  # the second one is a false alarm after full recall
        ([[0.9, 0.0]], 1 / 2),  # one of two relevant windows is found
        ([[0.9, 0.0], [0.0, 0.0], [0.0, 0.6]], 1 / 2 * 1 + 1 / 2 * 2 / 3),
        ([[0.0, 0.0], [0.9, 0.0], [0.0, 0.6]], 2 / 3),  # 1/2 at recall 1/2 is interpolated to the later 2/3
        ([[0.8, 0.6], [0.7, 0.0]], 1 / 2),  # the first takes what it overlaps most, and none is left for the second
        ([[0.8, 0.6], [0.9, 0.7]], 1.0),  # the second takes its second best
    ],
)
def test_average_precision_by_hand(iou, expected):
    assert average_precision(np.array(iou), 0.5) == pytest.approx(expected)


def test_figures_by_hand():
    found = [np.array([[0, 6], [20, 30]]), np.array([[0, 4]]), np.empty((0, 2))]
    relevant = [np.array([[0, 10], [20, 30]]), np.array([[0, 5]]), np.array([[1, 2]])]
    figures = moment_figures(found, relevant, [0, 0, 1])
    # IoU 0.6 and 1; 0.8; none. Up to 0.6 the first query has both, from 0.65 on only its second window: 1/2 * 1/2
    values = {name: figure["value"] for name, figure in figures.items()}
    assert values["R1@0.5"] == pytest.approx(2 / 3)
    assert values["R1@0.7"] == pytest.approx(1 / 3)
    assert values["mAP@0.5"] == pytest.approx((1 + 1 + 0) / 3)
    assert values["mAP@0.75"] == pytest.approx((1 / 4 + 1 + 0) / 3)
    assert values["mAP"] == pytest.approx(((3 + 7 / 4) / 10 + 7 / 10 + 0) / 3)


def test_intervals_are_over_recordings():
    """Queries of one recording are no independent evidence: copies of them leave the interval as it is."""
    found, relevant = [np.array([[0, 1]]), np.array([[5, 6]])] * 4, [np.array([[0, 1]])] * 8
    recordings = [0, 1, 2, 3, 4, 5, 6, 7]
    once = moment_figures(found, relevant, recordings)["R1@0.5"]
    copied = moment_figures(found * 5, relevant * 5, recordings * 5)["R1@0.5"]
    assert copied["interval"] == pytest.approx(once["interval"])
    assert once["interval"][0] < 0.5 < once["interval"][1]


def test_only_ten_found_windows_count():
    wrong = [[100 + n, 101 + n] for n in range(10)]
    late = moment_figures([np.array([*wrong, [0, 1]])], [np.array([[0, 1]])], [0])
    in_time = moment_figures([np.array([*wrong[1:], [0, 1]])], [np.array([[0, 1]])], [0])
    assert late["mAP"]["value"] == 0
    assert in_time["mAP"]["value"] == pytest.approx(1 / 10)


@pytest.mark.parametrize("relevant", [[], [np.empty((0, 2))]])
def test_queries_without_relevant_windows_are_refused(relevant):
    with pytest.raises(ValueError, match="relevant window"):
        moment_figures([np.array([[0, 1]])] * len(relevant), relevant, [0] * len(relevant))


def test_agrees_with_an_independent_implementation_on_random_windows():
    """Windows on whole seconds, so that equal overlaps and IoU exactly at a bound occur."""
    rng = np.random.default_rng(0)
    found = [_windows(rng, rng.integers(0, 13)) for _ in range(300)]
    relevant = [_windows(rng, rng.integers(1, 6)) for _ in range(300)]
    figures = moment_figures(found, relevant, list(range(300)))
    precision = [[_voc_precision(f, r, iou) for iou in IOUS] for f, r in zip(found, relevant, strict=True)]
    pairs = zip(found, relevant, strict=True)
    first = [max(_iou(f[0], window) for window in r) if len(f) else 0 for f, r in pairs]
    assert figures["mAP"]["value"] == pytest.approx(np.mean(precision))
    assert figures["mAP@0.5"]["value"] == pytest.approx(np.mean([row[0] for row in precision]))
    assert figures["mAP@0.75"]["value"] == pytest.approx(np.mean([row[5] for row in precision]))
    for least in (0.5, 0.7):
        assert figures[f"R1@{least}"]["value"] == pytest.approx(np.mean([iou >= least for iou in first]))
    assert 0.02 < np.mean(precision) < 0.98


def _windows(rng: np.random.Generator, count: int) -> np.ndarray:
    starts = rng.integers(0, 12, count)
    return np.stack([starts, starts + rng.integers(1, 9, count)], axis=1)


def _iou(one, other) -> float:
    covered = [{*range(start, end)} for start, end in (one, other)]
    return len(covered[0] & covered[1]) / len(covered[0] | covered[1])


def _voc_precision(found: np.ndarray, relevant: np.ndarray, least: float) -> float:
    """The area under the precision-recall curve, point by point, as VOC's development kit defines it."""
    open_, curve, right = list(range(len(relevant))), [(0.0, 0.0)], 0
    for number, window in enumerate(found[:10], start=1):
        best = max(open_, key=lambda index: (_iou(window, relevant[index]), index), default=None)
        if best is not None and _iou(window, relevant[best]) >= least:
            open_.remove(best)
            right += 1
        curve.append((right / len(relevant), right / number))
    area = 0.0
    for point in range(1, len(curve)):
        area += (curve[point][0] - curve[point - 1][0]) * max(precision for _, precision in curve[point:])
    return area
