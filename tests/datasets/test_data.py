"""Data sets to rows and rows to the model's inputs, whatever the layout, and faults named where they are."""

import io
import json

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import torch

from modeling_wavlink.losses_wavlink import false_negatives
from processing.collator import AudioTextCollator, CaptionedAudio, caption_ids
from processing.datasets.load import (
    add_label_captions,
    caption_columns,
    captions_of,
    durations,
    label_names,
    load_split,
)
from tests.conftest import RATE, tone

CSV = "file_name,duration,caption,caption_2\ndog.wav,0.1,A dog barks,\n{0}bell.wav,,A bell,A bell rings\n"
JSONL = [
    {"file_name": "dog.wav", "duration": 0.1, "caption": "A dog barks"},
    {"file_name": "bell.wav", "caption": "A bell", "caption_2": "A bell rings"},
]


def write(root, files, metadata, content) -> str:
    """A folder with a short sound per file and a metadata file; returns it as `load_split` takes it."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, tone(440, 0.1), RATE)
    (root / metadata).parent.mkdir(parents=True, exist_ok=True)
    (root / metadata).write_bytes(content.encode())
    return str(root)


FILES = ["test/dog.wav", "test/bell.wav"]
LINES = "\n".join(map(json.dumps, JSONL))
WHOLE = CSV.format("test/").replace("dog.wav", "test/dog.wav") + "train/cat.wav,0.1,A cat,\n"
AUDIOFOLDERS = {
    "csv": (FILES, "test/metadata.csv", CSV.format("")),
    "csv of a spreadsheet": (FILES, "test/metadata.csv", "\ufeff" + CSV.format("").replace("\n", "\r\n")),
    "jsonl": (FILES, "test/metadata.jsonl", LINES + "\n\n"),
    "no split folders": (["dog.wav", "bell.wav"], "metadata.csv", CSV.format("")),
    "no split folders, jsonl": (["dog.wav", "bell.wav"], "metadata.jsonl", LINES),
    "deeper folders": (["test/dog.wav", "test/b/bell.wav"], "test/metadata.csv", CSV.format("b/")),
    "one list for all split folders": ([*FILES, "train/cat.wav"], "metadata.csv", WHOLE),
}


@pytest.mark.parametrize(("files", "metadata", "content"), AUDIOFOLDERS.values(), ids=AUDIOFOLDERS)
def test_an_audiofolder_in_every_layout(files, metadata, content, tmp_path):
    dataset = load_split(write(tmp_path, files, metadata, content), "test")
    assert [row["audio"]["path"].rsplit("/", 1)[1] for row in dataset] == ["dog.wav", "bell.wav"]
    assert [captions_of(row, ["caption", "caption_2"]) for row in dataset] == [
        ["A dog barks"],
        ["A bell", "A bell rings"],
    ]
    assert durations(dataset) == pytest.approx([0.1, 0.1])  # of the column, and of the header
    np.testing.assert_allclose(CaptionedAudio(dataset, ["caption"])[1]["audio"]["array"], tone(440, 0.1), atol=1e-4)


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ("test/metadata.parquet", ["dog.wav", "bell.wav"]),
        ("metadata.parquet", ["test/dog.wav", "test/bell.wav"]),
        ("test/metadata.parquet", ["a/dog.wav", "b/bell.wav"]),  # not of folders of classes
    ],
)
def test_an_audiofolder_with_metadata_in_parquet(metadata, names, tmp_path):
    folder = write(tmp_path, [f"test/{name.removeprefix('test/')}" for name in names], metadata, "")
    rows = {"file_name": names, "caption": ["A dog", "A bell"], "label": ["dog", None]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / metadata)
    dataset = load_split(folder, "test")
    assert dataset["caption"] == rows["caption"] and label_names(dataset) == rows["label"]
    content = bytearray((tmp_path / metadata).read_bytes())
    size = int.from_bytes(content[-8:-4], "little")
    content[-8 - size : -8] = b"\xff" * size  # its index
    for damaged in (content, b"PAR1"):
        (tmp_path / metadata).write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot read .*metadata.parquet"):
            load_split(folder, "test")


def test_a_files_duration_is_read_where_its_rows_differ(tmp_path, caplog):
    content = "file_name,caption,duration\ndog.wav,a dog,9\ndog.wav,a hound,8\nbell.wav,a bell,7\n"
    dataset = load_split(write(tmp_path, FILES, "test/metadata.csv", content), "test")
    assert durations(dataset) == pytest.approx([0.1, 7]) and "hold in caption\n" in f"{caplog.messages[-1]}\n"


def test_a_common_list_of_other_split_folders_gives_no_rows_of_them(tmp_path):
    content = "file_name,caption\ntrain/cat.wav,a cat\nvalidation/dog.wav,a dog\n"
    folder = write(tmp_path, ["train/cat.wav", "validation/dog.wav"], "metadata.csv", content)
    assert load_split(folder, "train")["caption"] == ["a cat"]
    with pytest.raises(ValueError, match="has no rows for test"):
        load_split(folder, "test")


def test_the_rows_of_a_file_are_one_clip_with_the_captions_of_all(tmp_path, caplog):
    rows = ["dog.wav,a dog barks,", "bell.wav,a bell,bell", "./dog.wav,a hound,dog", "dog.wav,a dog barks,dog"]
    content = "\n".join(["file_name,caption,label", *rows])
    dataset = load_split(write(tmp_path, FILES, "test/metadata.csv", content), "test")
    assert [row["audio"]["path"].rsplit("/", 1)[1] for row in dataset] == ["dog.wav", "bell.wav"]
    assert [captions_of(row, ["caption"]) for row in dataset] == [["a dog barks", "a hound"], ["a bell"]]
    assert label_names(dataset) == ["dog", "bell"]
    assert "4 rows of 2 sounds" in caplog.text and "all that they hold in caption" in caplog.text


def test_rows_of_a_file_with_other_labels_or_with_questions_stay_several(tmp_path):
    labels = "file_name,label,caption\ndog.wav,dog,a dog\ndog.wav,animal,a dog\nbell.wav,bell,a bell\n"
    dataset = load_split(write(tmp_path / "labels", FILES, "test/metadata.csv", labels), "test")
    assert label_names(dataset) == ["dog", "animal", "bell"]
    rows = [{"file_name": "dog.wav", "question": f"{n}?", "choices": ["a", "b"], "answer": n} for n in (0, 1)]
    lines = "\n".join(json.dumps(row) for row in rows)
    dataset = load_split(write(tmp_path / "questions", FILES, "test/metadata.jsonl", lines), "test")
    assert dataset["question"] == ["0?", "1?"] and dataset["answer"] == [0, 1]


def test_lists_of_captions_of_a_file_are_one_list(tmp_path):
    rows = [("dog.wav", ["a dog", "a hound"]), ("dog.wav", ["a dog", None]), ("bell.wav", None)]
    lines = "\n".join(json.dumps({"file_name": name, "caption": texts}) for name, texts in rows)
    dataset = load_split(write(tmp_path, FILES, "test/metadata.jsonl", lines), "test")
    assert [captions_of(row, ["caption"]) for row in dataset] == [["a dog", "a hound"], []]


@pytest.mark.parametrize("opened", ['dog.wav,"A dog\nbell.wav,A bell\n', 'dog.wav,A dog\nbell.wav,"A bell'])
def test_a_quote_that_is_never_closed_is_refused(opened, tmp_path):
    folder = write(tmp_path, FILES, "test/metadata.csv", "file_name,caption\n" + opened)
    with pytest.raises(ValueError, match="metadata.csv: a quote is opened and never closed"):
        load_split(folder, "test")


def test_a_split_folder_takes_precedence_over_a_common_list(tmp_path):
    write(tmp_path, ["dog.wav"], "metadata.csv", "file_name,caption\ndog.wav,The whole\n")
    folder = write(tmp_path, ["test/dog.wav"], "test/metadata.csv", "file_name,caption\ndog.wav,The split\n")
    assert load_split(folder, "test")["caption"] == ["The split"]


@pytest.mark.parametrize(
    ("metadata", "content", "message"),
    [
        ("train/metadata.csv", CSV, "holds neither test/metadata.csv .or .jsonl, .parquet. nor metadata.csv"),
        ("test/metadata.csv", CSV.format(""), r"metadata.csv names .*bell.wav, which does not exist"),
        (
            "test/metadata.csv",
            "file_name,caption\ndog.wav,A\nbell.wav,B\ncat.wav,C\ncat.wav,D\n",
            r"names .*bell.wav, .*cat.wav, which do not exist \(2 of 3 files\): put the sounds there, or",
        ),
        ("test/metadata.csv", "file,caption\ndog.wav,A dog\n", "no column 'file_name', only file, caption"),
        ("test/metadata.csv", "file_name,caption\n,A dog\n", "no file_name in row 1"),
        ("test/metadata.csv", "file_name,caption\ndog.wav,A dog, barking\n", "more cells.*dog.wav.*comma in quotes"),
        ("test/metadata.csv", "file_name,caption\n", "no rows for test"),
        ("test/metadata.csv", "", "no rows for test"),
        ("metadata.csv", "file_name,caption\ntrain/dog.wav,A dog\n", "no rows for test"),
        ("test/metadata.csv", "file_name,duration\ndog.wav,long\n", "cannot read .*metadata.csv.*'long'"),
        ("test/metadata.jsonl", '{"file_name": "dog.wav"}\n{"caption": "A dog"}\n', "no file_name in row 2"),
        ("test/metadata.jsonl", '{"file_name": \n', "cannot read .*metadata.jsonl"),
    ],
)
def test_a_faulty_folder_is_refused_with_what_is_wrong(metadata, content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_split(write(tmp_path, ["test/dog.wav"], metadata, content), "test")


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """A copy of a Hub repository: a split of one clip in parquet, its sound as bytes."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = io.BytesIO()
    soundfile.write(file, tone(440, 0.1), RATE, format="FLAC")

    def save(column: str):
        row = {column: {"bytes": file.getvalue(), "path": "dog.flac"}, "caption": "A dog barks"}
        features = datasets.Features({column: datasets.Audio(), "caption": datasets.Value("string")})
        path = tmp_path / "repository" / "data" / "test-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        datasets.Dataset.from_list([row]).cast(features).to_parquet(path)
        return str(tmp_path / "repository")

    return save


