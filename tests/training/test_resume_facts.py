"""A run is resumed only with the processes, data and vocabulary that it was started with."""

import json
import os
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
import soundfile

import train
from processing.datasets import fingerprints
from processing.datasets.fingerprints import rows_digest
from tests.conftest import RATE, tone
from tests.processes import run_process
from wavlink.evaluation.embed_split import fingerprint
from wavlink.training import loop

ROOT = Path(__file__).parents[2]
SMALL = ["--label_prompt", "", "--batch_size", "3", "--save_steps", "1", "--num_workers", "0"]
SMALL += ["--mixed_precision", "no"]


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / "data" / split).mkdir(parents=True)
        write(tmp_path / "data" / split, 6)
    return tmp_path / "data"


def write(split, clips: int, words: str = "a tone") -> None:
    lines = ["file_name,caption"]
    for i in range(clips):
        soundfile.write(split / f"{i}.wav", tone(150 * (1 + i), 0.2 + 0.05 * i, i), RATE)
        lines.append(f"{i}.wav,{words} number {i}")
    (split / "metadata.csv").write_text("\n".join(lines))


@pytest.fixture
def begin(folder, tmp_path, monkeypatch):
    """Trains for two steps; called again, goes on to the third."""
    for name in ("draw_loss", "draw_recall", "draw_similarities"):
        monkeypatch.setattr(f"wavlink.training.log.{name}", lambda *_: None)
    recipe = train.parse_recipe(
        ["quickstart", "--data", str(folder), "--output_dir", str(tmp_path / "run"), *SMALL, "--max_steps", "3"]
    )
    learn = train.Run.learn

    def killed(self, *arguments):
        if self.step == 2:
            raise KeyboardInterrupt
        return learn(self, *arguments)

    monkeypatch.setattr(train.Run, "learn", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe)
    monkeypatch.setattr(train.Run, "learn", learn)
    return lambda: train.train(recipe)


def change_state(tmp_path, change) -> None:
    for path in (tmp_path / "run/checkpoints").glob("step-*/place.json"):
        state = json.loads(path.read_text())
        change(state)
        path.write_text(json.dumps(state))


def test_an_unchanged_run_goes_on(begin):
    begin()


def test_a_checkpoint_of_an_older_version_goes_on(begin, tmp_path):
    change_state(tmp_path, lambda state: state.pop("facts"))
    begin()


@pytest.mark.parametrize("older", [False, True])
def test_another_number_of_processes_is_refused(begin, tmp_path, older):
    def change(state):
        state["feeds"] = [{}, {}]
        state["facts"]["processes"] = 2
        if older:
            del state["facts"]

    change_state(tmp_path, change)
    with pytest.raises(ValueError, match="processes: 2, now 1.*--output_dir"):
        begin()


@pytest.mark.slow
def test_a_checkpoint_that_two_processes_wrote_is_refused_by_one(folder, tmp_path, monkeypatch):
    """They really run, over gloo."""
    for name in ("draw_loss", "draw_recall", "draw_similarities"):
        monkeypatch.setattr(f"wavlink.training.log.{name}", lambda *_: None)
    options = ["quickstart", "--data", str(folder), "--output_dir", str(tmp_path / "run"), *SMALL]
    two = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu_2.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    run = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 240}
    done = run_process([*two, "train.py", *options, "--max_steps", "1"], **run)
    assert done.returncode == 0, done.stderr[-3000:]
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    written = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.is_file()}
    assert len(json.loads(written["place.json"])["feeds"]) == 2 and "random_states_1.pkl" in written
    with pytest.raises(ValueError, match="processes: 2, now 1.*--output_dir"):
        train.train(train.parse_recipe([*options, "--max_steps", "1"]))
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.is_file()} == written


def test_data_that_has_grown_is_refused(begin, folder):
    write(folder / "train", 7)
    with pytest.raises(ValueError, match="clips: 6, now 7; captions and sounds: .*--output_dir"):
        begin()


def test_a_changed_vocabulary_is_refused(begin, folder):
    write(folder / "train", 6, "a tune")
    with pytest.raises(ValueError, match="captions and sounds: .*vocabulary"):
        begin()


def test_a_changed_duration_is_refused(begin, folder):
    soundfile.write(folder / "train/0.wav", tone(150, 0.4), RATE)
    with pytest.raises(ValueError, match="changed .captions and sounds: [^;]*:"):
        begin()


def test_a_changed_validation_split_is_refused(begin, folder):
    write(folder / "validation", 5)
    with pytest.raises(ValueError, match="validation clips: 6, now 5"):
        begin()


