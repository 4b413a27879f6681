"""Index sounds and search them: results, resuming after a kill, changed files, and errors."""

import json
import os
import re
import shlex
import shutil
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from processing.audio import load_audio
from tests import searches
from tests.conftest import RATE
from tests.helpers import LOCK_HELD_BY_THE_DEAD
from tests.index_files import data_files, stray_files
from tests.processes import run_process
from tests.searches import SECONDS, assert_same_rows, index, rows, write
from wavlink.cli import build_parser
from wavlink.defaults import STORAGES
from wavlink.embedder import Embedder
from wavlink.search import build as indexing
from wavlink.search import command as search
from wavlink.search.index import Index
from wavlink.search.repair import verified
from wavlink.search.table import Table

ROOT = Path(__file__).parents[2]

models, embedder, sounds = searches.models, searches.embedder, searches.sounds


def state(out) -> dict[str, tuple[int, bytes]]:
    """When each file of the index was written, and with what."""
    files = (path for path in out.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# --- results


def test_scores_are_cosines_of_the_models_own_vectors(sounds, tmp_path, embedder):
    """Against vectors that no part of the index has touched."""
    index(sounds, tmp_path / "index", embedder, storage="fp32", dim=32)
    opened = Index.open(tmp_path / "index", embedder)
    clips = {name: load_audio(sounds / name) for name in SECONDS}
    starts = {"rain.wav": (0, 5, 10, 15), "cat.ogg": (0, 2.5)}
    cut = {
        (name, start): clip[round(start * RATE) :][: 10 * RATE]
        for name, clip in clips.items()
        for start in starts.get(name, (0,))
    }
    vectors = dict(zip(cut, embedder.embed_clips(cut.values()), strict=True))
    query = embedder.embed_text(["a dog barks"])[0]
    expected = {key: float(vector @ query) for key, vector in vectors.items()}

    hits = opened.query("a dog barks", windows=True, top_k=50)
    assert {(hit.path, hit.start): hit.score for hit in hits} == pytest.approx(expected, abs=1e-5)
    assert [hit.score for hit in hits] == sorted([hit.score for hit in hits], reverse=True)
    ends = {(hit.path, hit.start): hit.end for hit in hits}
    assert ends["rain.wav", 15.0] == 25.0 and ends["cat.ogg", 2.5] == 12.5 and ends["bell.flac", 0.0] == 3.0

    best = opened.query("a dog barks", top_k=50)
    assert len(best) == len(SECONDS)
    for hit in best:
        windows = {key: score for key, score in expected.items() if key[0] == hit.path}
        assert hit.score == pytest.approx(max(windows.values()), abs=1e-5)
    assert [hit.path for hit in opened.query("a dog barks", top_k=2)] == [hit.path for hit in best[:2]]


def test_query_by_sound_by_both_and_without(sounds, tmp_path, embedder):
    index(sounds, tmp_path / "index", embedder, storage="fp32", dim=32)
    opened = Index.open(tmp_path / "index", embedder)
    for name in ("dog/far.wav", "bell.flac"):
        hit = opened.query(sound=sounds / name, top_k=1)[0]
        assert hit.path == name and hit.score == pytest.approx(1, abs=1e-5)

    def unit(vector):
        return vector / np.linalg.norm(vector)

    rain = load_audio(sounds / "rain.wav")
    rain = unit(sum(embedder.embed_clips(rain[start:][: 10 * RATE] for start in range(0, 15 * RATE + 1, 5 * RATE))))
    bell, far = embedder.embed_files([sounds / "bell.flac", sounds / "dog/far.wav"])
    text, other = embedder.embed_text(["rain falls", "a cat"])
    by_bell = {"sound": sounds / "bell.flac"}
    cases = [
        ({"sound": [sounds / "rain.wav"]}, rain),
        (by_bell | {"text": "rain falls"}, unit(text + bell)),
        ({"text": "rain falls", "without": "a cat"}, unit(text - 0.5 * other)),
        (by_bell | {"without_sound": [sounds / "dog/far.wav"], "weight": 2.0}, unit(bell - 2 * far)),
        (by_bell | {"without_sound": [sounds / "dog/far.wav"], "weight": 1e300}, -far),
        (
            {"text": ["rain falls", "a cat"], "without_sound": sounds / "rain.wav"},
            unit(unit(text + other) - 0.5 * rain),
        ),
    ]
    for query, direction in cases:
        hit = next(hit for hit in opened.query(**query, top_k=9) if hit.path == "dog/far.wav")
        assert hit.score == pytest.approx(float(direction @ far), abs=1e-5)


@pytest.mark.parametrize("storage", STORAGES)
def test_every_storage_and_nested_dim_finds_a_sound_by_itself(sounds, tmp_path, embedder, storage):
    index(sounds, tmp_path / "index", embedder, storage=storage)
    for dim in (32, 16):
        opened = Index.open(tmp_path / "index", embedder, dim=dim)
        hit = opened.query(sound=sounds / "bell.flac", top_k=1)[0]
        assert hit.path == "bell.flac" and hit.score > 0.7
    with pytest.raises(ValueError, match="dim=64: the index can be searched at 8, 16, 32"):
        Index.open(tmp_path / "index", dim=64)


def test_many_windows_of_one_file_do_not_hide_the_others(tmp_path, embedder):
    """The 40 windows of the long one are all nearer than any other sound."""
    write(tmp_path / "sounds/long.wav", 0, 40.0)
    for number in range(1, 4):
        write(tmp_path / f"sounds/{number}.wav", 3 * number, 1.0)
    index(tmp_path / "sounds", tmp_path / "index", embedder, window=1.0, hop=1.0)
    opened = Index.open(tmp_path / "index", embedder)
    hits = opened.query(sound=tmp_path / "sounds/long.wav", top_k=3)
    assert len({hit.path for hit in hits}) == 3 and hits[0].path == "long.wav"
    assert {hit.path for hit in opened.query(sound=tmp_path / "sounds/long.wav", top_k=5, windows=True)} == {
        "long.wav"
    }


# --- changes


def test_added_changed_and_removed_files(sounds, tmp_path, embedder):
    out = tmp_path / "index"
    first = index(sounds, out, embedder)
    assert (first.added, first.sounds, first.windows, first.skipped) == (5, 5, 9, {})
    before = rows(out)
    write(sounds / "new.wav", 7)
    write(sounds / "bell.flac", 8, 4.0)
    shutil.rmtree(sounds / "dog")
    report = index(sounds, out)
    assert (report.added, report.changed, report.removed, report.unchanged) == (1, 1, 2, 2)
    index(sounds, tmp_path / "anew", embedder)
    assert_same_rows(out, tmp_path / "anew")
    kept = [key for key in before if key[0] in ("rain.wav", "cat.ogg")]
    assert all((rows(out)[key] == before[key]).all() for key in kept)
    untouched = state(out)
    assert index(sounds, out).unchanged == 4  # and no model is loaded
    assert state(out) == untouched and stray_files(out) == []


def test_what_another_process_has_just_added_is_not_removed(sounds, tmp_path, embedder, monkeypatch):
    """It adds a new file while this one waits for the lock."""
    out, real = tmp_path / "index", Table.writing
    index(sounds, out, embedder)

    def writing(self):
        monkeypatch.setattr(Table, "writing", real)
        write(sounds / "new.wav", 7)
        assert index(sounds, out, embedder).added == 1
        return real(self)

    monkeypatch.setattr(Table, "writing", writing)
    report = index(sounds, out, embedder)
    assert (report.added, report.changed, report.removed, report.unchanged) == (0, 0, 0, 6)


def test_a_second_source_adds_to_the_first(sounds, tmp_path, embedder):
    index(sounds / "dog", tmp_path / "index", embedder, root=str(sounds))
    assert {path for path, _, _ in rows(tmp_path / "index")} == {"dog/far.wav", "dog/near.wav"}
    report = index(sounds / "bell.flac", tmp_path / "index", embedder)
    assert (report.added, report.removed, report.sounds) == (1, 0, 3)
    (sounds / "dog/far.wav").unlink()
    assert index(sounds / "bell.flac", tmp_path / "index").removed == 0  # that folder was not listed
    assert index(sounds, tmp_path / "index", embedder).removed == 1


def test_broken_files_are_reported_and_not_retried(sounds, tmp_path, embedder):
    (sounds / "empty.wav").touch()
    (sounds / "text.mp3").write_text("no sound" * 100)
    soundfile.write(sounds / "nan.wav", np.full(100, np.nan, np.float32), RATE, subtype="FLOAT")
    report = index(sounds, tmp_path / "index", embedder)
    assert report.added == 5 and set(report.skipped) == {"empty.wav", "text.mp3", "nan.wav"}
    assert report.skipped["empty.wav"] == "it holds no bytes" and "nan.wav holds NaN" in report.skipped["nan.wav"]
    assert str(tmp_path) not in str(report.skipped)  # an index can be published
    again = index(sounds, tmp_path / "index")
    assert again.skipped == report.skipped and again.unchanged == 5
    write(sounds / "text.wav", 3)
    (sounds / "text.wav").rename(sounds / "text.mp3")
    mended = index(sounds, tmp_path / "index", embedder)
    assert set(mended.skipped) == {"empty.wav", "nan.wav"} and mended.sounds == 6 and mended.changed == 1
    retried = index(sounds, tmp_path / "index", embedder, retry=True)
    assert set(retried.skipped) == {"empty.wav", "nan.wav"} and retried.sounds == 6
    assert (retried.added, retried.changed, retried.unchanged) == (0, 0, 6)  # skipped again
    write(sounds / "bell.flac", 1)
    (sounds / "bell.flac").write_bytes(b"")
    broken = index(sounds, tmp_path / "index", embedder)
    assert (broken.changed, broken.sounds) == (1, 5) and set(broken.skipped) == {"bell.flac", "empty.wav", "nan.wav"}


def test_file_without_read_permission_is_indexed_once_it_is_readable(sounds, tmp_path, embedder, monkeypatch):
    real = os.access
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: "bell" not in str(path) and real(path, mode))
        assert index(sounds, tmp_path / "index", embedder).skipped == {"bell.flac": "there is no right to read it"}
    report = index(sounds, tmp_path / "index", embedder)
    assert report.skipped == {} and report.sounds == 5


