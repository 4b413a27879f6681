"""`wavlink samples`: captioned sounds made by code, in the form that training, evaluation and an index read."""

import csv
import json

import pytest
import soundfile

from processing.datasets.load import caption_columns, load_split
from processing.datasets.synthetic import KINDS, synthetic_dataset
from wavlink import cli


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples") / "my_sounds"
    assert cli.main(["samples", str(folder), "--clips_per_kind", "1"]) == 0
    return folder


def test_every_split_is_an_audiofolder_with_captions_and_labels(samples):
    for split in ("train", "validation", "test"):
        with open(samples / split / "metadata.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert {row["label"] for row in rows} == set(KINDS) and len(rows) == len(KINDS)
        assert {row["file_name"] for row in rows} == {path.name for path in (samples / split).glob("*.flac")}
        assert caption_columns(load_split(str(samples), split)) == ["caption", "caption_2", "caption_3"]
    assert soundfile.info(samples / "test/church_bell_0.flac").samplerate == 16000


def test_the_sounds_of_test_are_those_that_the_demo_is_scored_on(samples):
    clip = synthetic_dataset("test", clips_per_kind=1)[0]
    name = f"{clip['label'].replace(' ', '_')}_0.flac"
    assert (samples / "test" / name).read_bytes() == clip["audio"]["bytes"]
    assert (samples / "train" / name).read_bytes() != clip["audio"]["bytes"]


def test_json_says_what_was_written(tmp_path, capsys):
    assert cli.main(["samples", str(tmp_path / "new"), "--clips_per_kind", "1", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert results["sounds"] == {"train": 56, "validation": 56, "test": 56} and results["kinds"] == list(KINDS)


@pytest.mark.parametrize(
    "name, options, error",
    [("", [], "is there already"), ("/new", ["--clips_per_kind", "0"], "clips_per_kind must be at least 1")],
)
def test_a_folder_that_holds_something_and_no_clips_are_refused(name, options, error, samples, capsys):
    before = sorted(samples.rglob("*"))
    assert cli.main(["samples", f"{samples}{name}", *options]) == 2
    assert error in capsys.readouterr().err and sorted(samples.rglob("*")) == before