def replace(path, number: int) -> None:
    """Another sound of the same name, size, duration and time of change."""
    before, samples = path.stat(), len(soundfile.read(path)[0])
    soundfile.write(path, tone(150 * number, samples / RATE, number), RATE)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_sound_in_place_of_another_is_refused(begin, folder, split):
    replace(folder / split / "3.wav", 40)
    with pytest.raises(ValueError, match="changed .*captions and sounds: [^;]*: start the same command.*--output_dir"):
        begin()


@pytest.mark.parametrize("stored", ["bytes", "path", "path alone"])
def test_a_digest_of_rows_is_of_their_sounds(stored, tmp_path):
    def rows() -> datasets.Dataset:
        files = [str(tmp_path / f"{number}.wav") for number in range(3)]
        if stored == "path alone":
            return datasets.Dataset.from_dict({"audio": files, "caption": list("abc")})
        contents = [Path(file).read_bytes() if stored == "bytes" else None for file in files]
        audio = [{"bytes": content, "path": file} for content, file in zip(contents, files, strict=True)]
        features = datasets.Features({"audio": datasets.Audio(decode=False), "caption": datasets.Value("string")})
        return datasets.Dataset.from_dict({"audio": audio, "caption": list("abc")}).cast(features)

    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", tone(150 * (1 + number), 0.5, number), RATE)
    before = rows_digest(rows(), ["caption"])
    assert before == rows_digest(rows(), ["caption"])
    os.utime(tmp_path / "1.wav", (0, 0))
    assert before == rows_digest(rows(), ["caption"])
    for number in range(3):
        content = (tmp_path / f"{number}.wav").read_bytes()
        replace(tmp_path / f"{number}.wav", 40)
        assert before != rows_digest(rows(), ["caption"])
        (tmp_path / f"{number}.wav").write_bytes(content)
    assert before == rows_digest(rows(), ["caption"])


@pytest.mark.parametrize("size", [0, 1, 1000, 1024, 1025, 3000, 4096, 4097, 10_000])
def test_pieces_reach_from_the_beginning_of_a_sound_to_its_end(size, tmp_path):
    content = np.random.default_rng(0).bytes(size)
    (tmp_path / "x").write_bytes(content)
    pieces = fingerprints._pieces_of_file(str(tmp_path / "x"))
    assert pieces == fingerprints._pieces_of_bytes(pyarrow.py_buffer(content)) and len(pieces) <= 4096
    assert pieces[:1024] == content[:1024] and pieces[-1024:] == content[-1024:]
    if size <= 4096:
        assert all(content[at : at + 1] in pieces for at in range(size))
        covered = {at + offset for at in fingerprints._starts(size) for offset in range(1024)}
        assert covered >= set(range(size))


def test_pieces_are_read_of_a_bounded_number_of_sounds(monkeypatch):
    audio = [{"bytes": bytes([number]), "path": None} for number in range(23)]
    rows = datasets.Dataset.from_dict({"audio": audio, "caption": ["a"] * 23})
    rows = datasets.concatenate_datasets([rows.select(range(9)), rows.select(range(9, 23))])
    monkeypatch.setattr(fingerprints, "_MOST_SOUNDS", 8)
    read = [reader() for reader in fingerprints._readers(rows.data.column("audio"))]
    assert read == [bytes([number]) for number in range(0, 23, 3)]


def test_a_moved_data_set_has_the_same_digest(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "moved")
    load = loop.load_source
    recipe = train.parse_recipe(["quickstart"])
    one, other = (load(recipe, str(path), "train") for path in (folder, tmp_path / "moved"))
    assert rows_digest(one, ["caption"], [1.0]) == rows_digest(other, ["caption"], [1.0])
    assert rows_digest(one, ["caption"], [1.0]) != rows_digest(one, ["caption"], [1.001])


def test_a_digest_of_rows_does_not_depend_on_how_they_are_chunked():
    audio = [{"bytes": bytes(i), "path": None} for i in range(5)]
    rows = datasets.Dataset.from_dict({"audio": audio, "caption": list("abcde")})
    joined = datasets.concatenate_datasets([rows.select(range(2)), rows.select(range(2, 5))])
    assert rows_digest(rows, ["caption"]) == rows_digest(joined, ["caption"])


@pytest.mark.parametrize("stored", ["bytes", "path"])
def test_a_fingerprint_of_sounds_is_of_their_content(stored, tmp_path):
    """Two sounds of one name and size are not one."""
    results = []
    for seed in range(2):
        noise = np.random.default_rng(seed).uniform(-0.5, 0.5, 1600)
        soundfile.write(tmp_path / "x.wav", noise, RATE)
        content = (tmp_path / "x.wav").read_bytes() if stored == "bytes" else None
        audio = {"bytes": content, "path": "x.wav" if content else str(tmp_path / "x.wav")}
        rows = [{"audio": audio, "caption": "a sound"}]
        results += [fingerprint(rows), fingerprint(rows)]
    assert results[0] == results[1] != results[2] == results[3]