def test_a_copy_of_a_hub_repository_stays_undecoded(parquet):
    dataset = load_split(parquet("audio"), "test")
    assert dataset.features["audio"].decode is False
    row = CaptionedAudio(dataset, caption_columns(dataset))[0]
    assert row["captions"] == ["A dog barks"]
    np.testing.assert_allclose(row["audio"]["array"], tone(440, 0.1), atol=1e-4)


def test_a_data_set_without_sound_is_refused_with_its_columns(parquet):
    with pytest.raises(ValueError, match="no column 'audio', only sound, caption"):
        load_split(parquet("sound"), "test")


@pytest.mark.parametrize(
    ("columns", "captions"),
    [
        (["audio", "caption", "caption_2", "caption_3", "label"], ["caption", "caption_2", "caption_3"]),
        (["audio", "text"], ["text"]),
        (["captions", "file"], ["captions"]),
        (["caption1", "caption2", "caption_text", "my_caption", "context"], ["caption1", "caption2"]),
    ],
)
def test_caption_columns_are_found_by_name(columns, captions):
    dataset = datasets.Dataset.from_dict({name: ["x"] for name in columns})
    assert caption_columns(dataset) == captions
    assert caption_columns(dataset, [columns[0]]) == [columns[0]]


def test_missing_caption_columns_are_refused_with_those_there_are():
    dataset = datasets.Dataset.from_dict({"audio": ["x"], "title": ["x"]})
    with pytest.raises(ValueError, match="no column caption, tag; the columns are audio, title"):
        caption_columns(dataset, ["caption", "title", "tag"])
    with pytest.raises(ValueError, match="named like a caption.*caption_columns, out of audio, title"):
        caption_columns(dataset)


