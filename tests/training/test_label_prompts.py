"""Labels in the words of several templates: what is drawn, what counts as the same text, and resumption."""

from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import train
from modeling_wavlink.losses_wavlink import false_negatives
from processing.collator import AudioTextCollator, CaptionedAudio, drawn_captions
from processing.datasets.load import add_label_captions
from tests import tone_runs
from tests.conftest import RATE, tone
from tests.tone_runs import recipe
from wavlink.training.recipe_fields import Recipe

folder = tone_runs.folder
PROMPTS = ("a {}", "the sound of {}", "{}")


def drawn(share: float, **changes) -> list[list[str]]:
    """The captions of 600 epochs of a clip with two captions and a label."""
    rows = {"audio": [{"array": [0.0] * 160, "sampling_rate": RATE}], "caption": [["one", "two"]], "label": ["dog"]}
    rows, column = add_label_captions(datasets.Dataset.from_dict(rows | changes), *PROMPTS)
    data = CaptionedAudio(
        rows, ["caption", column], shuffle=True, label_column=column, label_share=share, max_seconds=1.0
    )
    return [data[epoch, 0]["captions"] for epoch in range(600)]


@pytest.mark.parametrize("share, expected", [(0.0, 1 / 3), (0.25, 0.25), (1.0, 1.0)])
def test_share_of_drawn_texts_that_are_worded_labels(share, expected):
    texts = drawn(share)
    worded = [prompt.replace("{}", "dog") for prompt in PROMPTS]
    assert all(len(row) == 3 and {"one", "two"} < {*row} and len({*row} & {*worded}) == 1 for row in texts)
    first = Counter(row[0] for row in texts)
    assert sum(first[text] for text in worded) / 600 == pytest.approx(expected, abs=0.07)
    for text in worded:
        assert first[text] / 600 == pytest.approx(expected / 3, abs=0.07) and first[text]
    if share < 1:
        assert first["one"] / 600 == pytest.approx((1 - expected) / 2, abs=0.07)


def test_clips_without_label_or_without_caption():
    assert {row[0] for row in drawn(1.0, label=[None])} == {"one", "two"}
    assert {text for row in drawn(0.1, caption=[[]]) for text in row} == {"a dog", "the sound of dog", "dog"}


def test_one_template_draws_what_a_label_prompt_drew():
    """The draws of `label_prompt`, before there were others: a permutation of the captions, the label the last."""
    for seed in range(20):
        texts = ["one", "two", "a dog"]
        expected = [texts[position] for position in np.random.default_rng(seed).permutation(3)]
        got = drawn_captions(texts[:2], np.random.default_rng(seed), texts[2:])
        assert got == (expected, [])


def test_several_templates_give_lists(tmp_path):
    rows, column = add_label_captions(datasets.Dataset.from_dict({"label": ["low_bell", None]}), "a {}", "{}!")
    assert rows[column] == [["a low bell", "low bell!"], []]


@pytest.mark.parametrize("all_captions", [False, True])
def test_wordings_of_a_label_are_the_same_text_class(processor, all_captions):
    """Clips 0 and 1 have one label in two wordings, clip 2 a caption that is a third one, clip 3 another label."""
    words = [
        ("a dog", ["the sound of dog", "dog"]),
        ("the sound of dog", ["a dog", "dog"]),
        ("Dog ", []),
        ("a bell", ["the sound of bell", "bell"]),
    ]
    sound = {"array": tone(440, 0.05), "sampling_rate": RATE}
    rows = [{"audio": sound, "captions": [text], "wordings": others} for text, others in words]
    batch = AudioTextCollator(processor, all_captions=all_captions)(rows)
    assert len(batch["input_ids"]) == 4
    by_clip, by_text = false_negatives(batch["caption_ids"], batch["caption_ids"], 0, batch.get("text_owner"))
    # Whether text (column) j is clip i's, too.
    expected = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    assert torch.equal(by_clip, expected) and torch.equal(by_text, expected.T)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_killed_run_with_label_prompts_resumes_bit_equal(folder, tmp_path, monkeypatch, workers):
    options = ["--label_prompt", "", "--label_prompts", ",".join(PROMPTS), "--label_share", "0.4", "--save_steps", "2"]
    options += ["--num_workers", workers]
    whole = train.train(recipe(folder, tmp_path / "whole", *options))
    learn = train.Run.learn

    def die(self, *arguments):
        if self.step == 3:
            raise KeyboardInterrupt
        return learn(self, *arguments)

    monkeypatch.setattr(train.Run, "learn", die)
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe(folder, tmp_path / "killed", *options))
    monkeypatch.setattr(train.Run, "learn", learn)
    resumed = train.train(recipe(folder, tmp_path / "killed", *options))
    expected, got = (load_file(run / "last/model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert (whole / "metrics.jsonl").read_text() == (resumed / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"label_prompts": ("a dog",)}, "exactly one {}"),
        ({"label_prompts": ("a {}", "a {}")}, "must differ"),
        ({"label_prompt": "a {}", "label_prompts": ("a {}",)}, "must differ"),
        ({"label_share": 0.5}, "give --label_prompts"),
        ({"label_prompt": "a {}", "label_share": 1.5}, "between 0 and 1"),
        ({"label_prompt": "a {}", "label_share": -0.1}, "between 0 and 1"),
        ({"label_prompt": "a {}", "label_share": 0.5, "all_captions": True}, "leave one out"),
    ],
)
def test_wrong_label_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe("mine", init="any", **fields)


def test_label_prompts_of_a_stream_are_refused(folder, tmp_path):
    options = ["--streaming", "true", "--max_steps", "2", "--label_prompt", "", "--label_prompts", "a {}"]
    with pytest.raises(ValueError, match="label_prompts needs a data set held whole"):
        train.train(recipe(folder, tmp_path / "run", *options))
