"""Sound files are recognised by one list of suffixes, by every command and data set."""

import ast
import json
import os

import pytest
import soundfile
from transformers.utils import logging

from processing.datasets.load import label_names, load_split
from processing.datasets.shards import load_stream
from processing.datasets.youtube_ids import index_folder
from processing.sound_files import CONTAINERS, LIBSNDFILE, SUFFIXES, SoundFiles, is_hidden, with_folders_listed
from tests.conftest import RATE, tone
from tests.helpers import ROOT
from tests.tar_streams import sound, write_tar
from wavlink.evaluation.command import main as evaluate
from wavlink.search.listing import list_sounds


@pytest.fixture
def logged(caplog):
    """What the package's loggers say, which do not propagate."""
    logging.get_logger().addHandler(caplog.handler)
    yield caplog
    logging.get_logger().removeHandler(caplog.handler)


def write(root, *names) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, tone(440, 0.1), RATE, format="WAV")
    return str(root)


def taken(dataset, root) -> dict[str, str]:
    """file -> label"""
    return {
        os.path.relpath(row["audio"]["path"], root): label
        for row, label in zip(dataset, label_names(dataset), strict=True)
    }


def test_suffixes_are_lower_case_and_each_once():
    assert len(set(SUFFIXES)) == len(SUFFIXES) and all(s == s.lower() and s.startswith(".") for s in SUFFIXES)
    assert {".wav", ".flac", ".mp3", ".aiff"} <= set(LIBSNDFILE) and {".m4a", ".webm", ".wma", ".mp4"} <= set(
        CONTAINERS
    )


KEPT = {
    "dog/1.WAV": "dog",
    "dog/session 1/far/ü 2.aiff": "dog",
    "cat/3.m4a": "cat",
    "cat/4.opus": "cat",
    "b rain/5.au": "b rain",
}
HIDDEN = [".ipynb_checkpoints/1.wav", "__MACOSX/dog/x.wav", "dog/._1.wav", "dog/.cache/2.wav", "@eaDir/dog/1.wav"]


def test_every_door_takes_the_same_files(tmp_path):
    train = tmp_path / "train"
    write(train, *KEPT, *HIDDEN)
    assert taken(load_split(str(tmp_path), "train"), train) == KEPT
    assert {s.path for s in list_sounds([str(train)]).sounds} == set(KEPT)
    assert {os.path.relpath(path, train) for path in index_folder(train)["path"].to_pylist()} == set(KEPT)
    assert {os.path.relpath(path, train) for path in with_folders_listed([train])} == set(KEPT)


def test_the_label_is_the_first_folder_below_the_split_also_without_splits(tmp_path):
    write(tmp_path, *KEPT, *HIDDEN)
    assert taken(load_split(str(tmp_path), "train"), tmp_path) == KEPT


@pytest.mark.parametrize("name", ["a.mid", "b.pcm", "no suffix"])
def test_what_looks_like_sound_and_is_not_taken_is_counted_and_named(name, tmp_path, logged):
    write(tmp_path, "train/dog/1.wav", f"train/dog/{name}")
    (tmp_path / "train/dog/README").write_text("no sound")
    assert len(load_split(str(tmp_path), "train")) == 1
    assert "1 files that look like sound are left out" in logged.text and f"dog/{name} (it" in logged.text
    logged.clear()
    assert len(list_sounds([str(tmp_path)]).sounds) == 1
    assert f"dog/{name} (it" in logged.text and "README" not in logged.text


def test_loose_sounds_beside_classes_are_counted_and_named(tmp_path, logged):
    write(tmp_path, "train/dog/1.wav", "train/cat/1.wav", "train/2.wav", "train/3.wav")
    assert len(load_split(str(tmp_path), "train")) == 2
    assert "2 sounds in" in logged.text and "lie in no folder of a class and are left out" in logged.text
    assert "train/2.wav" in logged.text
    with pytest.raises(ValueError, match="1 sounds lie in no folder of a class: .*x/train/1.wav"):
        load_split(write(tmp_path / "x", "train/1.wav"), "train")


def test_sounds_in_no_row_of_the_metadata_are_counted_and_named(tmp_path, logged):
    write(tmp_path, "train/1.wav", "train/2.wav", "train/deep/3.wav", "train/.4.wav")
    (tmp_path / "train/metadata.csv").write_text("file_name,caption\n1.wav,a dog\n")
    assert load_split(str(tmp_path), "train")["caption"] == ["a dog"]
    assert (
        "2 sounds in" in logged.text and "are in no row of metadata.csv" in logged.text and "deep/3.wav" in logged.text
    )