def test_captions_of_a_row_leave_out_what_is_empty():
    row = {"caption": "A dog", "caption_2": "", "caption_3": None, "captions": ["A bark", "", " "], "text": []}
    assert captions_of(row, ["captions", "caption_3", "caption", "caption_2", "text"]) == ["A bark", "A dog"]


def test_labels_become_captions():
    labels = datasets.ClassLabel(names=["cat", "low_bell"])
    dataset = datasets.Dataset.from_dict({"label": [1, -1, None, 0]}).cast_column("label", labels)
    assert label_names(dataset) == ["low_bell", None, None, "cat"]
    worded, column = add_label_captions(dataset, "This is a sound of {}.")
    assert worded[column] == ["This is a sound of low bell.", "", "", "This is a sound of cat."]
    with pytest.raises(ValueError, match="needs a column 'label'; the columns are caption"):
        add_label_captions(datasets.Dataset.from_dict({"caption": ["A dog"]}), "{}")


RAMP = np.arange(162, dtype=np.float32) / 200  # a sample's value tells its place
ROWS = [{"audio": {"array": RAMP, "sampling_rate": RATE}, "captions": ["one", "two", "three"]}] * 4


def items(seed: int, keys) -> list[tuple]:
    """(start of the crop, captions) of each item."""
    data = CaptionedAudio(ROWS, ["captions"], max_seconds=0.01, seed=seed, shuffle=True)
    rows = [data[key] for key in keys]
    assert all(len(row["audio"]["array"]) == 160 and row["audio"]["sampling_rate"] == RATE for row in rows)
    return [(round(200 * float(row["audio"]["array"][0])), *row["captions"]) for row in rows]


