"""Zero-shot scores of hand-made vectors, whose nearest labels are known."""

import json

import numpy as np
import pytest
import torch

from wavlink.evaluation.metrics import zero_shot_accuracy
from wavlink.evaluation.report import zero_shot_report
from wavlink.evaluation.zero_shot import PROMPT, ensemble, label_texts, zero_shot_scores


class EmbedTexts:
    """`embed_texts` of known vectors, by the text in the default prompt, and the texts it was called with."""

    def __init__(self, vectors: dict[str, list[float]], prompt: str = PROMPT):
        self.vectors, self.embedded = {prompt.replace("{}", text): vector for text, vector in vectors.items()}, []

    def __call__(self, texts: list[str]) -> torch.Tensor:
        self.embedded += texts
        return torch.tensor([self.vectors[text] for text in texts])


def axes(*names: str) -> EmbedTexts:
    """Each label is an axis, so a clip's coordinates are its similarities but for its length."""
    return EmbedTexts(dict(zip(names, torch.eye(len(names)).tolist(), strict=True)))


# Four dogs, of which one is taken for rain, and two rains, of which one is taken for a dog.
DOGS_AND_RAIN = torch.tensor([[3.0, 1], [2, 1], [1, 0], [1, 2], [0, 1], [1, 0.5]])
LABELS = ["dog", "dog", "dog", "dog", "rain", "rain"]


def test_labels_that_a_model_does_not_tell_apart_are_named(caplog):
    embed_texts = EmbedTexts({"DOG": [1.0, 0], "dog": [1.0, 0], "rain": [0, 1.0]})
    with caplog.at_level("WARNING"):
        scores = zero_shot_scores(DOGS_AND_RAIN, ["DOG", "dog", "dog", "DOG", "rain", "rain"], embed_texts, [2])
    assert scores["per_class"]["dog"]["value"] == 0 and "2 labels the vector of another one" in caplog.text
    assert "such as 'DOG' and 'dog'" in caplog.text
    caplog.clear()
    zero_shot_scores(DOGS_AND_RAIN, LABELS, axes("dog", "rain"), [2])
    assert not caplog.text


def test_two_labels_by_hand():
    embed_texts = axes("dog", "rain")
    scores = zero_shot_scores(DOGS_AND_RAIN, LABELS, embed_texts, [2])
    assert embed_texts.embedded == ["This is a sound of dog.", "This is a sound of rain."]
    assert (scores["prompt"], scores["labels"], scores["clips"], scores["chance"]) == (PROMPT, 2, 6, 0.5)
    assert scores["2"]["accuracy"]["value"] == pytest.approx(4 / 6)
    assert scores["2"]["macro"]["value"] == pytest.approx((3 / 4 + 1 / 2) / 2)  # each class counts once
    assert set(scores["2"]) == {"accuracy", "macro"}  # the top 5 of two would be all
    assert [(row["clips"], row["value"]) for row in scores["per_class"].values()] == [(4, 0.75), (2, 0.5)]
    assert scores["confusion"] == {"labels": ["dog", "rain"], "counts": [[0, 0, 3], [0, 1, 1], [1, 0, 1], [1, 1, 1]]}
    assert (scores["unlabelled"], scores["absent"]) == (0, {"clips": 0, "labels": 0, "examples": {}})
    assert "prompts" not in scores and "ungrouped" not in scores
    assert json.loads(json.dumps(scores)) == scores


def test_intervals_draw_clips_within_each_class():
    """One of two rains is right: of two drawn from them 0, 1 or 2 are, with chances 1/4, 1/2, 1/4; dogs all are."""
    scores = zero_shot_scores(DOGS_AND_RAIN[[0, 1, 4, 5]], LABELS[1:3] + LABELS[4:], axes("dog", "rain"), [2])
    assert scores["per_class"]["dog"] == {"clips": 2, "value": 1, "interval": [1, 1]}
    assert scores["per_class"]["rain"] == {"clips": 2, "value": 0.5, "interval": [0, 1]}
    assert scores["2"]["macro"] == {"value": 0.75, "interval": [0.5, 1]}


