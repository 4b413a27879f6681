"""`--backend` and `--precision` of the commands, and what they say where a model has no such export."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from huggingface_hub import constants

import wavlink
from tests.clap_models import save_clap
from tests.conftest import RATE, tone
from wavlink import cli, defaults
from wavlink.backends import choice
from wavlink.compat_argparse import actions_of
from wavlink.embedder import Embedder, embedder_for
from wavlink.search.map import draw_map
from wavlink.search.ray import embed_with_ray

COMMANDS = ("classify", "eval", "index", "query", "map", "where", "space", "ray")
EXPORT = "wavlink export MODEL --backend {} --precision int8 --calibration DATA"


@pytest.fixture
def sounds(tmp_path) -> Path:
    folder = tmp_path / "sounds"
    folder.mkdir()
    for name, hertz in (("low", 200), ("bell", 900)):
        soundfile.write(folder / f"{name}.wav", tone(hertz, 1.0), RATE)
    return folder


@pytest.fixture
def index(tiny_bundle, sounds, tmp_path) -> Path:
    assert cli.main(["index", str(sounds), "--out", str(tmp_path / "index")]) == 0
    return tmp_path / "index"


def commands(index: Path, sounds: Path) -> dict[str, list[str]]:
    low = str(sounds / "low.wav")
    return {
        "classify": ["classify", low, "--labels", "a", "b"],
        "query": ["query", str(index), "a bell"],
        "map": ["map", str(index), "--out", str(index.parent / "map.html"), "--labels_from_text", "a", "b"],
        "where": ["where", low, "--query", "a bell"],
        "space": ["space", "--check"],
        "ray": ["ray", str(sounds), "--out", str(index.parent / "rows")],
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_are_the_same_everywhere(name):
    options = {action.dest: action for action in actions_of(cli.build_parser().commands[name])}
    assert tuple(options["backend"].choices) == defaults.BACKENDS
    assert tuple(options["precision"].choices) == defaults.PRECISIONS
    assert options["backend"].default is None and options["precision"].default is None


@pytest.mark.parametrize("function", [wavlink.locate, draw_map, embed_with_ray, wavlink.Embedder, wavlink.Index.open])
def test_the_functions_take_both(function):
    parameters = inspect.signature(function).parameters
    assert parameters["backend"].default is None and parameters["precision"].default is None


@pytest.mark.parametrize("name", commands(Path("i"), Path("s")))
@pytest.mark.parametrize("backend", ["", "openvino", "onnx"])
def test_a_missing_export_is_named_with_the_command_that_makes_it(
    name, backend, index, sounds, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(choice, "installed", lambda backend: True)
    argv = [*commands(index, sounds)[name], "--precision", "int8", *(["--backend", backend] if backend else [])]
    capsys.readouterr()
    assert cli.main(argv) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "wavlink-tiny carries no int8 export" in line and EXPORT.format(backend or "openvino") in line
    assert "this machine does not have" not in line
    assert not (tmp_path / "map.html").exists() and not list(tmp_path.glob("rows/*.parquet"))


def test_an_own_folder_is_named_in_the_command(wavlink_folder, sounds, capsys):
    argv = ["where", str(wavlink_folder), str(sounds / "low.wav"), "--query", "a bell", "--precision", "int8"]
    assert cli.main(argv) == 2
    assert f"`{EXPORT.format('openvino')}`, where MODEL is {wavlink_folder}\n" in capsys.readouterr().err


def test_an_index_whose_model_is_missing_still_says_so(wavlink_folder, sounds, tmp_path, capsys):
    out = str(tmp_path / "index")
    assert cli.main(["index", str(sounds), "--out", out, "--model", str(wavlink_folder)]) == 0
    wavlink_folder.rename(tmp_path / "moved")
    capsys.readouterr()
    assert cli.main(["query", out, "a bell", "--precision", "int8"]) == 2
    assert "which this machine does not have" in capsys.readouterr().err


def test_a_model_that_is_not_exported_is_refused(sounds, tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "installed", lambda backend: True)
    save_clap(tmp_path / "clap", fusion=False)
    with pytest.raises(ValueError, match="only a WavLink is exported"):
        wavlink.locate(str(tmp_path / "clap"), sounds / "low.wav", "a bell", backend="openvino")
    with pytest.raises(ValueError, match="runs on the CPU: leave device='cuda' out"):
        embed_with_ray(str(sounds), str(tmp_path / "clap"), tmp_path / "rows", device="cuda", backend="openvino")


def test_an_embedder_keeps_its_own_backend(tiny_bundle):
    embedder = wavlink.Embedder()
    for given in ({"backend": "torch"}, {"precision": "fp32"}):
        with pytest.raises(ValueError, match="own processor, device, dtype, backend and precision"):
            embedder_for(embedder, **given)
    assert embedder_for(embedder) is embedder
    assert embedder_for(None, backend="torch", precision="fp32").backend == "torch"


def test_a_device_that_torch_has_not_is_refused(tiny_bundle, sounds, capsys):
    for device in ("foo", "meta", "cpu:x"):
        assert cli.main(["classify", str(sounds / "low.wav"), "--labels", "a", "b", "--device", device]) == 2
        assert f"device={device!r} cannot be used here" in capsys.readouterr().err
    with pytest.raises(ValueError, match="device='None' cannot be used here"):
        Embedder(tiny_bundle, device=None)


@pytest.mark.slow
def test_spans_in_openvino_are_those_of_torch(tiny_bundle, sounds, tmp_path, monkeypatch, capsys):
    pytest.importorskip("openvino")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    found = []
    for backend in ("torch", "openvino"):
        argv = ["where", str(sounds / "low.wav"), "--query", "a bell", "--json", "--min_score", "-1"]
        capsys.readouterr()
        assert cli.main([*argv, "--window", "0.5", "--backend", backend]) == 0
        found.append(json.loads(capsys.readouterr().out)["results"]["queries"][0]["spans"])
    (first, *_), (second, *_) = found
    assert (first["start"], first["end"]) == (second["start"], second["end"])
    np.testing.assert_allclose(first["score"], second["score"], atol=1e-4)
