"""Scores on matrices small enough to check by hand, against a second implementation, and of a whole evaluation."""

import json
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import soundfile
import torch

from modeling_wavlink.evaluation import (
    chance_recall,
    compute_metrics,
    embed_audio,
    evaluate_dataset,
    figure,
    main,
    multiple_choice_accuracy,
    ranks,
    recall_at_k,
    retrieval_scores,
    zero_shot_accuracy,
)
from processing.data import load_split

from .conftest import RATE, tone

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
def test_recall_by_chance_by_hand(k, chance):
    assert chance_recall(RELEVANT, k) == pytest.approx(chance)


@pytest.mark.parametrize(("k", "recall"), [(1, 1 / 3), (2, 2 / 3), (3, 2 / 3), (4, 1)])
def test_recall_by_hand(k, recall):
    assert recall_at_k(SIMILARITIES, RELEVANT, k) == pytest.approx(recall)


def test_ties_count_against_the_model():
    same = np.zeros((2, 5))
    assert ranks(same, np.eye(2, 5, dtype=bool)).tolist() == [5, 5]
    assert ranks(same, np.ones((2, 5), dtype=bool)).tolist() == [1, 1]  # relevant ones are no rivals of each other
    assert zero_shot_accuracy(same, np.array([0, 1])) == 0
    assert multiple_choice_accuracy([[0.5, 0.5], [0.1, 0.5]], [0, 1]) == 0.5


def by_sorting(similarities: np.ndarray, correspondence: np.ndarray, k: int) -> float:
    """Recall@k once more: the k best candidates of each query, and whether one of them is relevant."""
    hits = 0
    for row, relevant in zip(similarities, correspondence, strict=True):
        best = sorted(range(len(row)), key=lambda candidate: -row[candidate])[:k]
        hits += bool({*best} & {*np.flatnonzero(relevant)})
    return hits / len(similarities)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("k", [1, 2, 5, 10, 40])
def test_recall_agrees_with_sorting(seed, k):
    rng = np.random.default_rng(seed)
    similarities = rng.permutation(30 * 40).reshape(30, 40) / 1200  # no two alike
    correspondence = rng.random((30, 40)) < 0.06
    correspondence[np.arange(30), rng.integers(40, size=30)] = True
    assert recall_at_k(similarities, correspondence, k) == pytest.approx(by_sorting(similarities, correspondence, k))


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
    ],
)
def test_what_cannot_be_ranked_is_refused(similarities, correspondence, message):
    with pytest.raises(ValueError, match=message):
        ranks(similarities, correspondence)


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


def test_retrieval_at_nested_dims_by_hand():
    # Full vectors tell the two clips apart; their first two channels, equal once normalised again, do not.
    clips = torch.tensor([[0.6, 0.0, 0.8, 0.0], [0.06, 0.0, -0.08, 0.0]])
    scores = retrieval_scores(clips, clips * 3, np.eye(2, dtype=bool), [4, 2])
    for direction in ("text_to_audio", "audio_to_text"):
        values = {dim: [score["value"] for score in row.values()] for dim, row in scores[direction].items()}
        assert values == {"4": [1, 1, 1], "2": [0, 1, 1]}  # R@1, R@5, R@10


def test_both_directions_are_told_apart():
    # Both texts are nearest to clip 0, each clip is nearest to its own text.
    clips, texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.1], [1.0, 0.9]])
    scores = retrieval_scores(clips, texts, np.eye(2, dtype=bool), [2])
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