def test_links_to_folders_are_followed_and_loops_end(tmp_path, logged):
    write(tmp_path, "train/dog/1.wav", "elsewhere/2.wav")
    (tmp_path / "train/cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train/dog/loop").symlink_to(tmp_path / "train")
    (tmp_path / "train/dog/itself").symlink_to(tmp_path / "train/dog/itself")
    assert taken(load_split(str(tmp_path), "train"), tmp_path / "train") == {"dog/1.wav": "dog", "cat/2.wav": "cat"}
    assert "1 links lead to folders that are listed by another name" in logged.text and "dog/loop" in logged.text


def test_a_folder_that_is_two_classes_is_said(tmp_path, logged):
    write(tmp_path, "train/dog/1.wav")
    (tmp_path / "train/puppy").symlink_to(tmp_path / "train/dog")
    assert taken(load_split(str(tmp_path), "train"), tmp_path / "train") == {"dog/1.wav": "dog"}
    assert "1 links lead to" in logged.text and "puppy" in logged.text


def test_pipes_are_not_opened_and_names_that_are_no_text_are_said(tmp_path, logged):
    write(tmp_path, "train/dog/1.wav")
    os.mkfifo(tmp_path / "train/dog/pipe")
    with open(os.path.join(os.fsencode(tmp_path), b"train/dog/caf\xe9.wav"), "wb") as file:
        file.write(sound(1))
    assert len(load_split(str(tmp_path), "train")) == len(index_folder(tmp_path)) == 1
    assert logged.text.count("1 sounds have names that are not UTF-8 and are left out") == 2


def test_folders_that_cannot_be_listed_are_said(tmp_path, logged, monkeypatch):
    write(tmp_path, "train/dog/1.wav", "train/cat/1.wav")
    real = os.scandir

    def scandir(folder):
        if str(folder).endswith("cat"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert len(load_split(str(tmp_path), "train")) == 1
    assert "1 folders cannot be listed" in logged.text and "train/cat (Permission denied)" in logged.text


@pytest.mark.parametrize("name", [".x", "._1.wav", "__MACOSX", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN", "@eaDir"])
def test_hidden_names(name):
    assert is_hidden(name) and not is_hidden("x" + name)


def test_a_walk_of_a_file_or_of_nothing_lists_nothing(tmp_path):
    files = SoundFiles(tmp_path / "gone")
    assert not list(files) and "gone (No such file" in files.warning()


def test_tars_take_the_same_suffixes_and_leave_hidden_names_out(tmp_path):
    files = {"__MACOSX/a.wav": sound(9), ".git/b.wav": sound(9), "c.m4a": b"x", "c.json": b'{"caption": "1"}'}
    files |= {"d.AIFF": b"y", "d.txt": b"2", "e.mp4": b"video", "e.wav": sound(3), "e.txt": b"3"}
    write_tar(tmp_path / "train.tar", files)
    rows = {row["__key__"]: row["audio"]["path"] for row in load_stream(str(tmp_path), "train")}
    assert rows == {"c": "c.m4a", "d": "d.aiff", "e": "e.wav"}  # of two sounds the one that needs no PyAV


def test_classify_takes_folders(wavlink_folder, tmp_path, capsys):
    from wavlink.classification import main

    write(tmp_path / "sounds", "b/2.wav", "a.wav", ".hidden.wav")
    given = ["--model", str(wavlink_folder), "--labels", "dog", "cat", "--json"]
    assert main([str(tmp_path / "sounds"), *given]) == 0
    paths = [row["path"] for row in json.loads(capsys.readouterr().out)["sounds"]]
    assert [os.path.relpath(path, tmp_path / "sounds") for path in paths] == ["a.wav", "b/2.wav"]
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="no sounds in .*bare: no file ends in .wav, .flac"):
        main([str(tmp_path / "bare"), *given])


def test_loose_files_and_one_folder_are_no_score(wavlink_folder, tmp_path):
    write(tmp_path, "1.wav", "2.wav", "other/3.wav")
    with pytest.raises(ValueError, match="nothing to score: .*no captions; 'other' is the only label"):
        evaluate(["--model", str(wavlink_folder), "--benchmark", str(tmp_path)])


def lists_of_suffixes(code: str) -> list[int]:
    """Lines of collections in which .wav and three more suffixes of sound files are items, with or without a dot."""
    lines = []
    for node in ast.walk(ast.parse(code)):
        items = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        texts = {item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)}
        dotted = {text if text.startswith(".") else f".{text}" for text in texts}
        if ".wav" in dotted and len(dotted & {*SUFFIXES}) >= 4:
            lines.append(node.lineno)
    return lines


def test_no_other_module_lists_the_suffixes_of_sound_files():
    assert lists_of_suffixes('X = {".wav", ".flac", ".ogg", ".mp3"}') and not lists_of_suffixes('X = (".wav", "wav")')
    paths = [path for name in ("processing", "wavlink", "hub_cards") for path in (ROOT / name).rglob("*.py")]
    assert len(paths) > 80 and not [path for path in paths if lists_of_suffixes(path.read_text(encoding="utf-8"))]
