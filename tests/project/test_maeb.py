"""benchmarks/maeb.py: tasks of every class on an audiofolder, mteb's results, resuming, and what cannot be run."""

import argparse
import json
from pathlib import Path

import pytest
import soundfile

from tests.conftest import RATE, WORDS, tone
from tests.mteb_tasks import file, pointed, surroundings  # noqa: F401
from wavlink.embedder import Embedder

mteb = pytest.importorskip("mteb", reason="mteb, of the extras maeb and dev, is not installed")
from mteb.models.model_implementations import MODEL_REGISTRY  # noqa: E402

from benchmarks import maeb, maeb_sounds, records  # noqa: E402

pytestmark = pytest.mark.usefixtures("surroundings")
LABELS = {"dog": "animal", "cat": "animal", "bell": "thing", "rain": "thing"}
FIRST, SECOND = "SoundsA2ARetrieval", "SoundsGroupClassification"


@pytest.fixture(autouse=True)
def registry():
    kept = dict(MODEL_REGISTRY)
    yield
    MODEL_REGISTRY.clear()
    MODEL_REGISTRY.update(kept)


@pytest.fixture
def sounds(tmp_path) -> Path:
    """Of each label six clips in each split, every second one with a caption of its label alone."""
    for split in ("train", "test"):
        (tmp_path / "sounds" / split).mkdir(parents=True)
        lines = ["file_name,label,group,caption,caption_2"]
        for number in range(6 * len(LABELS)):
            label = [*LABELS][number % len(LABELS)]
            hertz = 200 * 2 ** (number % len(LABELS)) * (1 + 0.01 * number)
            clip = tone(hertz, 0.2 + 0.01 * number, number + (split == "test"))
            soundfile.write(tmp_path / "sounds" / split / f"{number}.wav", clip, RATE)
            words = f"the {label} {WORDS[number % 7]} {WORDS[7 + number % 9]}"
            lines.append(f"{number}.wav,{label},{LABELS[label]},{words},{'' if number % 2 else f'A {label}'}")
        (tmp_path / "sounds" / split / "metadata.csv").write_text("\n".join(lines))
    return tmp_path / "sounds"


@pytest.fixture
def folder(sharp_model, processor, tmp_path) -> Path:
    sharp_model.save_pretrained(tmp_path / "tiny")
    processor.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def embedded(monkeypatch) -> list:
    """The number of times that sounds are embedded."""
    calls, embed = [], Embedder.embed_files
    monkeypatch.setattr(Embedder, "embed_files", lambda self, files: calls.append(1) or embed(self, files))
    return calls


def run(*words) -> int:
    return maeb.main([str(word) for word in words])


@pytest.mark.slow
def test_tasks_of_every_class_on_an_audiofolder(folder, sounds, tmp_path, capsys, embedded):
    record, output = tmp_path / "maeb_local.json", tmp_path / "out"
    assert run(folder, "--name", "me/tiny", "--sounds", sounds, "--output", output, "--record", record) == 0
    printed, values = capsys.readouterr().out, records.read(record)["values"]
    kinds = {row[1] for row in values["tasks"]["rows"]}
    assert kinds == {task.metadata.type for task in mteb.get_benchmark(maeb.BENCHMARK).tasks}
    (results,) = (output / "results/me__tiny").iterdir()
    names = {row[0] for row in values["tasks"]["rows"]}
    assert {path.stem for path in results.glob("*.json")} == {"model_meta", *names} and len(names) == 11
    meta = json.loads((results / "model_meta.json").read_text())
    assert meta["name"] == "me/tiny" and meta["revision"] == results.name
    assert meta["loader_kwargs"] == {"long_clips": "windows"} and str(tmp_path) not in json.dumps(meta)
    assert all(f"| {name} |" in printed for name in names)
    assert len(values["agreement"]["rows"]) == 7
    for _, theirs, ours in values["agreement"]["rows"]:
        assert theirs["value"] == pytest.approx(ours["value"], abs=1e-3)
    assert any(0 < ours["value"] < 100 for _, _, ours in values["agreement"]["rows"])
    assert "11 of 11 tasks have a score, 0 of them from an earlier run" in printed
    embedded.clear()
    assert run(folder, "--name", "me/tiny", "--sounds", sounds, "--output", output) == 0
    assert "11 of 11 tasks have a score, 11 of them from an earlier run" in capsys.readouterr().out
    assert not embedded