def test_a_crop_is_as_long_at_a_rate_that_is_set_later():
    data = CaptionedAudio(ROWS, ["captions"], max_seconds=0.01, shuffle=True)
    data.rate = 48000
    assert max(len(data[index]["audio"]["array"]) for index in range(len(ROWS))) == 480


def test_crops_and_captions_depend_on_seed_epoch_and_index_only():
    keys = [(epoch, index) for epoch in range(40) for index in range(4)]
    first = items(0, keys)
    assert items(0, reversed(keys)) == first[::-1]
    assert items(0, [(0, np.int64(3)), 3]) == [first[3]] * 2
    assert items(1, keys) != first and first[:80] != first[80:] and first[::4] != first[1::4]
    assert {item[0] for item in first} == {0, 1, 2}  # every place a crop of 160 of 162 samples can start
    assert {item[1] for item in first} == {"one", "two", "three"}
    assert all(set(item[1:]) == {"one", "two", "three"} for item in first)


def test_without_shuffling_it_is_the_first_caption_and_the_whole_clip():
    data = CaptionedAudio(ROWS, ["captions"])
    assert len(data) == 4 and data[(7, 2)]["captions"] == ["one", "two", "three"]
    np.testing.assert_array_equal(data[(7, 2)]["audio"]["array"], RAMP)
    with pytest.raises(ValueError, match="lasts 0.01 s, the limit is 0.01 s"):
        CaptionedAudio(ROWS, ["captions"], max_seconds=0.01)[2]
    np.testing.assert_array_equal(CaptionedAudio(ROWS, ["captions"], shuffle=True)[0]["audio"]["array"], RAMP)


def test_a_row_without_a_caption_is_named():
    data = CaptionedAudio([{"audio": {"bytes": b"", "path": "dog.wav"}, "caption": " "}], ["caption"])
    with pytest.raises(ValueError, match="row 0 .dog.wav. has no caption in caption"):
        data[0]