def test_unlistable_folder_is_reported_and_keeps_its_sounds(sounds, tmp_path, embedder, monkeypatch):
    index(sounds, tmp_path / "index", embedder)
    real = os.scandir

    def scandir(folder="."):
        if str(folder).endswith("/dog"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    report = index(sounds, tmp_path / "index")
    assert report.skipped == {"dog/": "Permission denied"} and (report.removed, report.sounds) == (0, 5)


def test_file_with_a_nan_vector_is_skipped(sounds, tmp_path, embedder, monkeypatch):
    """Also if windows of that file are in the index already."""
    real = embedder.embed_clips

    def embed_clips(clips):
        for number, vector in enumerate(real(clips)):
            yield vector * np.nan if number == 7 else vector  # the third of rain.wav

    monkeypatch.setattr(embedder, "embed_clips", embed_clips)
    report = index(sounds, tmp_path / "index", embedder, commit_seconds=0)
    assert list(report.skipped) == ["rain.wav"] and "not finite, from 10 s on" in report.skipped["rain.wav"]
    assert report.sounds == 4 and len(rows(tmp_path / "index")) == 5


def test_results_mark_missing_and_changed_files(sounds, tmp_path, embedder):
    index(sounds, tmp_path / "index", embedder)
    (sounds / "bell.flac").unlink()
    write(sounds / "dog/far.wav", 9)
    hits = {hit.path: hit for hit in Index.open(tmp_path / "index", embedder).query("a dog barks")}
    assert {path for path, hit in hits.items() if hit.missing} == {"bell.flac"}
    assert {path for path, hit in hits.items() if hit.changed} == {"dog/far.wav"}
    assert hits["rain.wav"].file == str(sounds / "rain.wav")


def test_sounds_that_have_moved(sounds, tmp_path, embedder):
    index(sounds, tmp_path / "index", embedder)
    sounds.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="does not exist"):
        index(sounds, tmp_path / "index")
    with pytest.raises(ValueError, match="is not below"):
        index(tmp_path / "moved", tmp_path / "index")
    report = index(tmp_path / "moved", tmp_path / "index", root=str(tmp_path / "moved"))
    assert report.unchanged == 5 and report.removed == 0
    assert not any(hit.missing for hit in Index.open(tmp_path / "index", embedder).query("a dog"))