def test_a_killed_run_goes_on(folder, sounds, tmp_path, capsys, embedded, monkeypatch):
    words = [folder, "--sounds", sounds, "--tasks", FIRST, SECOND, "--output", tmp_path / "out"]
    embed = Embedder.embed_files

    def killed(self, files):
        if len(embedded) == 2:
            raise KeyboardInterrupt
        return embed(self, files)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Embedder, "embed_files", killed)
        run(*words)
    embedded.clear()
    assert run(*words) == 0 and len(embedded) == 2  # training and test of the second; the first is there
    assert "2 of 2 tasks have a score, 1 of them from an earlier run" in capsys.readouterr().out
    (path,) = (tmp_path / "out/results").glob(f"*/*/{FIRST}.json")
    whole = json.loads(path.read_text())
    path.write_text(path.read_text()[:100])  # killed while mteb wrote it
    assert run(*words) == 0 and json.loads(path.read_text())["scores"] == whole["scores"]
    assert "2 of 2 tasks have a score, 1 of them from an earlier run" in capsys.readouterr().out
    soundfile.write(sounds / "test/0.wav", tone(5000, 0.2), RATE)
    assert run(*words) == 0  # other data
    assert "2 of 2 tasks have a score, 0 of them from an earlier run" in capsys.readouterr().out


def test_options_that_change_vectors_have_results_of_their_own(folder, sounds, tmp_path, capsys):
    words = [folder, "--sounds", sounds, "--tasks", SECOND, "--output", tmp_path / "out"]
    assert [run(*words), run(*words, "--dim", 8), run(*words, "--long_clips", "first")] == [0, 0, 0]
    assert capsys.readouterr().out.count("1 of 1 tasks have a score, 0 of them from an earlier run") == 3
    found = {path.parent.name for path in (tmp_path / "out").rglob(f"{SECOND}.json")}
    assert {"embed_dim_8", "long_clips_first"} < found and len(found) == 3


def test_a_task_that_cannot_be_loaded_is_named_and_the_others_run(folder, tmp_path, capsys, monkeypatch):
    rows = [{"audio": file(tone(200 + 30 * i, 0.2, i)), "label": i % 2} for i in range(20)]
    tasks = [pointed(name, tmp_path / name, default={"test": rows}) for name in ("VehicleSoundClustering",)]
    lost = mteb.get_task("CREMADPairClassification")
    lost.metadata = lost.metadata.model_copy(update={"dataset": {"path": str(tmp_path / "none"), "revision": "main"}})
    monkeypatch.setattr(maeb, "chosen", lambda options: [lost, *tasks])
    record = tmp_path / "maeb_lost.json"
    assert run(folder, "--output", tmp_path / "out", "--record", record) == 1
    printed = capsys.readouterr().out
    assert (
        "1 of 2 tasks have a score" in printed
        and "| VehicleSoundClustering | AudioClustering | v_measure |" in printed
    )
    assert "no score: CREMADPairClassification (FileNotFoundError: " in printed
    assert records.read(record)["note"].endswith("No score: CREMADPairClassification.")


def test_tasks_are_those_of_the_benchmark_or_named():
    def parse(**given):
        return argparse.Namespace(**{"sounds": "", "benchmark": maeb.BENCHMARK, "tasks": None, **given})

    assert len(maeb.chosen(parse())) == 30
    assert len(maeb.chosen(parse(benchmark="MAEB(v1, audio-only)"))) == 19
    named = maeb.chosen(parse(tasks=["FSD2019Kaggle", "ESC50_Zeroshot"]))
    assert [task.metadata.name for task in named] == ["FSD2019Kaggle", "ESC50_Zeroshot"]
    assert named[0].hf_subsets == ["curated"]  # as the benchmark has it
    for given in ({"tasks": ["BeijingOpra"]}, {"benchmark": "MAEB(v9)"}):
        with pytest.raises(ValueError, match=next(iter(given.values()))[0].strip("[]")[:4]):
            maeb.chosen(parse(**given))


def test_a_folder_without_labels_or_groups_is_refused(sounds, folder, capsys):
    for split in ("train", "test"):
        table = sounds / split / "metadata.csv"
        table.write_text(table.read_text().replace(",label,", ",kind,"))
    with pytest.raises(ValueError, match="has no column label"):
        maeb_sounds.sound_tasks(str(sounds))
    with pytest.raises(SystemExit):
        run(folder, "--sounds", sounds)
    assert "has no column label: add it to test/metadata.csv" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(folder, "--sounds", sounds / "none")
    assert "none is no folder: name one with the splits" in capsys.readouterr().err
