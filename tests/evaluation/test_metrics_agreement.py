"""Ranks agree with independent libraries: torchmetrics and sentence-transformers."""

import numpy as np
import pytest
import torch

from wavlink.evaluation.metrics import (
    KS,
    Correspondence,
    Similarities,
    mean_average_precision,
    ranked,
    recall_at_k,
    zero_shot_accuracy,
)

try:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
except ModuleNotFoundError:  # before 6
    from sentence_transformers.evaluation import InformationRetrievalEvaluator

retrieval = pytest.importorskip("torchmetrics.retrieval")
classification = pytest.importorskip("torchmetrics.classification")

QUERIES, CANDIDATES = 60, 45


def case(most: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`[queries, candidates]`: similarities without ties, higher for the 1 to `most` relevant ones of each query.

    They are positive because torchmetrics takes what is not for irrelevant.
    """
    rng = np.random.default_rng(seed)
    correspondence = np.zeros((QUERIES, CANDIDATES), dtype=bool)
    for row in correspondence:
        row[rng.choice(CANDIDATES, rng.integers(1, most + 1), replace=False)] = True
    similarities = (0.01 + rng.random(correspondence.shape) + 0.3 * correspondence).astype(np.float32)
    assert all(len(np.unique(row)) == CANDIDATES for row in similarities)
    return similarities, correspondence


def by_torchmetrics(name: str, similarities, correspondence, **options) -> float:
    queries = torch.arange(QUERIES)[:, None].expand(QUERIES, CANDIDATES)
    metric = getattr(retrieval, name)(**options)
    return float(metric(torch.tensor(similarities), torch.tensor(correspondence), indexes=queries))


def by_sentence_transformers(similarities, correspondence) -> dict:
    evaluator = InformationRetrievalEvaluator(
        queries={str(query): "" for query in range(QUERIES)},
        corpus={str(candidate): "" for candidate in range(CANDIDATES)},
        relevant_docs={str(query): set(map(str, np.flatnonzero(row))) for query, row in enumerate(correspondence)},
        accuracy_at_k=list(KS),
        map_at_k=[1, 3, 10],
    )
    return evaluator.compute_metrics(
        [
            [{"corpus_id": str(candidate), "score": float(score)} for candidate, score in enumerate(row)]
            for row in similarities
        ]
    )


@pytest.mark.parametrize("most", [1, 5, 20])
@pytest.mark.parametrize("k", KS)
def test_recall_is_the_hit_rate_of_torchmetrics(most, k):
    similarities, correspondence = case(most)
    expected = by_torchmetrics("RetrievalHitRate", similarities, correspondence, top_k=k)
    assert recall_at_k(similarities, correspondence, k) == pytest.approx(expected, abs=1e-6)
    if most == 1:  # the share of relevant ones that are retrieved is the same if there is one
        recall = by_torchmetrics("RetrievalRecall", similarities, correspondence, top_k=k)
        assert recall == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("most", [1, 5, 20])
def test_first_ranks_and_average_precision_over_all_candidates_are_torchmetrics(most):
    similarities, correspondence = case(most)
    results = ranked(similarities, correspondence, k=CANDIDATES)
    mrr = by_torchmetrics("RetrievalMRR", similarities, correspondence)
    assert (1 / results.first).mean() == pytest.approx(mrr, abs=1e-6)
    full = by_torchmetrics("RetrievalMAP", similarities, correspondence)
    assert results.average_precision.mean() == pytest.approx(full, abs=1e-6)


def test_map_at_10_of_one_relevant_candidate_is_torchmetrics():
    similarities, correspondence = case(1)
    expected = by_torchmetrics("RetrievalMAP", similarities, correspondence, top_k=10)
    assert mean_average_precision(similarities, correspondence, 10) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("most", [1, 5, 20])
def test_recall_and_map_at_k_are_sentence_transformers(most):
    similarities, correspondence = case(most, seed=1)
    expected = by_sentence_transformers(similarities, correspondence)
    for k in KS:
        assert recall_at_k(similarities, correspondence, k) == pytest.approx(expected["accuracy@k"][k], abs=1e-12)
    for k in (1, 3, 10):
        ours = mean_average_precision(similarities, correspondence, k)
        assert ours == pytest.approx(expected["map@k"][k], abs=1e-12)


def test_map_at_10_divides_by_ten_where_there_are_more_answers():
    """The case that tells min(k, relevant) from dividing by all of them, as `map_cut_10` of trec_eval does."""
    similarities, correspondence = case(20, seed=1)
    assert (correspondence.sum(1) > 10).any()
    by_all = ranked(similarities, correspondence, 10).average_precision
    by_all = by_all * np.minimum(correspondence.sum(1), 10) / correspondence.sum(1)
    expected = by_sentence_transformers(similarities, correspondence)["map@k"][10]
    assert abs(by_all.mean() - expected) > 1e-2


def test_blocks_and_lists_of_answers_give_the_same_numbers():
    _, correspondence = case(5)
    rng = torch.Generator().manual_seed(0)
    rows, columns = (torch.rand(count, 8, generator=rng) for count in correspondence.shape)
    lists = Correspondence([np.flatnonzero(row) for row in correspondence], CANDIDATES)
    ours = ranked(Similarities(rows, columns), lists, 10)
    expected = by_sentence_transformers((rows @ columns.T).numpy(), correspondence)
    assert ours.average_precision.mean() == pytest.approx(expected["map@k"][10], abs=1e-12)
    assert (ours.first <= 5).mean() == pytest.approx(expected["accuracy@k"][5], abs=1e-12)


@pytest.mark.parametrize("k", [1, 5])
def test_zero_shot_accuracy_is_torchmetrics(k):
    similarities, correspondence = case(1, seed=2)
    targets = correspondence.argmax(1)
    metric = classification.MulticlassAccuracy(num_classes=CANDIDATES, top_k=k, average="micro")
    expected = float(metric(torch.tensor(similarities), torch.tensor(targets)))
    assert 0 < expected < 1
    assert zero_shot_accuracy(similarities, targets, k) == pytest.approx(expected, abs=1e-6)
