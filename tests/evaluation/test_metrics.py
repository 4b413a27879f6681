"""Metrics on matrices small enough to check by hand, and against sorting."""

import numpy as np
import pytest
import torch

from tests.helpers import by_sorting
from wavlink.evaluation.metrics import (
    Correspondence,
    Similarities,
    chance_recall,
    figure,
    mean_average_precision,
    multiple_choice_accuracy,
    ranked,
    ranks,
    recall_at_k,
    zero_shot_accuracy,
)

# Three queries, four candidates. Relevant: candidate 0; candidates 1 and 3; candidate 2.
SIMILARITIES = np.array([[0.9, 0.1, 0.5, 0.2], [0.8, 0.3, 0.1, 0.6], [0.7, 0.4, 0.4, 0.4]])
RELEVANT = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]], dtype=bool)


def test_ranks_by_hand():
    # The best; second behind 0.8, through its better candidate; and behind 0.7 and both that tie with it.
    assert ranks(SIMILARITIES, RELEVANT).tolist() == [1, 2, 4]


@pytest.mark.parametrize(
    ("k", "chance"),
    [
        (1, (1 / 4 + 2 / 4 + 1 / 4) / 3),
        (2, (1 / 2 + (1 - 1 / 6) + 1 / 2) / 3),  # of 6 pairs of candidates one misses both relevant ones
        (3, (3 / 4 + 1 + 3 / 4) / 3),
        (9, 1.0),
    ],
)
def test_chance_level_of_recall_by_hand(k, chance):
    assert chance_recall(RELEVANT, k) == pytest.approx(chance)


@pytest.mark.parametrize(("k", "recall"), [(1, 1 / 3), (2, 2 / 3), (3, 2 / 3), (4, 1)])
def test_recall_by_hand(k, recall):
    assert recall_at_k(SIMILARITIES, RELEVANT, k) == pytest.approx(recall)


def test_tensors_and_lists_are_taken_too():
    assert ranks(torch.from_numpy(SIMILARITIES), torch.from_numpy(RELEVANT)).tolist() == [1, 2, 4]
    assert recall_at_k(SIMILARITIES.tolist(), RELEVANT.tolist(), 2) == pytest.approx(2 / 3)
    assert ranks(torch.from_numpy(SIMILARITIES).half(), RELEVANT).tolist() == [1, 2, 4]
    assert SIMILARITIES.min() == 0.1  # what was given is left as it was


def test_ties_count_against_the_model():
    same = np.zeros((2, 5))
    assert ranks(same, np.eye(2, 5, dtype=bool)).tolist() == [5, 5]
    assert ranks(same, np.ones((2, 5), dtype=bool)).tolist() == [1, 1]  # relevant ones are no rivals of each other
    assert zero_shot_accuracy(same, np.array([0, 1])) == 0
    assert multiple_choice_accuracy([[0.5, 0.5], [0.1, 0.5]], [0, 1]) == 0.5


@pytest.mark.parametrize("queries", [1, 2, 5, 17, 40])
def test_equal_vectors_tie_whatever_their_number(queries):
    for candidates in range(2, 40):
        rng = torch.Generator().manual_seed(100 * candidates + queries)
        text = torch.nn.functional.normalize(torch.randn(queries, 96, generator=rng), dim=-1)
        audio = torch.nn.functional.normalize(torch.randn(1, 96, generator=rng), dim=-1).repeat(candidates, 1)
        for relevant in (0, candidates - 1):
            answers = Correspondence([[relevant]] * queries, candidates)
            assert ranks(Similarities(text, audio), answers).tolist() == [candidates] * queries


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("k", [1, 2, 5, 10, 40])
def test_recall_agrees_with_sorting(seed, k):
    rng = np.random.default_rng(seed)
    similarities = rng.permutation(30 * 40).reshape(30, 40) / 1200  # no two alike
    correspondence = rng.random((30, 40)) < 0.06
    correspondence[np.arange(30), rng.integers(40, size=30)] = True
    assert recall_at_k(similarities, correspondence, k) == pytest.approx(by_sorting(similarities, correspondence, k))


