"""The command `wavlink` at work: exit codes, one line for an error, results as tables or JSON."""

import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest
import soundfile
import torch
from transformers import pipeline

from processing.audio import load_audio
from tests.conftest import RATE, tone
from tests.processes import run_process
from tests.project_imports import ROOT
from wavlink import cli, console
from wavlink.classification import classify
from wavlink.embedder import Embedder
from wavlink.evaluation import command as evaluation

EVAL = ["eval", "--model", "m", "--benchmark", "esc50"]
LABELS = ["low_tone", "high tone", "noise"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("files")
    paths = [str(folder / name) for name in ("low.wav", "high.flac", "long.wav")]
    for path, clip in zip(paths, (tone(200, 0.6), tone(2000, 1.1), tone(500, 31.0)), strict=True):
        soundfile.write(path, clip, RATE)
    return paths


def raising(error):
    def run(argv):
        raise error

    return run


@pytest.mark.parametrize(
    "error, code",
    [
        (ValueError("no such\nmodel\x1b[2J"), 2),
        (OSError("the disk is full"), 2),
        (ModuleNotFoundError("No module named 'gradio'", name="gradio"), 2),
        (SystemExit("train.py: said already"), 2),
        (SystemExit(143), 143),
        (SystemExit(None), 0),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error, code, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "run", raising(error))
    assert cli.main(EVAL) == code
    err = capsys.readouterr().err
    assert err.count("\n") == (code == 2) and "\x1b" not in err and "Traceback" not in err


def test_signal_becomes_interrupt_even_if_the_code_raises_another_error(tmp_path, monkeypatch):
    """As where a push removes its temporary folder: the signal comes as `rmtree` has just closed a folder."""
    (tmp_path / "folder/within").mkdir(parents=True)
    close = os.close

    def close_and_stop(handle):
        monkeypatch.setattr(os, "close", close)
        close(handle)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(os, "close", close_and_stop)
    with pytest.raises(KeyboardInterrupt) as stopped, console.signals_as_interrupts():
        shutil.rmtree(tmp_path / "folder", ignore_errors=True)
    assert console.code_of(stopped.value) == 128 + signal.SIGTERM
    with pytest.raises(OSError, match="disk"), console.signals_as_interrupts():
        raise OSError("the disk is full")


def test_a_stop_signal_is_kept_and_a_later_interrupt_raised(capfd, monkeypatch):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.StopSignal("stopping: a moment") as stop:
        assert not stop and stop.number is None
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop and stop.event.is_set() and stop.number == signal.SIGINT
        now[0] += 2
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert capfd.readouterr().err.count("stopping: a moment") == 1


AT_EXIT = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count()))
from wavlink.console import run_command
print(gc.get_freeze_count(), run_command("a", lambda _: 0))
"""


def test_a_command_ends_without_a_search_for_cycles():
    """The collector has nothing to look at then: with torch loaded it takes a second otherwise."""
    done = run_process([sys.executable, "-c", AT_EXIT], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = done.stdout.splitlines()
    assert before == "0 0" and int(after) > 1000


@pytest.mark.parametrize(
    "given, limited",
    [(["info", "missing"], True), (["serve", "missing"], True), (["train", "missing"], False)],
)
def test_kept_memory_is_limited_in_a_process_of_its_own_before_the_work_is_imported(given, limited, monkeypatch):
    """Training limits it otherwise, and a caller's process is left as it is."""
    calls = []
    monkeypatch.setattr(cli, "limit_kept_memory", lambda embedding: calls.append(embedding))
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: calls.append(name) or raising(ValueError)(name))
    assert cli.main(given) == 2 and True not in calls
    calls.clear()
    monkeypatch.setattr(sys, "argv", ["wavlink", *given])
    assert cli.main() == 2 and calls[:-1] == [True] * limited


def test_missing_own_module_is_raised_without_an_install_hint(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "eval", cli.COMMANDS["eval"]._replace(module="modeling_wavlink.nowhere"))
    with pytest.raises(ModuleNotFoundError):
        cli.main(EVAL)


def test_internal_error_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(evaluation, "run", raising(KeyError("fault")))
    with pytest.raises(KeyError):
        cli.main(EVAL)


def test_missing_module_is_named(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "eval", cli.COMMANDS["eval"]._replace(module="a_module_nobody_has"))
    assert cli.main(EVAL) == 2
    assert "wavlink eval: a_module_nobody_has is not installed: pip install" in capsys.readouterr().err


@pytest.mark.parametrize("number", range(2))
def test_a_sound_is_classified_as_by_the_pipeline(number, files, wavlink_folder):
    stock = pipeline("zero-shot-audio-classification", model=str(wavlink_folder), trust_remote_code=True)
    expected = {row["label"]: row["score"] for row in stock(load_audio(files[number]), candidate_labels=LABELS)}
    found = classify(Embedder(str(wavlink_folder)), files[number : number + 1], LABELS, clean_up="none")[0]
    scores = {row["label"]: row["score"] for row in found["labels"]}
    assert scores == pytest.approx(expected, abs=1e-5)
    assert [row["cosine"] for row in found["labels"]] == sorted((r["cosine"] for r in found["labels"]), reverse=True)