ROWS = [  # file, seconds, label, captions
    ("dog.wav", 0.9, "dog", "a dog barks", "the loud dog"),
    ("cat.wav", 0.2, "cat", "the cat meows", ""),
    ("bell.wav", 0.4, "low_bell", "the bell rings", "a sound of the bell"),
    ("dogs.wav", 0.3, "dog", "the loud dog", ""),
    ("rain.wav", 0.6, "", "rain falls", "a dog barks"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An audiofolder of five clips, of which some share a caption and one has no label."""
    root = tmp_path_factory.mktemp("five")
    (root / "test").mkdir()
    for number, (name, seconds, *_) in enumerate(ROWS):
        soundfile.write(root / "test" / name, tone(200 * (number + 1), seconds, number), RATE, subtype="FLOAT")
    lines = ["file_name,duration,label,caption,caption_2", *(",".join(map(str, row)) for row in ROWS)]
    (root / "test" / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    return root


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_evaluate_dataset_agrees_with_one_clip_at_a_time(sharp_model, processor, folder):
    scores = evaluate_dataset(
        sharp_model, processor, load_split(str(folder), "test"), ["caption", "caption_2"], progress=False
    )
    texts = sorted({text for row in ROWS for text in row[3:] if text})
    prompts = [f"This is a sound of {name}." for name in ("cat", "dog", "low bell")]
    targets = [1, 0, 2, 1]  # of the first four clips
    with torch.no_grad():
        sounds = [
            sharp_model.get_audio_features(
                **processor(audio=tone(200 * (i + 1), row[1], i), sampling_rate=RATE, return_tensors="pt")
            )
            for i, row in enumerate(ROWS)
        ]
        said = sharp_model.get_text_features(
            **processor(text=texts + prompts, return_tensors="pt")
        ).pooler_output.numpy()
    heard = torch.cat([output.pooler_output for output in sounds]).numpy()
    relevant = np.array([[text in row[3:] for text in texts] for row in ROWS])
    assert (scores["clips"], scores["captions"]) == (5, 6)
    assert list(scores["text_to_audio"]) == list(scores["audio_to_text"]) == ["32", "16", "8", "4"]
    for dim in (32, 16, 8, 4):
        cosines = unit(heard[:, :dim]) @ unit(said[:, :dim]).T
        for k in (1, 5, 10):
            found = {name: scores[name][str(dim)][f"R@{k}"]["value"] for name in ("text_to_audio", "audio_to_text")}
            assert found["text_to_audio"] == pytest.approx(by_sorting(cosines[:, :6].T, relevant.T, k))
            assert found["audio_to_text"] == pytest.approx(by_sorting(cosines[:, :6], relevant, k))
        top = cosines[:4, 6:].argmax(1) == targets
        assert scores["zero_shot"][str(dim)]["accuracy"]["value"] == pytest.approx(top.mean())
        assert scores["zero_shot"][str(dim)]["top-5"]["value"] == 1
    zero_shot = scores["zero_shot"]
    assert (zero_shot["labels"], zero_shot["clips"], zero_shot["chance"]) == (3, 4, pytest.approx(1 / 3))


def test_evaluation_leaves_the_model_as_it_was(model, processor, folder):
    dataset = load_split(str(folder), "test")
    calm = evaluate_dataset(model, processor, dataset, ["caption"], progress=False)
    model.train()
    assert evaluate_dataset(model, processor, dataset, ["caption"], progress=False) == calm
    assert model.training


def test_the_order_and_size_of_batches_change_no_vector(sharp_model, processor):
    clips = [tone(300 * (i + 1), 0.1 * (5 - i), i) for i in range(5)]
    alone = embed_audio(sharp_model, processor, clips, [0.0] * 5, batch_size=1, progress=False)
    by_length = embed_audio(sharp_model, processor, clips, [len(clip) for clip in clips], batch_size=3, progress=False)
    torch.testing.assert_close(by_length, alone, atol=1e-5, rtol=0)


def test_labels_may_be_class_numbers(model, processor, folder):
    named = load_split(str(folder), "test")
    feature = datasets.ClassLabel(names=["cat", "dog", "low_bell"])
    numbered = named.remove_columns("label").add_column("label", [1, 0, 2, 1, -1]).cast_column("label", feature)
    scores = [evaluate_dataset(model, processor, data, ["caption"], progress=False) for data in (named, numbered)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("labels", [None, [""] * 5])
def test_without_names_of_classes_there_is_no_zero_shot(model, processor, folder, labels):
    dataset = load_split(str(folder), "test").remove_columns("label")
    dataset = dataset if labels is None else dataset.add_column("label", labels)
    assert "zero_shot" not in evaluate_dataset(model, processor, dataset, ["caption"], progress=False)


def test_a_prompt_without_a_place_for_the_label_is_refused(model, processor, folder):
    with pytest.raises(ValueError, match="where the label goes.*got 'a sound'"):
        evaluate_dataset(model, processor, load_split(str(folder), "test"), ["caption"], "a sound", progress=False)


def test_the_command_writes_and_prints_the_scores(wavlink_folder, model, processor, folder, tmp_path, capsys):
    output = tmp_path / "new" / "scores.json"
    main(["--model", str(wavlink_folder), "--benchmark", str(folder), "--output", str(output)])
    scores = json.loads(output.read_text(encoding="utf-8"))
    assert [scores.pop(name) for name in ("model", "benchmark", "split")] == [str(wavlink_folder), str(folder), "test"]
    dataset = load_split(str(folder), "test")
    assert scores == evaluate_dataset(model, processor, dataset, ["caption", "caption_2"], progress=False)
    printed = capsys.readouterr().out
    value = 100 * scores["text_to_audio"]["32"]["R@1"]["value"]
    assert "5 clips, 6 captions" in printed and "3 labels, chance 33.3" in printed and f"{value:.1f} [" in printed


def test_the_command_refuses_columns_that_do_not_exist(wavlink_folder, folder):
    arguments = ["--model", str(wavlink_folder), "--benchmark", str(folder), "--caption_columns", "title"]
    with pytest.raises(ValueError, match="no column title; the columns are .*label, caption"):
        main(arguments)
