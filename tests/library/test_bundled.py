"""Models that come with the package, by their bare names; a tiny stand-in in a models folder of the tests."""

import copy
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModel, pipeline

import wavlink
from hub_cards.space.app import run as run_space
from tests.bundled_folders import write_bundle
from tests.conftest import RATE, tone
from tests.processes import run_process
from wavlink import Embedder, Index, bundled_models, cli
from wavlink.config_file import own_folder
from wavlink.loading import load_for_evaluation
from wavlink.search.index_model import portable

ROOT = Path(__file__).parents[2]
LABELS = ["a low sound", "a high sound"]


@pytest.fixture
def sounds(tmp_path) -> Path:
    """A folder of three captioned tones."""
    (tmp_path / "sounds").mkdir()
    lines = ["file_name,caption", *(f"{name}.wav,a {name} sound" for name in ("low", "bell", "rain"))]
    (tmp_path / "sounds/metadata.csv").write_text("\n".join(lines))
    for name, hertz in (("low", 200), ("bell", 900), ("rain", 500)):
        soundfile.write(tmp_path / f"sounds/{name}.wav", tone(hertz, 1.0), RATE)
    return tmp_path / "sounds"


def test_bundled_returns_a_folder_that_transformers_loads(tiny_bundle, sounds):
    assert wavlink.bundled() == wavlink.bundled("wavlink-tiny") == str(tiny_bundle) and os.path.isdir(
        wavlink.bundled()
    )
    assert type(AutoModel.from_pretrained(wavlink.bundled())) is wavlink.WavLinkModel
    name = pipeline("zero-shot-audio-classification", model=wavlink.bundled(), trust_remote_code=True)
    clip = wavlink.load_audio(sounds / "low.wav")
    assert {row["label"] for row in name(clip, candidate_labels=LABELS)} == set(LABELS)


@pytest.mark.parametrize("name", ["wavlink-tin", "gpt2", ""])
def test_an_unknown_name_lists_the_bundled_models(name, tiny_bundle):
    with pytest.raises(ValueError, match=r"no.* bundled model \(there are: wavlink-tiny\).*laion/clap-htsat-unfused"):
        wavlink.bundled(name)
    if name:
        with pytest.raises(ValueError, match="there are: wavlink-tiny"):
            Embedder(name)
    if name == "wavlink-tin":
        with pytest.raises(ValueError, match=r"did you mean wavlink-tiny\?$"):
            load_for_evaluation(name)


def test_a_missing_bundled_model_is_to_be_reinstalled(no_bundle):
    for load in (wavlink.bundled, Embedder, lambda: wavlink.classify(None, b"", LABELS)):
        with pytest.raises(
            ValueError, match=r"bundled model .*wavlink-tiny is missing: .*pip install --force-reinstall"
        ):
            load()
    for name in ("gpt2", "./none"):
        with pytest.raises(ValueError, match=r"there are: none, as they are missing here; .*--force-reinstall"):
            Embedder(name)
    no_bundle.rmdir()
    assert bundled_models.names() == []
    (missing,) = bundled_models.describe_all()
    assert missing["name"] == "wavlink-tiny" and "is missing" in missing["error"] and missing["bytes"] == 0


def test_the_api_takes_the_name_and_no_name(tiny_bundle, wavlink_folder, sounds):
    low = sounds / "low.wav"
    expected = wavlink.classify(str(wavlink_folder), low, LABELS)
    for model in (None, "wavlink-tiny", tiny_bundle, Embedder()):
        assert wavlink.classify(model, low, LABELS) == expected
    spans = wavlink.locate(str(wavlink_folder), low, "a bell", window=0.5)
    assert wavlink.locate(None, low, "a bell", window=0.5) == wavlink.locate("wavlink-tiny", low, "a bell", window=0.5)
    assert wavlink.locate(None, low, "a bell", window=0.5) == spans
    scores = wavlink.evaluate(None, sounds, choices=0)
    assert scores["model"] == "wavlink-tiny" and scores == wavlink.evaluate("wavlink-tiny", sounds, choices=0)
    assert Embedder().name == Embedder(tiny_bundle).name == "wavlink-tiny" and Embedder().revision.startswith(
        "sha256:"
    )
    assert type(load_for_evaluation("random:wavlink-tiny@3")[0]) is wavlink.WavLinkModel