def test_a_class_interval_is_that_of_the_binomial():
    clips = torch.tensor([[1.0, 0]] * 30 + [[0.0, 1]] * 70)
    scores = zero_shot_scores(clips, ["dog"] * 100, axes("dog", "rain"), [2], candidates=["dog", "rain"])
    low, high = scores["per_class"]["dog"]["interval"]
    # Of 100 at 0.3 P(hits <= 20) = 0.016, P(hits <= 22) = 0.048; P(hits <= 37) = 0.947, P(hits <= 40) = 0.988.
    assert scores["per_class"]["dog"]["value"] == 0.3 and 0.20 < low <= 0.22 and 0.37 < high <= 0.40


@pytest.mark.parametrize("seed", range(5))
def test_each_dim_agrees_with_the_metric_and_with_sorting(seed):
    rng = torch.Generator().manual_seed(seed)
    names = [f"label {number}" for number in range(9)]
    vectors = torch.randn(9, 16, generator=rng)
    targets = torch.randint(9, (60,), generator=rng)
    audio = vectors[targets] + 2 * torch.randn(60, 16, generator=rng)
    embed_texts = EmbedTexts(dict(zip(names, vectors.tolist(), strict=True)))
    scores = zero_shot_scores(audio, [names[i] for i in targets], embed_texts, [4, 16])
    assert [key for key in scores if key.isdigit()] == ["16", "4"]
    for dim in (16, 4):
        clips, text = audio[:, :dim].double().numpy(), vectors[:, :dim].double().numpy()
        cosines = clips @ text.T / np.linalg.norm(clips, axis=1)[:, None] / np.linalg.norm(text, axis=1)
        row = scores[str(dim)]
        assert row["accuracy"]["value"] == zero_shot_accuracy(cosines, targets.numpy())
        assert row["top-5"]["value"] == zero_shot_accuracy(cosines, targets.numpy(), k=5)
        hits = cosines.argmax(1) == targets.numpy()
        assert row["accuracy"]["value"] == hits.mean()
        assert row["macro"]["value"] == pytest.approx(np.mean([hits[targets == i].mean() for i in targets.unique()]))
        if dim == 16:
            expected = np.zeros((9, 9), int)
            np.add.at(expected, (targets.numpy(), cosines.argmax(1)), 1)
            assert {(i, j): count for i, j, count in scores["confusion"]["counts"]} == {
                (i, j): expected[i, j] for i, j in np.argwhere(expected)
            }


@pytest.mark.parametrize(("labels", "has_top_5"), [(5, False), (6, True)])
def test_top_5_needs_more_than_five_labels(labels, has_top_5):
    names = [f"label {number}" for number in range(labels)]
    audio = 7 - torch.arange(labels).float().expand(labels, labels)  # everything is most like label 0, then 1, ...
    scores = zero_shot_scores(audio, names, axes(*names), [labels])[str(labels)]
    assert ("top-5" in scores) == has_top_5
    assert not has_top_5 or scores["top-5"]["value"] == pytest.approx(5 / 6)


def test_an_ensemble_by_hand():
    """Of lengths 1 and 10, the prompts weigh the same: (1, 0) and (0, 10) have the mean direction (1, 1)."""
    prompts = ["hear {}", "the sound of {}"]
    embed_texts = EmbedTexts(
        {"hear dog": [1.0, 0], "the sound of dog": [0, 10], "hear rain": [0, 1], "the sound of rain": [0, 2]}, "{}"
    )
    clips = torch.tensor([[1.0, 0.9], [0.1, 1]])
    scores = zero_shot_scores(clips, ["dog", "rain"], embed_texts, [2], prompts)
    assert embed_texts.embedded == ["hear dog", "the sound of dog", "hear rain", "the sound of rain"]
    assert scores["prompts"] == prompts and "prompt" not in scores
    assert scores["2"]["accuracy"]["value"] == 1
    vectors = torch.tensor([[[1.0, 0], [0, 10]], [[0, 1], [0, 2]]])
    torch.testing.assert_close(ensemble(vectors, 2), torch.tensor([[0.5**0.5, 0.5**0.5], [0, 1]]))