def test_average_precision_by_hand():
    # Positions of the relevant: 1 of 1; 2 and 3 of 2, (1/2 + 2/3) / 2; 4 of 1, behind both ties.
    results = ranked(SIMILARITIES, RELEVANT)
    assert results.average_precision == pytest.approx([1, (1 / 2 + 2 / 3) / 2, 1 / 4])
    assert mean_average_precision(SIMILARITIES, RELEVANT, k=2) == pytest.approx((1 + 1 / 4 + 0) / 3)


def test_average_precision_counts_at_most_k_relevant():
    # Five relevant of six; the wrong one is third: positions 1, 2, 4, 5, 6.
    similarities = np.array([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]])
    relevant = np.array([[1, 1, 0, 1, 1, 1]], dtype=bool)
    assert mean_average_precision(similarities, relevant, k=3) == pytest.approx((1 + 1) / 3)
    assert mean_average_precision(similarities, relevant, k=4) == pytest.approx((1 + 1 + 3 / 4) / 4)
    assert mean_average_precision(similarities, relevant) == pytest.approx((1 + 1 + 3 / 4 + 4 / 5 + 5 / 6) / 5)


def average_precision_by_sorting(row: np.ndarray, relevant: np.ndarray, k: int) -> float:
    order = sorted(range(len(row)), key=lambda candidate: -row[candidate])[:k]
    hits = [bool(relevant[candidate]) for candidate in order]
    return sum(sum(hits[: j + 1]) / (j + 1) for j in range(len(hits)) if hits[j]) / min(k, relevant.sum())


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("k", [1, 3, 10, 40])
def test_average_precision_agrees_with_sorting(seed, k):
    rng = np.random.default_rng(seed)
    similarities = rng.permutation(30 * 40).reshape(30, 40) / 1200
    correspondence = rng.random((30, 40)) < 0.2
    correspondence[np.arange(30), rng.integers(40, size=30)] = True
    pairs = zip(similarities, correspondence, strict=True)
    expected = [average_precision_by_sorting(*pair, k) for pair in pairs]
    assert ranked(similarities, correspondence, k).average_precision == pytest.approx(expected)


def test_blocks_of_rows_and_a_list_of_answers_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    rows, columns = (torch.from_numpy(rng.integers(-2, 3, size=(n, 4)).astype(np.float32)) for n in (50, 70))  # ties
    matrix = rng.random((50, 70)) < 0.05
    matrix[:, 0] |= ~matrix.any(1)
    answers = Correspondence([np.flatnonzero(row) for row in matrix], 70)
    expected = ranked((rows @ columns.T).numpy(), matrix)
    reverse = (columns @ rows.T).numpy()[matrix.any(0)]
    expected_reverse = ranked(reverse, matrix.T[matrix.any(0)])
    for size in (1, 70 * 7, 1 << 20):
        monkeypatch.setattr("wavlink.evaluation.metrics._BLOCK", size)
        results = ranked(Similarities(rows, columns), answers)
        assert results.first.tolist() == expected.first.tolist()
        assert results.average_precision.tolist() == expected.average_precision.tolist()
        asking = np.flatnonzero(answers.T.counts)
        results = ranked(Similarities(columns[asking], rows), answers.T.select(asking))
        assert results.first.tolist() == expected_reverse.first.tolist()
    assert chance_recall(answers, 5) == pytest.approx(chance_recall(matrix, 5))


def test_a_large_matrix_is_ranked_in_blocks(monkeypatch):
    # 60 x 500,000 in fp32 are 120 MB; no block may hold more than 40 MB of it.
    blocks = []

    class Watched(Similarities):
        def __getitem__(self, part):
            block = super().__getitem__(part)
            blocks.append(block.nbytes)
            return block

    monkeypatch.setattr("wavlink.evaluation.metrics._BLOCK", 10_000_000)
    texts = torch.arange(500_000, dtype=torch.float32)[:, None] % 1000
    clips = torch.ones(60, 1)
    results = ranked(Watched(clips, texts), Correspondence([[999 + 1000 * i] for i in range(60)], 500_000))
    assert results.first.tolist() == [500] * 60  # 499 others tie with the best
    assert len(blocks) == 3 and max(blocks) <= 40_000_000