def test_the_collator_makes_the_models_inputs(processor):
    rows = [
        {"audio": {"array": tone(440, 0.05), "sampling_rate": RATE}, "captions": ["A dog barks", "The bell rings"]},
        {"audio": {"array": tone(220, 0.03), "sampling_rate": RATE}, "captions": ["the bell rings "]},
    ]
    batch = AudioTextCollator(processor)(rows)
    expected = processor(
        text=["A dog barks", "the bell rings "],
        audio=[tone(440, 0.05), tone(220, 0.03)],
        sampling_rate=RATE,
        return_tensors="pt",
    )
    assert set(batch) == {*expected, "caption_ids"}
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    ids = batch["caption_ids"]
    assert ids.dtype == torch.int64 and ids.shape == (2, 2)
    assert ids[1, 0] == ids[0, 1] != ids[0, 0] and ids[1, 1] == -1 and (ids[0] >= 0).all()


def test_the_collators_padding_and_columns_can_be_named(processor):
    rows = [{"audio": {"array": tone(440, 0.05), "sampling_rate": RATE}, "title": "a dog", "tag": "a bark"}]
    batch = AudioTextCollator(processor, ["tag", "title"], padding="max_length")(rows)
    assert batch["input_features"].shape == (1, 80, 3000) and "input_features_mask" not in batch
    assert torch.equal(batch["caption_ids"], caption_ids([["a bark", "a dog"]]))
    with pytest.raises(ValueError, match="without caption in captions; it has audio, title, tag"):
        AudioTextCollator(processor)(rows)


def test_all_captions_become_texts_with_the_rows_of_their_clips(processor):
    captions = [["a dog", "the dog barks", "a dog"], ["the bell rings"], ["low rain", "a dog"]]
    rows = [{"audio": {"array": tone(440, 0.05), "sampling_rate": RATE}, "captions": texts} for texts in captions]
    batch = AudioTextCollator(processor, all_captions=True)(rows)
    expected = processor(text=[text for texts in captions for text in texts], return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"]) and len(batch["input_features"]) == 3
    assert batch["text_owner"].tolist() == [0, 0, 0, 1, 2, 2] and batch["text_owner"].dtype == torch.int64
    assert torch.equal(batch["caption_ids"], caption_ids(captions))
    ignored = false_negatives(batch["caption_ids"], batch["caption_ids"], text_owner=batch["text_owner"])[0]
    assert ignored.nonzero().tolist() == [[0, 5], [2, 0], [2, 2]]  # "a dog" of clips 0 and 2
    batch = AudioTextCollator(processor, with_caption_ids=False, all_captions=True)(rows)
    assert "caption_ids" not in batch and batch["text_owner"].tolist() == [0, 0, 0, 1, 2, 2]


def test_caption_ids_are_the_same_in_every_process():
    b2sum = 0x8CBA0D5B69B18330  # printf 'a dog barks' | b2sum -l 64
    assert caption_ids([[" A dog barks"]]).tolist() == [[b2sum >> 1]]


def test_a_folder_a_class_gives_labels(tmp_path):
    for label, name in (("dog", "1.wav"), ("church_bell", "2.FLAC"), ("dog", "notes.txt")):
        (tmp_path / "test" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "test" / label / name).write_bytes(b"")
    dataset = load_split(str(tmp_path), "test")
    assert label_names(dataset) == ["church_bell", "dog"]
    assert [row["audio"]["path"] for row in dataset][1] == str(tmp_path / "test" / "dog" / "1.wav")
    with pytest.raises(ValueError, match="holds neither train/metadata.csv.*folder a class, such as train/dog/1.wav"):
        load_split(str(tmp_path), "train")  # whose clips those of test are not
    assert label_names(load_split(str(tmp_path / "test"), "train")) == ["church_bell", "dog"]  # no split folders