# --- resuming

DRIVER = """
import os, random, signal, sys, time, torch
from wavlink.embedder import Embedder
from wavlink.search.build import index_sounds
model, sounds, unbroken, rounds = sys.argv[1:]
torch.set_num_threads(1)
embedder, rng, kills, ended = Embedder(model), random.Random(0), 0, 0

def start(out):
    child = os.fork()
    if not child:
        index_sounds(sounds, out, embedder, commit_seconds=0, progress=False)
        os._exit(0)
    return child

begun = time.monotonic()
assert os.waitpid(start(unbroken), 0)[1] == 0
seconds = time.monotonic() - begun
while True:
    child = start(f"{rounds}/{ended}")
    if kills < 12:
        time.sleep(rng.uniform(0, seconds / 2))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        kills += 1
        continue
    assert status == 0, status
    if kills == 12:
        break
    ended += 1
"""


@pytest.mark.slow
def test_resume_after_random_sigkills_equals_an_unbroken_run(sounds, tmp_path, models):
    """Twelve SIGKILLs at random moments, in as many rounds as they take; of long files, the windows before it stay."""
    for number in range(12):
        write(sounds / f"{number}.wav", number, 1.0 + 11 * (number % 3))
    (sounds / "empty.wav").touch()
    unbroken, rounds = tmp_path / "unbroken", tmp_path / "rounds"
    command = [sys.executable, "-c", DRIVER, str(models["model"]), str(sounds), str(unbroken), str(rounds)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = run_process(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for folder in rounds.iterdir():
        assert_same_rows(folder, unbroken)
        assert verified(folder)[1] == {} and stray_files(folder) == []


def stop_after(embedder, number: int, monkeypatch) -> tuple[threading.Event, list]:
    """An event that is set once so many windows are embedded, and the vectors of all."""
    stop, seen, real = threading.Event(), [], embedder.embed_clips

    def embed_clips(clips):
        for vector in real(clips):
            seen.append(vector)
            if len(seen) == number:
                stop.set()
            yield vector

    monkeypatch.setattr(embedder, "embed_clips", embed_clips)
    return stop, seen


def test_stop_within_a_file_keeps_its_windows(tmp_path, embedder, monkeypatch):
    write(tmp_path / "sounds/long.wav", 0, 60.0)
    stop, seen = stop_after(embedder, 4, monkeypatch)
    report = index(tmp_path / "sounds", tmp_path / "index", embedder, stop=stop)
    assert report.stopped and report.windows == 4
    stop.clear()
    report = index(tmp_path / "sounds", tmp_path / "index", embedder, stop=stop)
    assert len(seen) == report.windows == 11 and not report.stopped
    index(tmp_path / "sounds", tmp_path / "unbroken", embedder)
    assert_same_rows(tmp_path / "index", tmp_path / "unbroken")


def test_stop_among_unreadable_files(tmp_path, embedder, monkeypatch):
    for number in range(9):
        write(tmp_path / f"sounds/{number}.wav", number)
        (tmp_path / f"sounds/{number}.wav").write_bytes(b"RIFF and no more")
    stop, read, real = threading.Event(), [], indexing.stream_windows

    def stream_windows(*arguments):
        read.append(arguments)
        if len(read) == 3:
            stop.set()
        return real(*arguments)

    monkeypatch.setattr(indexing, "stream_windows", stream_windows)
    report = index(tmp_path / "sounds", tmp_path / "index", embedder, stop=stop)
    assert report.stopped and len(read) == 3 and len(report.skipped) == 3


STOPPED_BESIDE_A_DEAD_PROCESS = f"""{LOCK_HELD_BY_THE_DEAD}
import signal, sys
from transformers.utils import logging
from modeling_wavlink import search
from wavlink.embedder import Embedder
logging.disable_progress_bar()  # as the command does
real = Embedder.embed_clips
def embed_clips(self, clips):
    for vector in real(self, clips):
        signal.raise_signal(signal.SIGTERM)
        yield vector
Embedder.embed_clips = embed_clips
sys.exit(search.main(["index", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_index_runs_and_stops_although_a_dead_process_holds_tqdms_lock(sounds, tmp_path, models):
    options = ["--model", models["model"], "--out", tmp_path / "index"]
    command = [sys.executable, "-c", STOPPED_BESIDE_A_DEAD_PROCESS, sounds, *options]
    done = run_process(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 143 and "stopped; 1 added" in done.stdout, done.stderr[-2000:]
    assert "stopping: writing what is embedded" in done.stderr


def test_a_lost_part_of_a_long_file_is_embedded_again(tmp_path, embedder, monkeypatch):
    write(tmp_path / "sounds/long.wav", 0, 60.0)
    stop, _ = stop_after(embedder, 4, monkeypatch)
    index(tmp_path / "sounds", tmp_path / "index", embedder, commit_seconds=0, stop=stop)
    monkeypatch.undo()
    index(tmp_path / "sounds", tmp_path / "unbroken", embedder)
    assert len(data_files(tmp_path / "index")) == 4
    for number, anew in ((1, True), (3, False)):
        out = tmp_path / str(number)
        shutil.copytree(tmp_path / "index", out)
        data_files(out)[number].write_bytes(b"")
        verified(out, drop=True)
        report = index(tmp_path / "sounds", out, embedder)
        assert (report.changed, report.windows) == (anew, 11)
        assert_same_rows(out, tmp_path / "unbroken")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_what_is_embedded_and_ends(sounds, tmp_path, models, monkeypatch, capsys, number, code):
    real = Embedder.embed_clips

    def embed_clips(self, clips):
        for count, vector in enumerate(real(self, clips)):
            if count == 2:
                for _ in range(2):  # as `timeout` sends it: to the process and to its group
                    signal.raise_signal(number)
            yield vector

    monkeypatch.setattr(Embedder, "embed_clips", embed_clips)
    before = signal.getsignal(number)
    command = ["index", str(sounds), "--model", str(models["model"]), "--out", str(tmp_path / "index")]
    assert search.main(command) == code
    assert signal.getsignal(number) is before
    assert "stopped; 2 added" in capsys.readouterr().out
    assert len(rows(tmp_path / "index")) == 3


# --- errors


def test_another_model_or_other_options_are_refused_and_the_index_is_unharmed(sounds, tmp_path, models, embedder):
    out = tmp_path / "index"
    shutil.copytree(models["model"], tmp_path / "model")
    index(sounds, out, str(tmp_path / "model"))
    before = state(out)
    other = Embedder(str(models["other"]))
    both = f"made by .*model at {embedder.revision}, but .* is at {other.revision}"
    write(sounds / "new.wav", 7)
    with pytest.raises(ValueError, match=both):
        index(sounds, out, str(models["other"]))
    with pytest.raises(ValueError, match=both):
        Index.open(out, str(models["other"])).query("a dog")
    for name in os.listdir(models["other"]):
        shutil.copy(models["other"] / name, tmp_path / "model")  # other weights under the same name
    with pytest.raises(ValueError, match=both):
        Index.open(out).query("a dog")
    with pytest.raises(ValueError, match=both):
        index(sounds, out)
    for options, message in (
        ({"dim": 16}, "the index has dim=32, not 16"),
        ({"storage": "fp32"}, "the index has storage=fp16, not fp32"),
        ({"window": 5.0}, r"the index has window=10\.0, not 5\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            index(sounds, out, embedder, **options)
    assert state(out) == before
    assert Index.open(out, str(models["model"])).query("a dog", top_k=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 12}, "dim=12 is none of the model's nested dims: 8, 16, 32"),
        ({"storage": "int4"}, "no storage 'int4'"),
        ({"window": 31.0}, "a window of 31 s is more than the model's 30 s"),
        ({"window": 0.0}, "give a window over 0 s"),
        ({"hop": 11.0}, "give a window over 0 s, and a hop"),
    ],
)
def test_invalid_options_create_no_folder(sounds, tmp_path, embedder, options, message):
    with pytest.raises(ValueError, match=message):
        index(sounds, tmp_path / "index", embedder, **options)
    assert not (tmp_path / "index").exists()


def test_empty_folder_creates_nothing_and_removes_nothing(sounds, tmp_path, embedder, no_bundle):
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="no sounds in"):
        index(tmp_path / "bare", tmp_path / "index", embedder)
    with pytest.raises(ValueError, match="the bundled model .* is missing: install the package again"):
        index(sounds, tmp_path / "index")
    assert not (tmp_path / "index").exists()
    index(sounds, tmp_path / "index", embedder)
    shutil.rmtree(sounds)
    sounds.mkdir()  # as a disk that is not mounted
    with pytest.raises(ValueError, match="no sounds in"):
        index(sounds, tmp_path / "index")
    assert len(rows(tmp_path / "index")) == 9


@pytest.mark.slow
def test_100_000_empty_files_are_reported_in_seconds(tmp_path, embedder):
    """And a second time none is looked into."""
    for folder in range(100):
        (tmp_path / f"sounds/{folder}").mkdir(parents=True)
        for number in range(1000):
            os.close(os.open(tmp_path / f"sounds/{folder}/{number}.wav", os.O_CREAT | os.O_WRONLY))
    for _ in range(2):
        with pytest.raises(
            ValueError, match="none of 100000 sounds can be read; the first, 0/0.wav: it holds no bytes"
        ):
            index(tmp_path / "sounds", tmp_path / "index", embedder)
    table = Table.open(tmp_path / "index")
    assert table.windows() == 0 and table.bytes() < 2e6
    with pytest.raises(ValueError, match="the index holds no sounds yet"):
        Index.open(tmp_path / "index", embedder).query("a dog")
    write(tmp_path / "sounds/one.wav", 1)
    assert index(tmp_path / "sounds", tmp_path / "index", embedder).sounds == 1


def test_invalid_queries_are_refused(sounds, tmp_path, embedder):
    index(sounds, tmp_path / "index", embedder)
    opened = Index.open(tmp_path / "index", embedder)
    for query, message in (
        ({}, "say what to find"),
        ({"without": "rain"}, "say what to find"),
        ({"text": " "}, "a text to search by is empty"),
        ({"text": "rain", "top_k": 0}, "top_k must be 1 or more"),
        ({"text": "rain", "weight": -1.0}, "must be 0 or more"),
        ({"text": "rain", "without": "dog", "weight": float("inf")}, "must be 0 or more, and finite"),
        ({"text": "rain", "without": "rain", "weight": 1.0}, "cancel out"),
        ({"sound": sounds / "none.wav"}, "does not exist"),
        ({"sound": "none.wav"}, "^none.wav does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            opened.query(**query)
    assert len(opened.query("rain", top_k=1000)) == 5


def test_damaged_file_is_named_by_query_and_repaired_by_verify(sounds, tmp_path, models, capsys):
    out = str(tmp_path / "index")
    search.main(["index", str(sounds), "--model", str(models["model"]), "--out", out])
    shutil.copytree(out, tmp_path / "whole")
    path = data_files(tmp_path / "index")[0]
    os.truncate(path, path.stat().st_size - 100)
    for command in (["query", out, "a dog"], ["verify", out], ["info", out], ["index", str(sounds), "--out", out]):
        with pytest.raises(ValueError, match=f"{path.name} is damaged.*verify INDEX --drop"):
            search.main(command)
    search.main(["verify", out, "--drop"])
    assert f"forgotten: data/{path.name}" in capsys.readouterr().out
    search.main(["index", str(sounds), "--out", out])
    assert_same_rows(out, tmp_path / "whole")
    search.main(["verify", out])
    assert "9 windows are as they were written" in capsys.readouterr().out


def replace_files(folder, name: str) -> None:
    """As another process that removes a sound and compacts what is left: no file of the version before stays."""
    with Table.open(folder).writing() as other:
        other.remove([name])
        other.dataset.optimize.compact_files()
        other.refresh()


def test_open_while_another_process_writes(sounds, tmp_path, embedder, monkeypatch):
    index(sounds, tmp_path / "index", embedder)
    real, left = Table.damaged, [1]

    def damaged(self):
        if left and left.pop():
            replace_files(tmp_path / "index", "bell.flac")
        return real(self)

    monkeypatch.setattr(Table, "damaged", damaged)
    assert len(Index.open(tmp_path / "index", embedder)) == 8


def test_query_while_another_process_writes(sounds, tmp_path, embedder, monkeypatch):
    """Within the query, the files that it is about to read are removed."""
    index(sounds, tmp_path / "index", embedder)
    opened, left, real = Index.open(tmp_path / "index", embedder), ["bell.flac", "cat.ogg"], Table.scan
    opened.query("rain", top_k=1)

    def scan(self, *arguments, **options):
        if left:
            replace_files(tmp_path / "index", left.pop())
        yield from real(self, *arguments, **options)

    monkeypatch.setattr(Table, "scan", scan)
    assert {hit.path for hit in opened.query("rain")} == {*SECONDS} - {"bell.flac", "cat.ogg"} and not left


def test_an_open_index_sees_what_other_processes_change(sounds, tmp_path, embedder):
    index(sounds, tmp_path / "index", embedder)
    opened = Index.open(tmp_path / "index", embedder)
    assert {hit.path for hit in opened.query("rain")} == {*SECONDS} and len(opened) == 9
    write(sounds / "new.wav", 7)
    index(sounds, tmp_path / "index", embedder)
    assert {hit.path for hit in opened.query("rain")} == {*SECONDS, "new.wav"} and len(opened) == 10
    replace_files(tmp_path / "index", "rain.wav")
    assert {hit.path for hit in opened.query("rain")} == {*SECONDS, "new.wav"} - {"rain.wav"} and len(opened) == 6
    shutil.rmtree(tmp_path / "index")
    shutil.rmtree(sounds / "dog")
    index(sounds, tmp_path / "index", embedder)  # anew, in the same place
    assert {hit.path for hit in opened.query("rain")} == {"bell.flac", "rain.wav", "cat.ogg", "new.wav"}
    assert len(opened) == 8
    shutil.rmtree(tmp_path / "index")
    with pytest.raises(ValueError, match=str(tmp_path / "index")):
        opened.query("rain")


def test_an_open_index_never_compares_vectors_of_two_models(sounds, tmp_path, models, embedder):
    index(sounds, tmp_path / "index", embedder)
    opened = Index.open(tmp_path / "index", embedder)
    assert opened.query("rain")
    shutil.rmtree(tmp_path / "index")
    index(sounds, tmp_path / "index", str(models["other"]))
    with pytest.raises(ValueError, match="another model|made by"):
        opened.query("rain")
    with pytest.raises(ValueError, match="another model|made by"):
        opened.query("rain")


def test_rows_of_another_model_are_refused_and_dropped(sounds, tmp_path, embedder):
    """As those of two programs that write to object storage at once."""
    index(sounds, tmp_path / "index", embedder)
    with Table.open(tmp_path / "index").writing() as table:
        table.dataset.update({"revision": "'another'"}, where="path = 'bell.flac'")
    with pytest.raises(ValueError, match="holds vectors of several models.*verify .* --drop"):
        Index.open(tmp_path / "index", embedder).query("rain")
    with pytest.raises(ValueError, match="holds vectors of several models.*verify .* --drop"):
        verified(tmp_path / "index")
    assert verified(tmp_path / "index", drop=True)[1] == {"rows of other models": ["bell.flac"]}
    assert len(Index.open(tmp_path / "index", embedder).query("rain")) == 4
    assert index(sounds, tmp_path / "index", embedder).added == 1


# --- the command


def test_the_command(sounds, tmp_path, models, capsys):
    (sounds / "empty\x1b[31m.wav").touch()
    out = str(tmp_path / "index")
    assert search.main(["index", str(sounds), "--model", str(models["model"]), "--out", out]) == 0
    captured = capsys.readouterr()
    assert "5 added, 0 changed, 0 removed" in captured.out and "5 sounds in 9 windows, 1 skipped" in captured.out
    assert "skipped empty\\x1b[31m.wav: it holds no bytes" in captured.err and "5/5" in captured.err  # the bar

    search.main(["query", out, "a dog barks", "--top_k", "3", "--json"])
    results = json.loads(capsys.readouterr().out)
    assert [set(hit) for hit in results] == [{"path", "score", "start", "end", "file", "duration"}] * 3
    assert [hit["duration"] for hit in results] == [SECONDS[hit["path"]] for hit in results]
    search.main(["query", out, "a dog barks", "--top_k", "3"])
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in table] == [hit["path"] for hit in results]
    by_sound = ["--by_sound", str(sounds / "bell.flac"), "--without", "rain"]
    search.main(["query", out, *by_sound, "a dog", "--json", "--dim", "16"])
    assert len(json.loads(capsys.readouterr().out)) == 5

    search.main(["remove", out, "dog", "rain.wav"])
    search.main(["info", out, "--json"])
    facts = json.loads(capsys.readouterr().out.split("adds them again\n")[1])
    assert (facts["sounds"], facts["windows"]) == (2, 3)
    assert facts["skipped"] == {"empty\x1b[31m.wav": "it holds no bytes"}
    assert facts["model"] == str(models["model"]) and (facts["dim"], facts["storage"]) == (32, "fp16")
    search.main(["info", out])
    shown = capsys.readouterr().out
    facts = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert "\x1b" not in shown and "rescore_dim" not in facts and facts["dim"] in facts["matryoshka_dims"].split(", ")
    with pytest.raises(ValueError, match="^device='foo' cannot be used here"):
        search.main(["query", out, "rain", "--device", "foo"])
    with pytest.raises(ValueError, match=r"the index has no dog: paths are relative to .*sounds"):
        search.main(["remove", out, "dog"])
    with pytest.raises(SystemExit):
        search.main(["query", out, "rain", "--unknown", "x"])
    assert "--unknown" in capsys.readouterr().err


@pytest.mark.slow
def test_an_error_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "wavlink", "query", str(tmp_path / "none"), "rain"]
    done = run_process(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("wavlink query: ") and "is no index" in line


@pytest.mark.parametrize("module", ["command", "map", "ray"])
def test_documented_commands_can_be_parsed(module):
    """Those of the docstrings, and of the card that a push writes."""
    text = (ROOT / f"wavlink/search/{module}.py").read_text(encoding="utf-8")
    commands = re.findall("^ *wavlink (.*)$", text, re.MULTILINE)
    assert commands and "python -m" not in text
    for command in commands:
        build_parser().parse_args(shlex.split(command))


def test_the_command_line_is_frozen():
    """What users have typed goes on to work: take nothing from here."""
    frozen = {
        "index": "--out --model --device --dtype --dim --storage --window --hop --root --split --retry "
        "--commit_seconds --rescore_dim --metadata --tags --watch --migrate --backend --precision "
        "--storage_options --json",
        "query": "--model --device --dtype --dim --by_sound --without --without_sound --weight --top_k --windows "
        "--where --exact --min_probability --prior --backend --precision --json --like --playlist "
        "--storage_options",
        "duplicates": "--min_score --any_duration --storage_options --json",
        "info": "--json --storage_options",
        "verify": "--drop --json --storage_options",
        "remove": "--json --storage_options",
        "reindex": "--out --dim --storage --json --rescore_dim --storage_options",
        "push": "--private --json --storage_options",
        "pull": "--out --model --root --revision --json",
    }
    (commands,) = (action for action in search._parser()._actions if action.choices)
    results = {
        name: {option for action in command._actions for option in action.option_strings} - {"-h", "--help"}
        for name, command in commands.choices.items()
    }
    assert results == {name: set(options.split()) for name, options in frozen.items()}


def test_index_build_keeps_vectors_to_rescore_by(sounds, tmp_path, embedder):
    options = {"dim": 8, "rescore_dim": 32, "progress": False}
    index = Index.build(sounds, tmp_path / "index", embedder, **options)
    assert (index.manifest.dim, index.manifest.rescore_dim) == (8, 32)
    full = Index.build(sounds, tmp_path / "full", embedder, dim=32, progress=False)
    found, expected = (each.query(sound=sounds / "bell.flac", top_k=5) for each in (index, full))
    assert [hit.path for hit in found] == [hit.path for hit in expected]
    np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in expected], atol=1e-6)
