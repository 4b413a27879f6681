"""Names from elsewhere: paths of other systems, composed and decomposed letters, bytes that are no UTF-8."""

import csv
import io
import json
import os
import shutil
import sys
import unicodedata
from pathlib import Path

import pyarrow
import pytest
import soundfile

from processing.datasets.audiofolder import load_folder
from processing.datasets.youtube_ids import clip_keys, find_clips
from processing.file_names import existing, same_letters, stays_below
from tests.conftest import RATE, tone
from wavlink.cli import main
from wavlink.search.command import main as search
from wavlink.search.listing import file_of, list_sounds


def write_sound(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        soundfile.write(file, tone(), RATE, format="WAV")


NFC, NFD = (unicodedata.normalize(form, "clé à café.wav") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    "name",
    [
        "/etc/x",
        "../x",
        "a/../../x",
        "C:\\x.wav",
        "c:/x.wav",
        "..\\x.wav",
        "a\\..\\..\\x.wav",
        "\\\\server\\x.wav",
        "a\0",
    ],
)
def test_paths_that_leave_a_folder_are_refused_on_every_system(name, tmp_path):
    assert not stays_below(name) and file_of(str(tmp_path), name) is None
    with open(tmp_path / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file_name", "caption"], [name.replace("\0", "\\\\x"), "a dog"]])
    with pytest.raises(ValueError, match="may lie outside its folder|does not exist"):
        load_folder(tmp_path, "train")


@pytest.mark.parametrize("name", ["C:x.wav", "a.wav:stream", "\\x.wav", "aux.wav", "dogs/NUL", "com1.flac", "con"])
def test_what_windows_takes_for_a_drive_or_a_device(name):
    assert not stays_below(name, windows=True) and stays_below(name, windows=False)


@pytest.mark.parametrize(
    "name", ["a.wav", "dogs/a b.wav", "音.wav", "console.wav", "a..b/..c.wav", "auxiliary/nul1.wav"]
)
def test_what_stays_below(name):
    assert stays_below(name, windows=True) and stays_below(name, windows=False)


@pytest.mark.parametrize(("written", "there"), [(NFC, NFD), (NFD, NFC), (NFC, NFC), (NFD, NFD)])
def test_a_name_is_matched_composed_or_not(written, there, tmp_path):
    write_sound(tmp_path / "sons" / there)
    path = str(tmp_path / "sons" / written)
    assert existing(path) == str(tmp_path / "sons" / there)
    (tmp_path / "metadata.csv").write_text(f"file_name,caption\nsons/{written},une clé\n", encoding="utf-8")
    (row,) = load_folder(tmp_path, "train")
    assert row["audio"]["path"] == str(tmp_path / "sons" / there)
    assert file_of(str(tmp_path), f"sons/{written}") == str(tmp_path / "sons" / there)


def test_folder_and_file_may_differ(tmp_path):
    write_sound(tmp_path / unicodedata.normalize("NFD", "été") / NFC)
    path = str(tmp_path / "été" / NFD)
    assert os.path.isfile(existing(path))
    assert existing(str(tmp_path / "été" / "absent é.wav")) == str(tmp_path / "été" / "absent é.wav")


def test_a_pair_stays_exact(tmp_path):
    for name in (NFC, NFD):
        write_sound(tmp_path / name)
        assert existing(str(tmp_path / name)) == str(tmp_path / name)
    mixed = unicodedata.normalize("NFC", "clé à ") + unicodedata.normalize("NFD", "café.wav")
    assert existing(str(tmp_path / mixed)) == str(tmp_path / mixed)
    assert same_letters(NFC, {NFC, NFD}) == NFC and same_letters(mixed, {NFC, NFD}) is None


def test_captions_and_sounds_of_the_paper_s_data_meet():
    def keys(*names: str) -> pyarrow.Table:
        return clip_keys(pyarrow.array(names, pyarrow.string()))

    assert find_clips(keys("clé", "dog"), keys("dog", unicodedata.normalize("NFD", "clé"))).tolist() == [1, 0]
    pair = keys("clé", unicodedata.normalize("NFD", "clé"))
    assert find_clips(pair, pair).tolist() == [0, 1]
    assert find_clips(keys("clé"), keys("cle")).tolist() == [-1]


@pytest.fixture
def library(tmp_path) -> Path:
    """Sounds, good and bad, by names of every kind, below a folder whose own name is no UTF-8."""
    root = tmp_path / os.fsdecode(b"lib \xff")
    try:
        write_sound(root / os.fsdecode(b"dog \xe9.wav"))
    except OSError:
        pytest.skip("this file system has no such names")
    write_sound(root / "音.wav")
    write_sound(root / NFD)
    (root / os.fsdecode(b"bad \xfe.wav")).write_bytes(b"RIFF nothing")
    return root


@pytest.fixture
def console(monkeypatch):
    """A command's exit code, and what stdout and stderr of an encoding have got."""

    def run(encoding: str, *words) -> tuple[int, str, str]:
        streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["wavlink"])
            for name, stream in streams.items():
                patch.setattr(sys, name, stream)
            code = main([os.fspath(word) for word in words])
        for stream in streams.values():
            stream.flush()
        return code, *(stream.buffer.getvalue().decode(encoding) for stream in streams.values())

    return run


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_names_that_a_console_cannot_write_lose_no_result(library, console, wavlink_folder, tmp_path, encoding):
    out = tmp_path / "index"
    code, made, _ = console(encoding, "index", library, "--model", wavlink_folder, "--out", out, "--json")
    report = json.loads(made)["results"]
    assert code == 0 and report["sounds"] == 3 and [*report["skipped"]] == ["bad \\xfe.wav"]
    good = [path for path in sorted(library.iterdir()) if not path.name.startswith("bad")]
    for words, rows in {
        ("query", out, "a tone"): 3,
        ("info", out): 2,
        ("verify", out): 0,
        ("classify", *good, "--model", wavlink_folder, "--labels", "犬", "cat"): 3,
    }.items():
        code, plain, logged = console(encoding, *words)
        assert code == 0 and plain.count(".wav") == rows and plain, logged
        code, as_json, _ = console(encoding, *words, "--json")
        assert code == 0 and as_json.isascii() and json.loads(as_json)
    code, plain, logged = console(encoding, "where", wavlink_folder, library / "音.wav", "--query", "♪ a tone")
    assert code == 0 and "a tone" in plain, logged
    code, _, logged = console(encoding, "query", out, "a tone", "--by_sound", "音 missing.wav")
    assert code == 2 and "missing.wav" in logged and "Traceback" not in logged


def test_paths_of_an_index_are_named_in_any_form(library, wavlink_folder, tmp_path, capsys):
    search(["index", str(library), "--model", str(wavlink_folder), "--out", str(tmp_path / "index")])
    names = [sound.path for sound in list_sounds([str(library)]).sounds]
    assert {NFD, "dog \\xe9.wav"} <= {*names} and all(os.path.lexists(file_of(str(library), name)) for name in names)
    search(["remove", str(tmp_path / "index"), NFC, os.fsdecode(b"dog \xe9.wav"), "--json"])
    assert json.loads(capsys.readouterr().out.split("\n", 1)[1])["removed"] == [NFD, "dog \\xe9.wav"]
    shutil.rmtree(tmp_path / "index")
