"""Recall with changed sounds and queries: by hand on small vectors, and through the evaluation of a split."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from processing.datasets.load import load_split
from tests import captioned_folders
from tests.captioned_folders import ROWS
from wavlink import evaluate
from wavlink.evaluation import robustness
from wavlink.evaluation.command import main
from wavlink.evaluation.embed_split import embed_dataset
from wavlink.evaluation.metrics import Correspondence
from wavlink.evaluation.protocol import Protocol, evaluate_dataset
from wavlink.evaluation.report import robustness_report
from wavlink.evaluation.robust_queries import LANGUAGES
from wavlink.evaluation.robust_sounds import SOUND_CHANGES
from wavlink.evaluation.robustness import Queries

folder = captioned_folders.folder

CLIPS = torch.eye(12)  # twelve sounds at right angles
COLUMNS = ["caption", "caption_2"]
WAYS = ("text_to_audio", "audio_to_text")


def values(row: dict) -> list[float]:
    return [round(row[name]["value"], 6) for name in ("unchanged", "changed", "difference")]


def embedding(vectors: dict[str, torch.Tensor]):
    return lambda texts: torch.nn.functional.normalize(torch.stack([vectors[text] for text in texts]), dim=-1)


def row_of(queries: Queries, vectors: dict[str, torch.Tensor]) -> dict:
    return robustness._queries_row(CLIPS, queries, embedding(vectors))


def test_a_query_that_finds_another_sound_is_a_miss_and_its_clip_is_paired():
    texts = [f"t{n}" for n in range(12)]
    vectors = {text: CLIPS[n] for n, text in enumerate(texts)}
    # Of each changed text all other sounds are nearer, of the last three as before.
    vectors |= {f"c{n}": (1 - CLIPS[n]) if n < 9 else CLIPS[n] for n in range(12)}
    row = row_of(Queries(texts, [f"c{n}" for n in range(12)], [[n] for n in range(12)]), vectors)
    assert row["kind"] == "queries" and values(row["text_to_audio"]) == [1, 0.25, -0.75]
    low, high = row["text_to_audio"]["difference"]["interval"]
    assert -1 <= low < -0.75 < high < -0.3
    assert "excluded" not in row


def test_texts_that_a_change_makes_equal_are_one_text_with_the_clips_of_all():
    texts = [f"t{n}" for n in range(12)]
    vectors = {text: CLIPS[n] for n, text in enumerate(texts)} | {"all": torch.ones(12)}
    row = row_of(Queries(texts, ["all"] * 11 + ["ALL "], [[n] for n in range(12)]), vectors | {"ALL ": torch.ones(12)})
    assert values(row["audio_to_text"]) == [1, 1, 0]  # the only text belongs to every clip
    assert values(row["text_to_audio"]) == [1, 0, -1]  # all sounds are alike to it, and ties count against it
    assert row["text_to_audio"]["chance"] == pytest.approx(10 / 12) and row["audio_to_text"]["chance"] == 1


def test_an_excluded_sound_is_ranked_with_and_without_its_exclusion():
    texts = ["first", "second"]
    vectors = {"first": CLIPS[0], "second": CLIPS[1], "y": CLIPS[5]}
    vectors |= {"first without y": CLIPS[0] + CLIPS[5], "second without y": CLIPS[1] - CLIPS[5]}
    queries = Queries(texts, [f"{text} without y" for text in texts], [[0], [1]], [("y", [5])] * 2)
    row = row_of(queries, vectors)["excluded"]
    # All eleven others are alike to both texts: y has rank 12. Then "first" has it second; "second" has it last.
    assert row["lower"]["value"] == 0 and values(row["top"]) == [0, 0.5, 0.5]
    tilted = vectors | {text: vectors[text] + 0.5 * CLIPS[5] for text in texts}
    row = row_of(queries, tilted)["excluded"]
    assert row["lower"]["value"] == 0.5 and values(row["top"]) == [1, 0.5, -0.5]  # second, then second and last
    subtracted = row_of(Queries(texts, texts, [[0], [1]], queries.unwanted, by_vector=True), tilted)["excluded"]
    assert subtracted["lower"]["value"] == 1 and values(subtracted["top"]) == [1, 0, -1]


def split_of(captions: list[list[str]]) -> SimpleNamespace:
    texts = sorted({text for row in captions for text in row})
    answers = [[texts.index(text) for text in row] for row in captions]
    return SimpleNamespace(texts=texts, correspondence=Correspondence(answers, len(texts)))


def test_keywords_are_answered_by_all_clips_with_a_caption_that_holds_them():
    split = split_of(
        [["a red dog barks"], ["a dog sleeps", "the cat"], ["the cat and a dog, both red"], ["a red cat"]]
    )
    changes = dict(robustness._rewritten(split, 0))
    two = changes["2 keywords"]
    found = {
        text: (changed, [*map(int, a)]) for text, changed, a in zip(two.texts, two.changed, two.answers, strict=True)
    }
    assert found["a red cat"] == ("red cat", [2, 3])
    assert found["a red dog barks"] == ("red barks", [0])
    assert "the cat" not in found  # it has one
    assert [*map(int, changes["in a request"].answers[0])] == [1]  # a dog sleeps


def test_excluded_labels_are_no_label_of_a_clip_that_answers():
    split = split_of([["one", "shared"], ["two", "shared"], ["three"], ["four"]])
    members = {"dog": np.array([0]), "cat": np.array([1]), "rain": np.array([2])}
    drawn = set()
    for seed in range(30):
        changes = dict(robustness._excluding(split, members, seed))
        assert list(changes) == ["X without Y", "X, no Y", "X, without=Y of the index"]
        queries = changes["X without Y"]
        for text, changed, clips, (name, own) in zip(
            queries.texts, queries.changed, queries.answers, queries.unwanted, strict=True
        ):
            assert changed == f"{text} without {name}" and not {*clips} & {*own}
            drawn |= {(text, name)}
    assert {name for text, name in drawn if text == "shared"} == {"rain"}
    assert {name for text, name in drawn if text == "four"} == set(members)  # it has no label


def test_labels_are_asked_for_in_other_languages():
    members = {"dog bark": np.array([0, 3]), "rain": np.array([1]), "an unknown thing": np.array([2])}
    changes = dict(robustness._translated(members))
    assert list(changes) == [f"in {language}" for language in LANGUAGES.values()]
    german = changes["in German"]
    assert (german.texts, german.changed) == (["dog bark", "rain"], ["Hundebellen", "Regen"])
    assert [answers.tolist() for answers in german.answers] == [[0, 3], [1]]


def test_a_split_without_labels_has_no_exclusions_and_no_languages():
    split = split_of([["a dog barks"], ["rain falls"]])
    names = [name for name, _ in robustness._all_queries(split, [None, None], 0)]
    assert names and not [name for name in names if "Y" in name or name in {f"in {x}" for x in LANGUAGES.values()}]


@pytest.fixture(scope="module")
def scored(folder, built_model, processor):
    dataset = load_split(str(folder), "test")
    return evaluate_dataset(built_model[0], processor, dataset, COLUMNS, Protocol(robustness=True), progress=False)


def test_what_is_unchanged_has_the_scores_of_the_split(scored):
    part = scored["robustness"]
    assert (part["dims"], part["k"], part["seed"]) == (32, 10, 0)
    sounds = [row for row in part["changes"].values() if row["kind"] == "sounds"]
    assert len(sounds) == len(SOUND_CHANGES) and len(part["changes"]) > len(sounds) + 8
    for row in sounds:
        for way in WAYS:
            assert row[way]["unchanged"] == scored[way]["32"]["R@10"]
            assert row[way]["chance"] == scored["chance"][way]["R@10"]
            assert row[way]["queries"] == (scored["captions"] if way == "text_to_audio" else scored["clips"])


def test_scores_depend_on_the_seed_alone(scored, folder, model, processor, monkeypatch):
    monkeypatch.setattr(robustness, "SOUND_CHANGES", dict.fromkeys(["noise at 0 dB", "hall, 1.5 s"]))
    dataset = load_split(str(folder), "test")
    again = evaluate_dataset(model, processor, dataset, COLUMNS, Protocol(robustness=True), progress=False)
    changes = again["robustness"]["changes"]
    assert changes == {name: scored["robustness"]["changes"][name] for name in changes}


def test_changed_sounds_have_other_vectors_of_the_same_clips(folder, sharp_model, processor, tmp_path):
    dataset = load_split(str(folder), "test")
    embedded = embed_dataset(sharp_model, processor, dataset, COLUMNS, progress=False)
    vectors = [
        robustness._changed_audio(
            "noise at 0 dB", embedded, sharp_model, processor, dataset, seed, batch_size, False, store
        )
        for seed, batch_size, store in [(0, 32, None), (0, 1, tmp_path), (0, 32, tmp_path), (1, 32, None)]
    ]
    assert vectors[0].shape == (len(ROWS), 32) and not torch.allclose(vectors[0], embedded.audio, atol=1e-3)
    assert torch.allclose(vectors[0], vectors[1], atol=1e-5) and torch.equal(vectors[1], vectors[2])  # read again
    assert not torch.allclose(vectors[0], vectors[3], atol=1e-3)


def test_a_fall_over_the_limit_is_named_and_one_below_is_not(scored):
    def row(change: float) -> dict:
        part = {"value": change, "interval": [change - 0.01, change + 0.01]}
        return {way: {"queries": 9, "unchanged": part, "changed": part, "difference": part} for way in WAYS}

    assert robustness._falls(row(-0.051)) == {way: -0.051 for way in WAYS} and not robustness._falls(row(-0.05))
    scores = scored["robustness"] | {"changes": {"a": row(-0.2), "b": row(0.1)}, "falls": {"a": {WAYS[1]: -0.2}}}
    report = robustness_report(scores)
    assert "falls by more than 5 points: a (audio → text -20.0)\n" in report and "for the limits" in report
    assert "-20.0 [-21.0, -19.0]" in report and "+10.0 [+9.0, +11.0]" in report
    assert "falls" not in robustness_report(scores | {"falls": {}})


def test_rows_of_so_few_candidates_that_chance_finds_half_are_named(scored):
    part = {"value": 0.0, "interval": [0.0, 0.0]}
    figures = {"queries": 9, "unchanged": part, "changed": part, "difference": part}
    chances = {"a": 1.0, "b": 0.5, "c": 0.49}
    rows = {
        name: {WAYS[0]: figures | {"chance": 0.1}, WAYS[1]: figures | {"chance": chance}}
        for name, chance in chances.items()
    }
    former = {"d": {way: figures for way in WAYS}}  # of an earlier version
    report = robustness_report(scored["robustness"] | {"changes": rows | former})
    named = [line for line in report.splitlines() if "few candidates" in line]
    assert named == [
        "few candidates, so that a fall hardly shows: audio → text, chance level in %: a 100, b 50",
    ]


def test_the_command_writes_and_prints_robustness_and_leaves_no_parts(
    wavlink_folder, folder, tmp_path, capsys, scored
):
    output = tmp_path / "scores.json"
    arguments = ["--model", str(wavlink_folder), "--benchmark", str(folder), "--output", str(output), "--robustness"]
    main(arguments)
    written = json.loads(output.read_text(encoding="utf-8"))
    assert written["robustness"]["changes"].keys() == scored["robustness"]["changes"].keys()
    assert written["protocol"]["robustness"] is True
    printed = capsys.readouterr().out
    assert "MP3 at 32 kb/s" in printed and "“X without Y” ranks the best Y lower" in printed
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("scores.json")) == ["scores.json"]


def test_without_the_option_nothing_is_changed(wavlink_folder, folder, monkeypatch):
    monkeypatch.setattr(robustness, "_changed_audio", None)
    assert "robustness" not in evaluate(wavlink_folder, folder, choices=0)


def test_robustness_without_captions_is_refused_before_a_model_is_loaded(folder, tmp_path):
    root = tmp_path / "labels" / "test"
    root.mkdir(parents=True)
    for name, *_ in ROWS[:3]:
        (root / name).write_bytes((folder / "test" / name).read_bytes())
    lines = ["file_name,label", *(f"{row[0]},{row[2]}" for row in ROWS[:3])]
    (root / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match="robustness is that of retrieval, and the split has no captions"):
        evaluate("no-such/model", root.parent, robustness=True)