def test_an_ensemble_normalises_after_the_cut():
    """(3, 4, 12) and (0, 1, 0) cut to two dims are (0.6, 0.8) and (0, 1): their mean is along (0.6, 1.8)."""
    vectors = torch.tensor([[[3.0, 4, 12], [0, 1, 0]]])
    torch.testing.assert_close(ensemble(vectors, 2), torch.tensor([[1, 3]]) / 10**0.5)


def test_ties_count_against_the_model():
    clips = torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 0, 1]])
    names = ("cat", "dog", "rain")
    scores = zero_shot_scores(clips, ["dog", "dog", "cat"], axes(*names), [3], candidates=names)
    assert scores["3"]["accuracy"]["value"] == 0
    assert scores["confusion"]["counts"] == [[0, 2, 1], [1, 0, 2]]  # the confusion holds the same errors


def test_absent_and_unlabelled_clips_are_left_out_and_counted():
    others = [f"other {number:02}" for number in range(12)]
    labels = [*LABELS, None, "", *others, "other 11"]
    clips = torch.cat([DOGS_AND_RAIN, torch.ones(15, 2)])
    scores = zero_shot_scores(clips, labels, axes("dog", "rain"), [2], candidates=["dog", "rain"])
    assert (scores["clips"], scores["unlabelled"]) == (6, 2)
    examples = scores["absent"].pop("examples")
    assert scores["absent"] == {"clips": 13, "labels": 12}
    assert examples == {"other 11": 2, **dict.fromkeys(others[:9], 1)}
    alone = zero_shot_scores(DOGS_AND_RAIN, LABELS, axes("dog", "rain"), [2])
    assert all(scores[key] == alone[key] for key in ("2", "per_class", "confusion", "chance"))
    assert "13 clips whose label is no candidate" in zero_shot_report(
        scores
    ) and "2 clips without a label" in zero_shot_report(scores)


def test_a_candidate_without_clips_is_a_rival_but_no_class():
    clips = torch.cat([DOGS_AND_RAIN, torch.zeros(6, 1)], dim=1)
    clips[0, 2] = 9  # the first dog is most like the cat
    candidates = ["rain", "dog", "cat", "dog"]
    scores = zero_shot_scores(clips, LABELS, axes("dog", "rain", "cat"), [3], candidates=candidates)
    assert (scores["labels"], scores["chance"]) == (3, 1 / 3)
    assert {label: row["value"] for label, row in scores["per_class"].items()} == {"rain": 0.5, "dog": 0.5}
    assert scores["3"]["macro"]["value"] == 0.5
    assert scores["confusion"]["labels"] == ["rain", "dog", "cat"]
    assert [1, 2, 1] in scores["confusion"]["counts"]


def test_groups_by_hand():
    groups = ["music", "music", None, "sound", "sound", ""]
    scores = zero_shot_scores(DOGS_AND_RAIN, LABELS, axes("dog", "rain"), [2, 1], groups=groups)
    assert scores["ungrouped"] == 2
    results = {name: (row["clips"], row["value"]) for name, row in scores["2"]["groups"].items()}
    assert results == {"music": (2, 1.0), "sound": (2, 0.5)}  # a dog taken for rain, and a rain that is right
    assert scores["2"]["groups"]["music"]["interval"] == [1, 1]
    # Of the first dim alone, rain is nothing: only dogs with something there are right.
    assert [row["value"] for row in scores["1"]["groups"].values()] == [1.0, 0.5]