def test_prompts_are_averaged_as_vectors_and_dims_cut(files, wavlink_folder):
    embedder = Embedder(str(wavlink_folder))
    dim = embedder.matryoshka_dims[-1]
    found = classify(embedder, files[:1], LABELS, prompts=("a {}", "the sound of {}"), dim=dim)[0]["labels"]
    words = ["low tone", *LABELS[1:]]
    unit = torch.nn.functional.normalize
    said = unit(
        torch.from_numpy(embedder.embed_text([p.format(w) for w in words for p in ("a {}", "the sound of {}")]))[
            :, :dim
        ],
        dim=-1,
    )
    means = unit(said.reshape(len(words), 2, dim).mean(1), dim=-1)
    sound = unit(torch.from_numpy(next(embedder.embed_files(files[:1])))[:dim], dim=-1)
    assert {r["label"]: r["cosine"] for r in found} == pytest.approx(
        dict(zip(LABELS, (means @ sound).tolist(), strict=True)), abs=1e-5
    )


def test_classify_prints_a_table_or_one_json(files, wavlink_folder, tmp_path, capsys):
    broken = tmp_path / "broken\x1b[2J.wav"
    broken.write_bytes(b"no sound")
    given = ["classify", *files, str(broken), "--model", str(wavlink_folder), "--labels", *LABELS]
    assert cli.main(given) == 2
    out = capsys.readouterr().out
    assert out.count(" %  ") == 9 and "cannot read" in out and "\x1b" not in out
    assert cli.main([*given, "--json", "--top_k", "1"]) == 2
    found = json.loads(capsys.readouterr().out)["results"]
    assert [len(row["labels"]) for row in found["sounds"]] == [1, 1, 1, 0] and found["revision"]
    assert "cannot read" in found["sounds"][3]["error"]


def test_classify_lists_folders_like_other_commands(files, wavlink_folder, tmp_path, capsys):
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("a/b/1.wav", "a/.hidden.wav", "a/notes.txt"):
        shutil.copy(files[0], tmp_path / name)
    given = ["classify", str(tmp_path / "a"), files[1], "--model", str(wavlink_folder), "--labels", *LABELS, "--json"]
    assert cli.main(given) == 0
    found = json.loads(capsys.readouterr().out)["results"]["sounds"]
    assert [row["path"] for row in found] == [str(tmp_path / "a/b/1.wav"), files[1]]
    assert cli.main(["classify", str(tmp_path), "--model", str(wavlink_folder), "--labels", *LABELS]) == 0
    (tmp_path / "empty").mkdir()
    given[1] = str(tmp_path / "empty")
    assert cli.main(given) == 2
    captured = capsys.readouterr()
    assert "no sounds in" in json.loads(captured.out[captured.out.index("{") :])["error"]


@pytest.mark.parametrize(
    "options, said",
    [
        (["--labels", "dog"], "two labels or more"),
        (["--labels", "dog", "dog"], "each once"),
        (["--labels", "a_b", "a b"], "both read 'a b': give them different words, or use clean_up='none'"),
        (["--labels", "a", " "], "the label ' ' needs words, got ' ': give it some\n"),
        (["--labels", "a", "b", "--prompt", "a sound"], "where the label goes"),
        (["--labels", "a", "b", "--dim", "7"], "one of the nested dims"),
    ],
)
def test_invalid_classifications_are_refused(options, said, files, wavlink_folder, capsys):
    assert cli.main(["classify", files[0], "--model", str(wavlink_folder), *options]) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("wavlink classify: ")


def test_train_prints_json_of_its_output(monkeypatch, tmp_path, capsys):
    def trains(recipe):
        print("a line of progress")
        return tmp_path

    monkeypatch.setattr("wavlink.training.command.train", trains)
    assert cli.main(["train", "quickstart", "--json"]) == 0
    captured = capsys.readouterr()
    assert (
        json.loads(captured.out)["results"]["best"] == str(tmp_path / "best") and "a line of progress" in captured.err
    )


def test_scores_and_reports_are_one_json(files, wavlink_folder, tmp_path, capsys):
    folder = tmp_path / "sounds" / "test"
    folder.mkdir(parents=True)
    rows = ["file_name,caption,label"]
    for number, hertz in enumerate((300, 900, 2000)):
        soundfile.write(folder / f"{number}.wav", tone(hertz, 0.5), RATE)
        rows.append(f"{number}.wav,a tone of {hertz} hertz,tone {number}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    assert (
        cli.main(
            ["eval", "--model", str(wavlink_folder), "--benchmark", str(folder.parent), "--choices", "0", "--json"]
        )
        == 0
    )
    scores = json.loads(capsys.readouterr().out)["results"]
    assert scores["clips"] == 3 and scores["text_to_audio"]
    assert (
        cli.main(["index", str(folder), "--model", str(wavlink_folder), "--out", str(tmp_path / "index"), "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["results"]["added"] == 3
    assert cli.main(["query", str(tmp_path / "index"), "a tone", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["results"]
    assert len(hits) == 3 and np.isfinite([hit["score"] for hit in hits]).all()
    index, small = str(tmp_path / "index"), str(tmp_path / "small")

    def json_of(*words: str) -> dict:
        assert cli.main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["results"]

    assert json_of("verify", index) == {"files": 3, "windows": 3, "forgotten": [], "without_checksum": 0}
    assert json_of("reindex", index, "--out", small, "--storage", "fp32") == {"index": small, "windows": 3}
    assert json_of("remove", index, "0.wav") == {"removed": ["0.wav"]}
