"""Caption and label cells that hold something else than text, and prompts, are refused before any work."""

import json

import datasets
import pytest
import soundfile

import train
from processing.collator import AudioTextCollator
from processing.datasets.load import (
    add_label_captions,
    caption_columns,
    captions_of,
    label_names,
    load_split,
    with_captions,
)
from processing.datasets.loaders import Epochs
from processing.datasets.paper import load_paper_data
from processing.datasets.shards import load_stream
from processing.datasets.streaming import StreamedBatches
from processing.prompts import checked_prompt, prompted
from tests.conftest import RATE, tone
from tests.tar_streams import collate, sound, write_tar
from wavlink.evaluation.command import main as evaluate
from wavlink.evaluation.multiple_choice import checked_choice_text, questions_of
from wavlink.evaluation.protocol import Protocol, evaluate_dataset, group_names, refuse_unscorable
from wavlink.training.recipes import Recipe, get_recipe

WRONG = {  # cells of two rows, and what they hold
    "texts by language": ([{"en": "a dog", "fr": "un chien"}, {"en": "a cat", "fr": "un chat"}], "an object"),
    "list of objects": ([[{"text": "a dog"}], [{"text": "a cat"}]], "a list of an object"),
    "nested lists": ([[["a dog"]], [["a cat"]]], "a list of a list of text"),
    "numbers": ([5, 6.5], "a number"),
    "lists of numbers": ([[1, 2], [3]], "a list of a number"),
    "truth values": ([True, False], "a truth value"),
    "nothing, then numbers": ([None, 3], "a number"),
}
MIXED = {
    "text and number": (["a dog", 5], "'caption' holds text in row 1 and a number in row 2"),
    "text and NaN": (["a dog", float("nan")], "'caption' holds text in row 1 and a number in row 2"),
    "text and list": (["a dog", ["a cat"]], "'caption' holds text in row 1 and a list of text in row 2"),
    "lists of two kinds": ([["a dog"], ["a", 5]], "a list of text in row 1 and a list of a number and text in row 2"),
    "text and object": (["a dog", {"en": "a cat"}], "text in row 1 and an object in row 2"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def folder(root, cells, column="caption", split="train") -> str:
    """An audiofolder with these cells in its metadata.jsonl."""
    (root / split).mkdir(parents=True)
    rows = [{"file_name": f"{number}.wav", column: cell} for number, cell in enumerate(cells)]
    for number, row in enumerate(rows):
        soundfile.write(root / split / row["file_name"], tone(200 * (number + 1), 0.1, number), RATE)
    (root / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(root)


def parquet(root, cells, column="caption", feature=None, split="train") -> str:
    """A copy of a Hub repository with these cells."""
    rows = [{"audio": {"bytes": sound(n), "path": f"{n}.wav"}, column: cell} for n, cell in enumerate(cells)]
    dataset = datasets.Dataset.from_list(rows)
    features = {**dataset.features, "audio": datasets.Audio(decode=False)}
    dataset = dataset.cast(datasets.Features(features | ({column: feature} if feature else {})))
    (root / "data").mkdir(parents=True)
    dataset.to_parquet(root / f"data/{split}-00000-of-00001.parquet")
    return str(root)


@pytest.mark.parametrize("write", [folder, parquet])
@pytest.mark.parametrize(("cells", "kind"), WRONG.values(), ids=WRONG)
def test_captions_that_are_no_text_are_refused_by_column_row_and_kind(write, cells, kind, tmp_path):
    dataset = load_split(write(tmp_path / "data", cells), "train")
    row = 1 + (cells[0] is None)
    with pytest.raises(ValueError, match=rf"column 'caption' holds {kind} in row {row} \(.*{row - 1}.wav\).*text"):
        caption_columns(dataset)
    with pytest.raises(ValueError, match=f"column 'caption' holds {kind}"):
        Epochs(Recipe("mine", data=str(tmp_path / "data"), init="any"), 0, 1)


@pytest.mark.parametrize(("cells", "message"), MIXED.values(), ids=MIXED)
def test_a_column_of_several_kinds_is_refused_by_row(cells, message, tmp_path):
    with pytest.raises(ValueError, match=f"metadata.jsonl has a column .* of several kinds: .*{message}"):
        load_split(folder(tmp_path / "data", cells), "train")


@pytest.mark.parametrize(("feature", "cells"), [("binary", [b"a", b"b"]), ("int8", [1, 2]), ("float64", [0.5, 1])])
def test_types_of_parquet_that_are_no_text(feature, cells, tmp_path):
    dataset = load_split(parquet(tmp_path / "data", cells, feature=datasets.Value(feature)), "train")
    with pytest.raises(ValueError, match="column 'caption' holds (bytes|a number) in row 1"):
        caption_columns(dataset)


def test_class_numbers_are_labels_and_no_captions(tmp_path):
    data = parquet(tmp_path / "data", [1, 0], feature=datasets.ClassLabel(names=["cat", "dog"]))
    with pytest.raises(ValueError, match="column 'caption' holds class numbers in row 1"):
        caption_columns(load_split(data, "train"))
    named = parquet(tmp_path / "l", [1, 0], "label", feature=datasets.ClassLabel(names=["cat", "dog"]))
    assert label_names(load_split(named, "train")) == ["dog", "cat"]


RIGHT = {
    "text": ["a dog", "5"],
    "lists": [["a dog", "a bark"], ["a cat"]],
    "an empty list first": [[], ["a cat"]],
    "a list with nothing": [["a dog", None, " "], ["a cat"]],
    "nothing": ["a dog", None],
    "only spaces": ["a dog", " \t"],
    "a list of one empty text": [["a dog"], [""]],
}


@pytest.mark.parametrize("write", [folder, parquet])
@pytest.mark.parametrize("cells", RIGHT.values(), ids=RIGHT)
def test_texts_and_lists_of_texts_are_captions(write, cells, tmp_path):
    dataset = load_split(write(tmp_path / "data", cells), "train")
    columns = caption_columns(dataset)
    lists = [[cell] if isinstance(cell, str) else cell or [] for cell in cells]
    expected = [kept for texts in lists if (kept := [text for text in texts if text and text.strip()])]
    assert [captions_of(row, columns) for row in with_captions(dataset, columns)] == expected


@pytest.mark.parametrize("cells", [["['a dog', 'a hound']", '["a cat"]'], ["['a dog'\n 'a hound']", "", "['x']"]])
def test_lists_that_were_printed_as_texts_are_refused(cells):
    dataset = datasets.Dataset.from_dict({"caption": cells})
    with pytest.raises(ValueError, match="'caption' holds lists that were printed as texts, such as .*a dog"):
        caption_columns(dataset)
    assert caption_columns(datasets.Dataset.from_dict({"caption": [*cells, "a bird"]})) == ["caption"]


def test_a_transform_that_needs_other_columns_does_not_stand_in_the_way():
    """As one that crops sounds while they are read."""

    def cropped(batch: dict) -> dict:
        return {**batch, "audio": [audio[:2] for audio in batch["audio"]]}

    good = datasets.Dataset.from_dict({"audio": ["a.wav"], "caption": ["a dog"]}).with_transform(cropped)
    assert caption_columns(good) == ["caption"]
    bad = datasets.Dataset.from_dict({"file": ["a.wav"], "audio": ["a"], "caption": [3]}).with_transform(
        lambda batch: {**batch, "name": batch["file"]}
    )
    with pytest.raises(ValueError, match="column 'caption' holds .*3"):
        caption_columns(bad)


def test_csv_holds_text_whatever_it_looks_like(tmp_path):
    (tmp_path / "train").mkdir()
    for name in "ab":
        soundfile.write(tmp_path / f"train/{name}.wav", tone(440, 0.1), RATE)
    (tmp_path / "train/metadata.csv").write_text("file_name,caption,label\na.wav,101,1\nb.wav,true,2\n")
    dataset = load_split(str(tmp_path), "train")
    assert [captions_of(row, ["caption"]) for row in dataset] == [["101"], ["true"]]
    assert label_names(dataset) == ["1", "2"]


@pytest.mark.parametrize(("cells", "kind"), WRONG.values(), ids=WRONG)
def test_tar_shards_whose_captions_are_no_text_are_refused(cells, kind, tmp_path):
    files = {}
    for number, cell in enumerate(cells):
        files |= {f"c{number}.wav": sound(number), f"c{number}.json": json.dumps({"caption": cell, "n": 5}).encode()}
    write_tar(tmp_path / "train.tar", files)
    with pytest.raises(ValueError, match=f"train.tar holds {kind} as 'caption' in c[01].json"):
        load_stream(str(tmp_path), "train")


def test_a_streamed_parquet_is_refused_before_its_first_batch(tmp_path):
    data = parquet(tmp_path / "data", [1, 2])
    with pytest.raises(ValueError, match="column 'caption' holds .*int64.*a caption is a text"):
        caption_columns(load_stream(data, "train"))


def test_other_cells_later_in_a_stream_are_skipped_counted_and_named(caplog):
    def generate():
        for number in range(8):
            caption = {"en": "x"} if number == 3 else str(number)
            yield {
                "audio": {"array": tone(440, 0.01), "sampling_rate": RATE},
                "caption": caption,
                "__key__": str(number),
            }

    source = datasets.IterableDataset.from_generator(generate)
    batches = StreamedBatches(source, ["caption"], collate, 7, window=1, num_workers=0)
    assert sorted(next(iter(batches))["id"].tolist()) == [0, 1, 2, 4, 5, 6, 7]
    assert batches.report["skipped_without_caption"] == 1 and batches.report["names"] == ["3"]


def test_the_collator_names_the_column_the_clip_and_the_kind(processor):
    row = {"audio": {"array": tone(440, 0.1), "sampling_rate": RATE, "path": "dog.wav"}, "caption": {"en": "a dog"}}
    with pytest.raises(ValueError, match="column 'caption' holds an object in dog.wav"):
        AudioTextCollator(processor, ["caption"])([row])


def test_audiocaps_with_captions_that_are_numbers_is_refused(tmp_path):
    rows = [{"audio": {"bytes": sound(1), "path": "a.wav"}, "youtube_id": "a" * 11, "caption": 5}]
    dataset = datasets.Dataset.from_list(rows)
    (tmp_path / "data").mkdir()
    dataset.to_parquet(tmp_path / "data/test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="column 'caption' holds a number in row 1"):
        load_paper_data("audiocaps", "test", str(tmp_path))


# ---- labels


@pytest.mark.parametrize("write", [folder, parquet])
@pytest.mark.parametrize(("cells", "kind"), WRONG.values(), ids=WRONG)
def test_labels_that_are_no_text_are_refused(write, cells, kind, tmp_path, wavlink_folder):
    data = write(tmp_path / "data", cells, "label")
    dataset = load_split(data, "train")
    for act in (label_names, lambda rows: add_label_captions(rows, "{}")):
        with pytest.raises(ValueError, match=rf"column 'label' holds {kind} in row \d \(.*wav\).*ClassLabel"):
            act(dataset)
    with pytest.raises(ValueError, match=f"nothing to score: .*column 'label' holds {kind}"):
        evaluate(["--model", str(wavlink_folder), "--benchmark", data, "--split", "train"])


def test_lists_of_texts_are_no_labels(tmp_path):
    dataset = load_split(folder(tmp_path / "data", [["dog", "cat"], ["cat"]], "label"), "train")
    with pytest.raises(ValueError, match="column 'label' holds a list of text in row 1"):
        label_names(dataset)


def test_labels_of_spaces_are_none(tmp_path):
    assert label_names(load_split(folder(tmp_path / "data", [" ", "dog"], "label"), "train")) == [None, "dog"]


# ---- prompts

PROMPTS = [
    "a sound",
    "{x}",
    "{0}",
    "{label}",
    "{!r}",
    "{:>3}",
    "{} {}",
    "a {",
    "a }",
    "{}{",
    "}{}",
    "{{}}",
    "",
    None,
    5,
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_has_exactly_one_pair_of_braces(prompt, tmp_path):
    with pytest.raises(ValueError, match=r"exactly one \{\}, where the label goes"):
        checked_prompt(prompt)
    dataset = datasets.Dataset.from_dict({"label": ["dog"]})
    with pytest.raises(ValueError, match="where the label goes"):
        add_label_captions(dataset, prompt)
    with pytest.raises(ValueError, match="where the label goes"):
        refuse_unscorable(datasets.Dataset.from_dict({"label": ["dog", "cat"]}), protocol=Protocol(prompts=(prompt,)))
    if prompt:
        with pytest.raises(ValueError, match="where the label goes"):
            Recipe("mine", init="any", label_prompt=prompt)


def test_a_label_is_put_in_as_it_is():
    assert prompted("a {}.", "{x} {} {{") == "a {x} {} {{."
    assert get_recipe("quickstart").label_prompt == "This is a sound of {}."


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_bad_prompt_ends_the_command_line_with_2(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main([*(["sweep"] if command == "sweep" else []), "quickstart", "--label_prompt", "a sound"])
    assert stopped.value.code not in (0, None)


@pytest.mark.parametrize(
    "text", ["{question}", "{choice", "{choice!r}", "{choice.x}", "{choice:>4}", "{0}", "{}", "x"]
)
def test_a_choice_text_has_exactly_one_pair_of_braces(text):
    with pytest.raises(ValueError, match="the text (may hold|must say where)"):
        checked_choice_text(text)
    assert checked_choice_text("{choice}, {{so}} {question}") == "{choice}, {{so}} {question}"


# ---- what cannot be scored


def clips(**columns) -> datasets.Dataset:
    count = len(next(iter(columns.values())))
    audio = [{"bytes": sound(n), "path": f"{n}.wav"} for n in range(count)]
    dataset = datasets.Dataset.from_dict({"audio": audio, **columns})
    return dataset.cast_column("audio", datasets.Audio(decode=False))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": ["dog", "dog"]}, "'dog' is the only label, .*two labels or more"),
        ({"label": ["dog", None]}, "'dog' is the only label"),
        ({"label": [None, ""]}, "the split has no labels"),
        ({"caption": ["a dog"]}, "with 1 clips and 1 different captions every model finds all"),
        ({"caption": [["a dog", "a bark"]]}, "with 1 clips and 2 different captions"),
        ({"caption": ["a dog", "a dog"]}, "with 2 clips and 1 different captions"),
        ({"caption": ["a dog", ""]}, "with 1 clips and 1 different captions"),
        ({"caption": ["", None]}, "the split has no captions; the split has no labels"),
        ({"caption": ["a dog", "a dog"], "label": ["dog", "dog"]}, "different captions .*; 'dog' is the only label"),
        ({"title": ["a dog", "a cat"]}, "the split has no captions; the split has no labels"),
    ],
)
def test_what_no_model_can_get_wrong_is_refused_before_a_clip_is_embedded(columns, message, model, processor):
    dataset = clips(**columns)
    model.get_audio_features = None
    with pytest.raises(ValueError, match=f"nothing to score: .*{message}"):
        evaluate_dataset(model, processor, dataset, [name for name in columns if name == "caption"], progress=False)


def test_what_one_column_cannot_tell_the_other_may(model, processor):
    alike = clips(caption=["a dog", "a dog"], label=["dog", "cat"])
    scores = evaluate_dataset(model, processor, alike, ["caption"], progress=False)
    assert "zero_shot" in scores and "text_to_audio" not in scores
    numbered = clips(caption=["a dog", "a cat"], label=[3, 4])
    scores = evaluate_dataset(model, processor, numbered, ["caption"], progress=False)
    assert "zero_shot" not in scores and "text_to_audio" in scores
    one = clips(label=["dog", "dog"])
    scores = evaluate_dataset(model, processor, one, [], Protocol(candidates=("dog", "cat")), progress=False)
    assert scores["zero_shot"]["labels"] == 2


def test_a_split_to_validate_on_needs_different_captions(tmp_path, wavlink_folder):
    folder(tmp_path / "data", ["a dog", "a cat"])
    folder(tmp_path / "data", ["a dog", "a dog"], split="validation")
    given = {"data": str(tmp_path / "data"), "init": str(wavlink_folder), "output_dir": str(tmp_path / "run")}
    recipe = Recipe("mine", **given, batch_size=2, mixed_precision="no")
    with pytest.raises(ValueError, match="'validation' cannot be validated on: with 2 clips and 1 different captions"):
        train.Run(recipe)


def test_groups_may_be_numbers_and_no_lists():
    assert group_names(clips(group=[0, 1]), "group") == ["0", "1"]
    assert group_names(clips(group=["", None]), "group") == [None, None]
    assert group_names(clips(label=["a"]), "group") == [None]
    classes = clips(group=[0, 1, -1, None]).cast_column("group", datasets.ClassLabel(names=["music", "speech"]))
    assert group_names(classes, "group") == ["music", "speech", None, None]
    with pytest.raises(ValueError, match="column 'group' holds a list of text"):
        group_names(clips(group=[["a"], ["b"]]), "group")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question": ["what?"]}, "there is no choices"),
        ({"question": ["what?"], "choices": [["a", "b"]], "answer": ["a"]}, "row 1 is no question: .* got text"),
        ({"question": ["what?"], "choices": [["a", "b"]], "answer": [2]}, "row 1 is no question"),
        ({"question": ["what?"], "choices": ["a"], "answer": [0]}, "got text, text and 0"),
        ({"question": [5], "choices": [["a", "b"]], "answer": [0]}, "got a number, a list of text and 0"),
    ],
)
def test_questions_that_are_none_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        questions_of(clips(**columns))


def test_a_question_needs_no_task():
    questions, rows = questions_of(clips(question=["what?"], choices=[["a", "b"]], answer=[1]))
    assert (questions[0].answer, questions[0].task, rows) == (1, "", [0])
