"""`wavlink samples`: captioned sounds, in the form that training, evaluation and an index read."""

import csv
import json

import numpy as np
import pytest
import soundfile

from processing.datasets.load import caption_columns, load_split
from processing.datasets.synthetic import KINDS, synthetic_dataset
from wavlink import cli
from wavlink import samples as samples_module


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


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples") / "real"
    assert cli.main(["samples", str(folder), "--real"]) == 0
    return folder


def test_real_clips_are_small_and_credited(real):
    with open(real / "metadata.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 == len({row["label"] for row in rows}) and all(row["caption"] for row in rows)
    assert {row["file_name"] for row in rows} == {path.name for path in real.glob("*.ogg")}
    assert {row["licence"] for row in rows} == {"BSD-2-Clause", "CC0-1.0", "MIT", "public domain"}
    credits = (real / "CREDITS.md").read_text(encoding="utf-8")
    for row in rows:
        line = next(line for line in credits.splitlines() if line.startswith(f"| `{row['file_name']}` |"))
        assert row["licence"] in line and row["source_package"].split()[0] in line
    assert "Permission is hereby granted" in credits and "Redistribution and use" in credits


def test_no_real_clip_is_silent_long_or_clipped(real):
    for path in real.glob("*.ogg"):
        clip, rate = soundfile.read(path, dtype="float32")
        about = soundfile.info(path)
        assert (about.format, about.subtype, rate, clip.ndim) == ("OGG", "OPUS", 16000, 1), path.name
        assert path.stat().st_size <= 20_000 and 0.3 < len(clip) / rate < 5, path.name
        frames = clip[: len(clip) // 160 * 160].reshape(-1, 160)
        levels = np.sqrt((frames**2).mean(1))  # of 10 ms
        assert 0.2 < np.abs(clip).max() < 1 and (levels > 0.01).mean() > 0.1, path.name


def test_real_clips_are_an_audiofolder(real):
    rows = load_split(str(real), "test")
    assert len(rows) == 12 and caption_columns(rows) == ["caption"]


def test_json_counts_the_real_clips(tmp_path, capsys):
    assert cli.main(["samples", str(tmp_path / "new"), "--real", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["sounds"] == 12


def test_some_kinds_alone_are_written(tmp_path, capsys):
    kinds = ["rain", "morse code", "rain"]
    assert cli.main(["samples", str(tmp_path / "new"), "--clips_per_kind", "2", "--kinds", *kinds, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert results["kinds"] == ["rain", "morse code"] and results["sounds"]["test"] == 4
    clip = next(row for row in synthetic_dataset("test", 1, kinds=["rain"]))
    assert (tmp_path / "new/test/rain_0.flac").read_bytes() == clip["audio"]["bytes"]


@pytest.mark.parametrize(
    "options, error",
    [
        (["--kinds", "rian"], "no kind of sound 'rian' is made by code; did you mean 'rain'?"),
        (["--kinds", "rain", "--real"], "--kinds is of sounds made by code: leave it or --real out"),
        (["--real", "--clips_per_kind", "2"], "--clips_per_kind is of sounds made by code: leave it or --real out"),
        (["--clips_per_kind", "0", "--real"], "--clips_per_kind is of sounds made by code: leave it or --real out"),
    ],
)
def test_kinds_and_counts_that_do_not_apply_are_refused(options, error, tmp_path, capsys):
    assert cli.main(["samples", str(tmp_path / "new"), *options]) == 2
    assert error in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_an_installation_without_the_clips_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(samples_module, "_REAL", None)
    assert cli.main(["samples", str(tmp_path / "new"), "--real"]) == 2
    assert "install the package again" in capsys.readouterr().err
