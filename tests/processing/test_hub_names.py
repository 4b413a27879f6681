"""Names that are neither a folder nor on the Hub are refused at once, with the nearest name there is."""

import json
import os
import sys
from pathlib import Path

import pytest

from processing import hub_names
from processing.hub_names import near_folder, needs_cache
from tests.processes import run_process

ROOT = Path(__file__).parents[2]
UNREACHABLE = "http://127.0.0.1:9"  # where nothing listens

# One process for all, since huggingface_hub reads its settings when it is imported. Its client waits between
# its tries: a loader that asks the Hub again is seen by that.
CODE = """
import contextlib, io, json, sys, time
waited, told = [], {}
time.sleep = waited.append
from wavlink.cli import main
for name, words in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stderr(io.StringIO()) as stderr, contextlib.redirect_stdout(stderr):
        code = main(words)
    told[name] = code, stderr.getvalue().splitlines()[-1]
print(json.dumps([told, waited]))
"""
COMMANDS = {
    "classify": "classify a.wav --model {name} --labels a b",
    "where": "where {name} a.wav --query a",
    "export": "export {name} out",
    "push": "push {name} user/x --dry_run --output_dir out",
    "eval": "eval --model {name} --benchmark synthetic",
    "eval, data": "eval --model {model} --benchmark {name}",
    "train, init": "train quickstart --init {name} --output_dir out",
    "train, tower": "train sounds --data synthetic --audio_model {name} --output_dir out",
    "train, data": "train quickstart --data {name} --output_dir out",
    "index": "index a.wav --model {name} --out out",
    "index, data": "index {name} --model {model} --out out",
    "space": "space --model {name} --check",
}


@pytest.mark.slow
def test_a_mistyped_name_is_refused_without_retries_by_every_command(wavlink_folder, tmp_path):
    (tmp_path / "runs/best").mkdir(parents=True)
    (tmp_path / "a.wav").touch()
    words = {name: line.format(name="runs/bset", model=wavlink_folder).split() for name, line in COMMANDS.items()}
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": UNREACHABLE, "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", CODE, json.dumps(words)]
    done = run_process(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    told, waited = json.loads(done.stdout.splitlines()[-1])
    assert not waited
    for name, (code, line) in told.items():
        assert code == 2 and line.startswith(f"wavlink {name.partition(',')[0]}: "), name
        if "is not installed" not in line:
            assert "'runs/bset' is neither a folder here nor available on the Hub" in line, name
            assert "did you mean the folder runs/best?" in line, name


def test_the_nearest_folder_is_the_one_that_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "runs/mine/best").mkdir(parents=True)
    (tmp_path / "runs/mine/best/config.json").touch()
    (tmp_path / "runs/other").mkdir()
    monkeypatch.chdir(tmp_path)
    assert near_folder("runs/mien") == "; did you mean the folder runs/mine/best?"
    assert near_folder("runs/othr") == "; did you mean the folder runs/other?"
    assert near_folder("rums/mine") == "; did you mean the folder runs/mine/best?"
    assert near_folder("owner/something-else") == near_folder("laion/clap-htsat-unfused") == ""


@pytest.mark.parametrize("source", ["a/b/c", "runs/my best", "~/model", "/no/folder"])
def test_an_invalid_hub_id_makes_no_request(source, monkeypatch):
    monkeypatch.setattr(hub_names, "get_hf_file_metadata", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(ValueError, match="neither a folder here nor a Hub id, which is owner/name"):
        needs_cache(source)


def test_what_is_in_the_cache_is_taken_from_it_where_the_hub_does_not_answer(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(hub_names, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub_names, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(hub_names, "try_to_load_from_cache", lambda *_, **__: "/cache/config.json")
    assert needs_cache("owner/name")
    monkeypatch.setattr(hub_names, "try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(ValueError, match="which does not answer .ConnectionError: no route"):
        needs_cache("owner/name")


def test_a_folder_makes_no_request(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_names, "get_hf_file_metadata", lambda *_, **__: pytest.fail("asked the Hub"))
    assert not needs_cache(str(tmp_path))
