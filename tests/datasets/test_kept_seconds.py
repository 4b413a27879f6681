"""Seconds of many files are kept on disk by path, size and time of change."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import huggingface_hub
import numpy as np
import pytest
import soundfile

from processing.datasets import youtube_ids as clip_files
from processing.datasets.youtube_ids import seconds_of
from tests.conftest import RATE, tone


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Ten files, enough to be kept, and a cache of their own."""
    monkeypatch.setattr(clip_files, "KEPT_FROM", 5)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    paths = [tmp_path / f"sounds/{number % 2}/{number}.wav" for number in range(10)]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone(440, 0.1 + 0.1 * number), RATE)
    return list(map(str, paths))


@pytest.fixture
def opened(monkeypatch):
    """The files that are opened."""
    paths, real = [], clip_files.seconds_in
    monkeypatch.setattr(clip_files, "seconds_in", lambda path: paths.append(path) or real(path))
    return paths


def kept(tmp_path) -> list:
    return sorted((tmp_path / "home/wavlink/durations").glob("*.arrow*"))


def test_a_file_is_opened_once(files, opened, tmp_path):
    expected = pytest.approx([0.1 + 0.1 * number for number in range(10)], abs=1e-4)
    assert seconds_of(files).tolist() == expected and sorted(opened) == sorted(files)
    opened.clear()
    assert seconds_of(files).tolist() == expected and not opened
    assert seconds_of(files[::-1]).tolist()[::-1] == expected and not opened
    assert {path.suffix for path in kept(tmp_path)} <= {".arrow", ".lock"} and len(kept(tmp_path)) <= 2


def test_new_and_changed_files_are_opened_and_the_others_kept(files, opened):
    seconds_of(files)
    opened.clear()
    soundfile.write(files[3], tone(440, 2.0), RATE)
    new = files[0].replace("0.wav", "new.wav")
    soundfile.write(new, tone(440, 3.0), RATE)
    found = seconds_of([*files[:5], new])
    assert sorted(opened) == sorted([files[3], new]) and found[[3, 5]].tolist() == pytest.approx([2.0, 3.0])
    opened.clear()
    assert not np.isnan(seconds_of([*files, new])).any() and not opened
    os.utime(files[0], (1, 1))
    seconds_of(files)
    assert opened == [files[0]]


def test_what_cannot_be_read_is_looked_at_again(files, opened):
    with open(files[2], "w") as file:
        file.write("no sound")
    os.remove(files[4])
    assert np.isnan(seconds_of(files)[[2, 4]]).all()
    opened.clear()
    seconds_of(files)
    assert sorted(opened) == sorted([files[2], files[4]])


def test_a_file_listed_twice_and_few_files(files, opened):
    assert len(seconds_of([*files, *files])) == 20
    opened.clear()
    assert len(seconds_of(files[:3])) == 3 and len(opened) == 3  # too few to be kept


@pytest.mark.parametrize("content", [b"", b"ARROW1", os.urandom(500)])
def test_a_damaged_table_is_written_anew(files, opened, tmp_path, content):
    seconds_of(files)
    kept(tmp_path)[0].write_bytes(content)
    opened.clear()
    assert not np.isnan(seconds_of(files)).any() and len(opened) == 10
    opened.clear()
    seconds_of(files)
    assert not opened


def test_without_a_cache_folder_durations_are_read_each_time(files, opened, tmp_path):
    (tmp_path / "home").write_text("no folder")
    assert not np.isnan(seconds_of(files)).any() and not np.isnan(seconds_of(files)).any() and len(opened) == 20


def _counted(paths: list[str], home: str) -> int:
    counted, real = [], clip_files.seconds_in
    clip_files.seconds_in = lambda path: counted.append(path) or real(path)
    clip_files.KEPT_FROM, huggingface_hub.constants.HF_HOME = 5, home
    assert not np.isnan(seconds_of(paths)).any()
    return len(counted)


def test_of_several_processes_one_opens_each_file(files, tmp_path):
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        counts = list(pool.map(_counted, [files] * 3, [str(tmp_path / "home")] * 3))
    assert sum(counts) == 10