def test_words_of_labels_are_explicit_and_recorded():
    labels = ["dog_bark", "rain", "dog_bark"]
    clips = torch.tensor([[1.0, 0], [0, 1], [1, 0]])
    for clean_up, renames, text, recorded in (
        ("spaces", None, "dog bark", {"dog_bark": "dog bark"}),
        ("none", None, "dog_bark", {}),
        ("spaces", {"dog_bark": "a {} dog_"}, "a {} dog_", {"dog_bark": "a {} dog_"}),  # as given
    ):
        embed_texts = axes(text, "rain")
        scores = zero_shot_scores(clips, labels, embed_texts, [2], clean_up=clean_up, renames=renames)
        assert embed_texts.embedded[0] == PROMPT.replace("{}", text)
        assert (scores["clean_up"], scores["label_text"]) == (clean_up, recorded)
        assert list(scores["per_class"]) == ["dog_bark", "rain"]  # scores go by the label


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clean_up": "lower"}, "clean_up must be one of spaces, none, got 'lower'"),
        ({"renames": {"cat": "a cat"}}, "renames hold 'cat', which is no label here"),
        ({"renames": {"a_b": " "}}, "'a_b' needs words, got ' '"),
        ({"renames": {"a_b": ["x"]}}, r"'a_b' needs words, got \['x'\]"),
        ({}, "'a b' and 'a_b' both read 'a b'"),
        ({"clean_up": "none", "renames": {"c": "a_b"}}, "'a_b' and 'c' both read 'a_b'"),
    ],
)
def test_labels_with_the_same_words_are_refused(options, message):
    labels = ["a b", "a_b", "c"] if "clean_up" in options or not options else ["a_b", "c"]
    with pytest.raises(ValueError, match=message):
        label_texts(labels, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": "a sound"}, "where the label goes.*got 'a sound'"),
        ({"prompts": ["{}", "a sound"]}, "where the label goes.*got 'a sound'"),
        ({"prompts": []}, "at least one prompt"),
        *(({"prompts": text}, "exactly one {}") for text in ("{x}", "{0}", "{!r}", "{} {}", "{}{", "}{}", "{{}}", "")),
        ({"labels": [None, ""] * 3}, "none of 6 clips has a label: give the data set a column of labels"),
        ({"candidates": ["Dog", "Rain"]}, r"among the 2 candidates \(Dog, Rain\).*such as dog, rain"),
        ({"candidates": []}, "among the 0 candidates"),
        ({"candidates": ["dog"]}, "'dog' is the only label, so that every clip would be right"),
        ({"labels": ["dog"] * 6}, "'dog' is the only label"),
        ({"labels": LABELS[:5]}, "labels for each of the 6 clips, got 5"),
        ({"groups": ["music"]}, "groups for each of the 6 clips, got 1"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_a_text_is_embedded(options, message):
    embed_texts = axes("dog", "rain")
    with pytest.raises(ValueError, match=message):
        zero_shot_scores(DOGS_AND_RAIN, options.pop("labels", LABELS), embed_texts, [2], **options)
    assert not embed_texts.embedded


def test_the_table_names_the_best_the_worst_and_the_confusions():
    """Eight labels of five clips: of label i, i clips (at most 5) are right, the others are taken for label 7."""
    names = [f"l{number}" for number in range(8)]
    clips = [i if clip < i else 7 for i in range(8) for clip in range(5)]
    groups = ["music"] * 20 + ["sound"] * 20  # labels 0 to 3: 6 of 20; 4 to 7: 19 of 20
    labels = [name for name in names for _ in range(5)]
    scores = zero_shot_scores(torch.eye(8)[clips], labels, axes(*names), [8, 7], groups=groups)
    lines = zero_shot_report(scores).splitlines()
    assert lines[0] == "zero-shot: 40 clips, 8 labels, chance 12.5"
    assert "8 dims  top-1 62.5 [" in lines[1] and "mean of classes 62.5 [" in lines[1] and "top-5 " in lines[1]
    assert "music 30.0 [" in lines[1] and "sound 95.0 [" in lines[1] and "7 dims" in lines[2]
    assert lines[3].startswith("worst classes: l0 0.0 [0.0, 0.0] of 5, l1 20.0 [") and ", l2 40.0 [" in lines[3]
    assert lines[4] == "best classes: " + ", ".join(f"l{i} 100.0 [100.0, 100.0] of 5" for i in (7, 6, 5))
    assert lines[5] == "confusions: l0 as l7 5, l1 as l7 4, l2 as l7 3"


def test_the_table_of_few_classes_names_each_once():
    text = zero_shot_report(
        zero_shot_scores(DOGS_AND_RAIN[:1], ["dog"], axes("dog", "rain"), [2], candidates=["dog", "rain"])
    )
    assert text.count("dog 100.0") == 1 and "confusions" not in text and "left out" not in text