def test_zero_shot_accuracy_by_hand():
    similarities = np.array([[0.9, 0.2, 0.1], [0.3, 0.2, 0.6], [0.1, 0.5, 0.4]])
    targets = np.array([0, 0, 2])  # right; second; second
    assert zero_shot_accuracy(similarities, targets) == pytest.approx(1 / 3)
    assert zero_shot_accuracy(similarities, targets, k=2) == 1


def test_multiple_choice_accuracy_by_hand():
    questions = [[0.1, 0.7], [0.5, 0.2, 0.4, 0.3], [0.9, 0.8, 0.7]]
    assert multiple_choice_accuracy(questions, [1, 0, 2]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError):
        multiple_choice_accuracy(questions, [1, 0])


@pytest.mark.parametrize(
    ("similarities", "correspondence", "message"),
    [
        (np.array([[0.1, np.nan]]), np.eye(1, 2, dtype=bool), "NaN or infinite"),
        (np.array([[0.1, -np.inf]]), np.eye(1, 2, dtype=bool), "NaN or infinite"),
        (np.zeros((2, 2)), np.array([[True, False], [False, False]]), "query 1 has no relevant candidate"),
        (np.zeros((2, 3)), np.eye(2, dtype=bool), r"similarities \[2, 3\] and correspondence \[2, 2\] must be alike"),
        (np.zeros((0, 3)), np.zeros((0, 3), dtype=bool), "there are no queries to rank"),
    ],
)
def test_what_cannot_be_ranked_is_refused(similarities, correspondence, message):
    with pytest.raises(ValueError, match=message):
        ranks(similarities, correspondence)


def test_targets_outside_the_labels_are_refused():
    with pytest.raises(ValueError, match="targets must be between 0 and 2"):
        zero_shot_accuracy(np.zeros((2, 3)), np.array([0, 3]))


def test_captions_of_a_clip_are_drawn_together():
    # 40 clips of 5 captions that are all right or all wrong: the evidence is 40 clips, not 200 captions.
    hits = np.repeat(np.arange(40) % 2, 5)
    clips = Correspondence([[query // 5] for query in range(200)], 40)
    clustered, loose = figure(hits, clips)["interval"], figure(hits)["interval"]
    # 2 * 1.96 * sqrt(0.25 / n)
    assert clustered[1] - clustered[0] == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 40), rel=0.1)
    assert loose[1] - loose[0] == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 200), rel=0.1)


def test_a_caption_of_several_clips_counts_in_parts():
    hits, clips = np.array([1, 0, 0]), Correspondence([[0, 1], [1], [2]], 3)
    assert figure(hits, clips)["value"] == pytest.approx(1 / 3)
    # Clip 0 alone: half of the first caption and nothing else; clip 1 alone: half of it against the whole second.
    assert figure(hits, clips, only=[0])["value"] == pytest.approx(1)
    assert figure(hits, clips, only=[1])["value"] == pytest.approx(0.5 / 1.5)
    with pytest.raises(ValueError, match="no clips"):
        figure(hits, clips, only=[])


@pytest.mark.parametrize("count", [9, 10])
def test_the_median_is_numpys(count):
    values = np.random.default_rng(count).integers(1, 50, size=count)
    result = figure(values, median=True)
    assert result["value"] == np.median(values)
    assert values.min() <= result["interval"][0] <= result["value"] <= result["interval"][1] <= values.max()


def test_a_figures_interval_covers_its_value_and_shrinks():
    widths = {}
    for n in (20, 200, 2000):
        result = figure(np.arange(n) % 10 < 3)
        low, high = result["interval"]
        assert result["value"] == pytest.approx(0.3) and low <= 0.3 <= high
        widths[n] = high - low
    assert widths[2000] < widths[200] < widths[20]
    # The normal approximation: 2 * 1.96 * sqrt(p (1 - p) / n) = 0.0402.
    assert widths[2000] == pytest.approx(0.0402, rel=0.1)


def test_a_figure_is_the_same_each_time_and_certain_when_all_agree():
    assert figure(np.arange(9) < 4) == figure(np.arange(9) < 4)
    assert figure(np.ones(9)) == {"value": 1.0, "interval": [1.0, 1.0]}