@pytest.mark.parametrize("holds_config", [False, True])
def test_a_local_folder_comes_first_only_with_a_config(
    holds_config, tiny_bundle, wavlink_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    local = tmp_path / "wavlink-tiny"
    shutil.copytree(wavlink_folder, local) if holds_config else local.mkdir()
    assert bundled_models.resolve("wavlink-tiny") == ("wavlink-tiny" if holds_config else str(tiny_bundle))
    assert portable("wavlink-tiny") == (str(local) if holds_config else "wavlink-tiny")
    assert bundled_models.resolve(None) == bundled_models.resolve("") == wavlink.bundled() == str(tiny_bundle)
    assert bundled_models.resolve("owner/name") == "owner/name"


@pytest.mark.parametrize("damage", ["changed", "missing", "added", "no sums", "other sums"])
def test_a_bundled_model_that_was_changed_is_refused(damage, tiny_bundle, no_bundle, capsys):
    weights, sums = tiny_bundle / "model.safetensors", no_bundle / bundled_models.SUMS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # the smallest change that could go unnoticed
    {
        "changed": lambda: weights.write_bytes(content),
        "missing": lambda: (tiny_bundle / "processor_config.json").unlink(),
        "added": lambda: (tiny_bundle / "adapter_config.json").write_text("{}"),
        "no sums": sums.unlink,
        "other sums": lambda: sums.write_text("[]"),
    }[damage]()
    with pytest.raises(ValueError, match="bundled model .* (was changed|missing|does not belong|cannot be verified)"):
        Embedder()
    assert cli.main(["classify", "a.wav", "--labels", "a", "b"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "install the package again" in error


def test_bytecode_and_hidden_files_are_no_change(tiny_bundle):
    (tiny_bundle / "__pycache__").mkdir()
    (tiny_bundle / "__pycache__/a.pyc").touch()
    (tiny_bundle / ".DS_Store").touch()
    assert wavlink.bundled() == str(tiny_bundle)


def test_hashes_are_computed_once_in_a_process(tiny_bundle, monkeypatch):
    wavlink.bundled()
    monkeypatch.setattr(bundled_models, "sums_of", lambda folder: pytest.fail("hashed again"))
    assert wavlink.bundled() == str(tiny_bundle)


def commands(sounds: Path, out: Path) -> dict[str, list[str]]:
    low = str(sounds / "low.wav")
    return {
        "classify": ["classify", low, "--labels", *LABELS],
        "where": ["where", low, "--query", "a bell", "--window", "0.5"],
        "index": ["index", str(sounds), "--out", str(out / "index")],
        "query": ["query", str(out / "index"), "a bell"],
        "map": ["map", str(out / "index"), "--out", str(out / "map.html")],
        "export": ["export", "wavlink-tiny", str(out / "onnx")],
    }


def test_the_commands_need_no_model(tiny_bundle, sounds, tmp_path, capsys):
    for name in ("classify", "where", "index", "query", "map"):
        words = commands(sounds, tmp_path)[name]
        assert cli.main([*words, "--json"]) == 0, capsys.readouterr().err
        results = json.loads(capsys.readouterr().out)["results"]
        if name in ("classify", "where"):
            assert results["model"] == "wavlink-tiny"
    assert Index.open(tmp_path / "index").manifest.model == "wavlink-tiny"


def test_where_still_takes_a_model_first(tiny_bundle, wavlink_folder, sounds, capsys):
    words = commands(sounds, sounds)["where"]
    for model in ("wavlink-tiny", str(wavlink_folder)):
        assert cli.main(["where", model, *words[1:], "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["results"]["model"] == model


def test_an_index_names_the_bundled_model_and_works_in_another_installation(
    tiny_bundle, wavlink_folder, sounds, tmp_path, monkeypatch
):
    index = Index.build(sounds, tmp_path / "index", progress=False, window=0.5, hop=0.25)
    assert index.manifest.model == "wavlink-tiny" and str(tiny_bundle) not in index.manifest.to_json()
    hits = index.query("a bell", top_k=2)
    again = Index.build(sounds, tmp_path / "by_path", tiny_bundle, progress=False, window=0.5, hop=0.25)
    assert again.manifest.model == "wavlink-tiny"
    elsewhere = tmp_path / "other machine"
    elsewhere.mkdir()
    write_bundle(elsewhere, wavlink_folder)
    shutil.rmtree(tiny_bundle.parent)
    monkeypatch.setattr(bundled_models, "MODELS", elsewhere)
    work = tmp_path / "work"
    shutil.copytree(wavlink_folder, work / "wavlink-tiny")  # another model of that name, which the index does not mean
    (work / "wavlink-tiny/model.safetensors").write_bytes(b"")
    monkeypatch.chdir(work)
    moved = Index.open(tmp_path / "index")
    assert moved.query("a bell", top_k=2) == hits and moved.embedder.name == "wavlink-tiny"
    shutil.rmtree(elsewhere / "wavlink-tiny")
    with pytest.raises(ValueError, match="'wavlink-tiny', which this machine does not have .* --model"):
        Index.open(tmp_path / "index").query("a bell")


def test_an_index_of_another_release_is_refused(tiny_bundle, sharp_model, processor, sounds, tmp_path, monkeypatch):
    Index.build(sounds, tmp_path / "index", progress=False, window=0.5)
    other = tmp_path / "sharp"
    sharp_model.save_pretrained(other)
    processor.save_pretrained(other)
    newer = tmp_path / "newer"
    newer.mkdir()
    write_bundle(newer, other)
    monkeypatch.setattr(bundled_models, "MODELS", newer)
    with pytest.raises(ValueError, match="made by wavlink-tiny at sha256:.*, but wavlink-tiny is at sha256:"):
        Index.open(tmp_path / "index").query("a bell")


def test_info_shows_the_bundled_models(tiny_bundle, capsys):
    assert cli.main(["info", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["results"]["bundled"]
    assert model["name"] == "wavlink-tiny" and model["intact"] and model["bytes"] > 1000 and model["dims"]
    assert cli.main(["info"]) == 0
    assert "wavlink-tiny" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, content",
    [("wavlink-tiny/config.json", "{"), ("wavlink-tiny/config.json", "[]"), (bundled_models.SUMS, "[3]")],
)
def test_info_says_which_bundled_model_is_damaged(tiny_bundle, name, content, capsys):
    (tiny_bundle.parent / name).write_text(content)
    bundled_models._verify.cache_clear()
    assert cli.main(["info", "--json"]) == 2
    captured = capsys.readouterr()
    (model,) = json.loads(captured.out)["results"]["bundled"]
    assert not model["intact"] and "install the package again" in model["error"] and model["dims"] == []
    assert captured.err == f"wavlink info: {model['error']}\n"
    assert cli.main(["info"]) == 2
    captured = capsys.readouterr()
    assert "damaged" in captured.out and "install the package again" in captured.err
    by_path = [["info", str(tiny_bundle)]] * (name != "wavlink-tiny/config.json")
    for argv in (["info", "wavlink-tiny"], ["info", "wavlink-tiny", "--json"], *by_path):
        assert cli.main(argv) == 2
        assert "install the package again" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["all", "config", "weights"])
def test_info_of_an_installation_without_its_models_says_reinstall(damage, tiny_bundle, capsys):
    if damage == "all":
        shutil.rmtree(tiny_bundle.parent)
    else:
        (tiny_bundle / {"config": "config.json", "weights": "model.safetensors"}[damage]).unlink()
    for argv in (["info"], ["info", "wavlink-tiny"], ["info", "--json"]):
        assert cli.main(argv) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and "pip install --force-reinstall wavlink" in captured.err
        assert "missing" in captured.err and "Traceback" not in captured.err


def test_info_describes_a_bundled_model_by_its_name(tiny_bundle, capsys):
    assert cli.main(["info", "wavlink-tiny", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["results"]
    assert facts["name"] == "wavlink-tiny" and facts["intact"] and facts["path"] == str(tiny_bundle)
    assert facts["backend"] == "torch" and facts["exports"] == [] and facts["dims"]
    assert cli.main(["info", "wavlink-tiny"]) == 0
    out = capsys.readouterr().out
    assert "wavlink-tiny" in out and "intact" in out and "default" in out


@pytest.mark.parametrize("name", ["wavlink-tin", "./none", "/none", "user/name", "sounds"])
def test_info_of_an_unknown_name_says_what_it_takes(name, tiny_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sounds").mkdir()
    assert cli.main(["info", name]) == 2
    error = capsys.readouterr().err
    assert "give the folder of an index or of a model, or a bundled model's name" in error and error.count("\n") == 1
    assert "wavlink-tiny" in error or name == "sounds"


@pytest.mark.parametrize("name", ["./x", "../x", "/no/x", "~/x", "x/", "a/b/c", ".\\x"])
def test_a_model_s_path_that_does_not_exist_lists_what_may_be_given(name, tiny_bundle, sounds, capsys):
    for argv in (
        ["classify", str(sounds / "low.wav"), "--labels", *LABELS, "--model", name],
        ["eval", "--benchmark", str(sounds), "--model", name],
        ["push", name, "me/x", "--dry_run", "--output_dir", str(sounds / "out")],
        ["export", name, str(sounds / "out")],
        [
            "train",
            "sounds",
            "--data",
            str(sounds),
            "--output_dir",
            str(sounds / "run"),
            "--init",
            name,
            "--mixed_precision",
            "no",
        ],
        ["serve", name, "--port", "0"],
    ):
        assert cli.main(argv) == 2, argv
        error = capsys.readouterr().err.splitlines()[-1]
        assert "give a model's folder, a Hub id such as" in error and "(there are: wavlink-tiny)" in error, error
    with pytest.raises(ValueError, match="there are: wavlink-tiny"):
        load_for_evaluation(f"random:{name}")


def test_a_space_serves_the_bundled_model(tiny_bundle, capsys):
    from wavlink.options.publishing import space
    from wavlink.parsing import parser_of

    parsed = parser_of(space, "wavlink space").parse_args(["--check", "--json", "--index", "real"])
    assert run_space(parsed) == 0
    loaded = json.loads(capsys.readouterr().out)
    assert loaded["model"] == "wavlink-tiny" and loaded["windows"] == 12


def test_half_precision_weights_compute_in_fp32(no_bundle, model, processor, tmp_path, wavlink_folder):
    copy.deepcopy(model).half().save_pretrained(tmp_path / "half")
    processor.save_pretrained(tmp_path / "half")
    write_bundle(no_bundle, tmp_path / "half")
    embedder = Embedder()
    assert embedder.model.dtype == torch.float32
    cosines = (embedder.embed_text(LABELS) * Embedder(wavlink_folder).embed_text(LABELS)).sum(-1)
    np.testing.assert_allclose(cosines, 1, atol=1e-3)


def test_the_bundled_models_of_this_checkout_are_intact():
    for described in bundled_models.describe_all():
        assert described["intact"], described["error"]
        assert (Path(described["path"]) / "model.safetensors").stat().st_size <= 40e6


def test_importing_the_module_imports_nothing_heavy():
    code = (
        "import sys, wavlink.bundled_models as b; b.names(); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = run_process([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("by_path", [False, True])
def test_commands_that_write_say_to_copy_a_bundled_model(by_path, tiny_bundle):
    with pytest.raises(ValueError, match="is a bundled model.*copy .*first"):
        own_folder(tiny_bundle if by_path else "wavlink-tiny")
