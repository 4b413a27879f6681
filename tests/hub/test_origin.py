"""Pushes of a bundled model, of its copies, and of what was trained from it; pushes of exports."""

import copy
import csv
import json
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import wavlink
from hub_cards import push
from hub_cards.card import write_card
from hub_cards.origin import renamed
from hub_cards.sources import licence_limit, read_counts
from hub_cards.verify import pickled
from tests.bundled_folders import write_bundle
from tests.conftest import RATE, tone
from tests.processes import run_process
from wavlink import bundled_models
from wavlink.backends.exported import model_identity, write_record
from wavlink.backends.graphs import exportable
from wavlink.config_file import write_field
from wavlink.training.finetuning import merged_state_dict, save_adapter, set_trainable

REPO = "user/wavlink-mine"
NAME = "wavlink-tiny"
FOLDER = bundled_models.MODELS / NAME
COPYLEFT = "some are copyleft licences"


@pytest.fixture(autouse=True)
def unverified(monkeypatch) -> None:
    """Without the clean process, where that is not the subject."""
    monkeypatch.setattr(push, "verify", lambda folder, expected: None)


def pushed(source, out: Path, *options: str) -> Path:
    push.main([str(source), REPO, "--dry_run", "--output_dir", str(out), *options])
    return out


def dtypes(folder: Path) -> set[torch.dtype]:
    return {value.dtype for value in load_file(folder / "model.safetensors").values()}


@pytest.mark.parametrize("kind", ["name", "copy", "renamed card", "no card"])
def test_a_bundled_model_is_pushed_with_all_its_files(kind, tmp_path):
    source = NAME if kind == "name" else shutil.copytree(FOLDER, tmp_path / "copy")
    if kind == "renamed card":
        (source / "README.md").write_text("# another/name\n")
    if kind == "no card":
        (source / "README.md").unlink()
    out = pushed(source, tmp_path / "out")
    expected, written = bundled_models.known_sums()[NAME], bundled_models.sums_of(out)
    assert written.keys() == expected.keys()
    assert {name for name in written if written[name] != expected[name]} == {"README.md"}
    card = ModelCard.load(out / "README.md")
    assert card.content.count(f'"{REPO}"') >= 8 and f"\n# {REPO}\n" in card.content
    assert "bundled(" not in card.content and "your-name" not in card.content and COPYLEFT in card.content
    assert card.data.model_name == "wavlink-mine" and dtypes(out) == {torch.float16}


def test_the_bundled_card_becomes_that_of_a_repository(model, processor, tmp_path):
    cards = []
    for name in ("tiny", REPO):
        write_card(tmp_path / name, model, processor.feature_extractor, name)
        cards.append((tmp_path / name / "README.md").read_text())
    assert 'wavlink.bundled("tiny")' in cards[0] and cards[0].count("import wavlink\n") == 5
    assert renamed(cards[0], "tiny", REPO) == cards[1]


def test_a_bundled_model_keeps_its_card(tmp_path):
    own = FOLDER / "scores/scores.json"
    changed = tmp_path / "scores.json"
    changed.write_text(json.dumps(json.loads(own.read_text()) | {"split": "validation"}))
    words = "is the bundled model wavlink-tiny, which .*"
    with pytest.raises(SystemExit, match=f"{words}: leave --license out"):
        pushed(NAME, tmp_path / "out", "--license", "mit", "--scores", str(own))
    with pytest.raises(SystemExit, match=f"{words}: leave --scores out"):
        pushed(NAME, tmp_path / "out", "--license", "other", "--scores", str(changed))
    assert (pushed(NAME, tmp_path / "out", "--license", "other", "--scores", str(own)) / "sources.csv").is_file()


def test_a_copy_with_another_config_keeps_its_weights_format_and_licences(tmp_path):
    source = shutil.copytree(FOLDER, tmp_path / "copy")
    write_field(source, "label_prompts", ["this is {}"])
    out = pushed(source, tmp_path / "out")
    assert dtypes(out) == {torch.float16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    assert (out / "sources.csv").read_bytes() == (FOLDER / "sources.csv").read_bytes()
    text = (out / "README.md").read_text()
    assert "the weights of wavlink-tiny" in text and COPYLEFT in text and "clips of 153 packages" in text
    assert "These are the weights of wavlink-tiny" in text and "not on record" not in text


@pytest.fixture
def licensed_bundle(no_bundle, wavlink_folder, model, processor) -> Path:
    """A tiny bundled model with a card and sources."""
    with open(wavlink_folder / "sources.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [("source_package", "licence", "clips"), ("bells", "CC0", 2), ("dogs", "GPL-2+", 3)]
        )
    write_card(wavlink_folder, model, processor.feature_extractor, NAME, licence="other")
    card = ModelCard.load(wavlink_folder / "README.md")
    card.data.base_model = ["openai/whisper-tiny.en"]
    card.save(wavlink_folder / "README.md")
    return write_bundle(no_bundle, wavlink_folder)


def trained(model, processor, base: str, folder: Path) -> Path:
    """What a LoRA run on `base` leaves: `best/`, merged, and `best/adapter/`."""
    torch.manual_seed(5)
    learned = set_trainable(copy.deepcopy(model), "lora", "both")
    with torch.no_grad():
        for parameter in (p for p in learned.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder / "best", state_dict=merged_state_dict(learned))
    processor.save_pretrained(folder / "best")
    save_adapter(learned, folder / "best/adapter", base=base)
    (folder / "recipe.json").write_text(json.dumps({"name": "mine", "init": base, "data": "/home/me/barks"}))
    return folder


@pytest.mark.parametrize("base", ["name", "path", "copy"])
@pytest.mark.parametrize("part", ["best", "best/adapter"])
def test_what_was_trained_from_a_bundled_model_names_it_and_its_licences(
    base, part, licensed_bundle, model, processor, tmp_path
):
    bases = {"name": NAME, "path": str(licensed_bundle), "copy": str(tmp_path / "copy")}
    shutil.copytree(licensed_bundle, tmp_path / "copy")
    run = trained(model, processor, bases[base], tmp_path / "run")
    out = pushed(run / part, tmp_path / "out")
    card = ModelCard.load(out / "README.md")
    assert card.data.base_model in ("openai/whisper-tiny.en", ["openai/whisper-tiny.en"])
    rows = card.content.partition("\n## Licences\n")[2]
    assert "| started from wavlink-tiny, a model that comes with the Python package wavlink | other |" in rows
    assert "| 5 clips of 2 packages | each package its own: sources.csv |" in rows and "barks" in rows
    assert COPYLEFT in card.content and "see where it was published" not in card.content
    assert "| started from | wavlink-tiny, a model" in card.content
    assert read_counts(out / "sources.csv") == read_counts(licensed_bundle / "sources.csv")
    if base != "copy":
        assert "wavlink-tiny (bundled" in json.loads((out / "training/recipe.json").read_text())["init"]


def test_an_adapter_without_its_run_and_a_second_run_name_the_bundled_model(
    licensed_bundle, model, processor, tmp_path
):
    run = trained(model, processor, NAME, tmp_path / "first")
    alone = shutil.copytree(run / "best/adapter", tmp_path / "alone")
    second = trained(model, processor, str(run / "best"), tmp_path / "second")
    for number, source in enumerate((alone, second / "best")):
        out = pushed(source, tmp_path / f"out{number}")
        text = (out / "README.md").read_text()
        assert COPYLEFT in text and (out / "sources.csv").is_file() and "These are the weights" not in text
        assert ("were trained from wavlink-tiny" in text) == (source == alone)


def test_a_model_of_other_weights_has_no_sources(licensed_bundle, sharp_model, processor, tmp_path):
    for part in (sharp_model, processor):
        part.save_pretrained(tmp_path / "other")
    out = pushed(tmp_path / "other", tmp_path / "out")
    assert not (out / "sources.csv").exists() and "wavlink-tiny" not in (out / "README.md").read_text()


def test_only_copyleft_licences_are_called_so():
    for licence in (
        "GPL-2+",
        "CC-BY-SA-3.0",
        "LGPL",
        "AGPL-3+",
        "see Debian copyright file (mentions GPL)",
        "GFDL-1.2+",
    ):
        (sentence,) = licence_limit(Counter({("bells", licence): 1, ("dogs", "MIT"): 2}))
        assert COPYLEFT in sentence, licence
    for licence in ("CC0-1.0", "MIT", "CC-BY-3.0", "public-domain", "Expat", "simple"):
        (sentence,) = licence_limit(Counter({("bells", licence): 1}))
        assert COPYLEFT not in sentence, licence
    assert licence_limit(Counter()) == []


@pytest.mark.slow
def test_every_snippet_of_the_bundled_card_runs(tmp_path):
    snippets = re.findall(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    assert len(snippets) >= 5 and all('wavlink.bundled("wavlink-tiny")' in snippet for snippet in snippets)
    for name, hertz in (("dog.wav", 300), ("bell.wav", 500)):
        soundfile.write(tmp_path / name, tone(hertz, 0.4), RATE)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    environment |= {"PYTHONPATH": str(Path(wavlink.__file__).parents[1]), "DISABLE_MLFLOW_INTEGRATION": "true"}
    code = "".join(f"exec({code!r}, {{'__name__': '__main__'}})\n" for code in snippets)
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 240}
    done = run_process([sys.executable, "-c", code], **options)
    assert done.returncode == 0, done.stderr[-3000:]


def add_export(folder: Path, model, backend: str, precision: str) -> Path:
    """Write an export whose graphs are bytes of no meaning; their description is that of the weights."""
    target = folder / backend
    target.mkdir(exist_ok=True)
    ending = "_int8" * (precision == "int8")
    for name in ("audio", "text"):
        for suffix in (".xml", ".bin") if backend == "openvino" else (".onnx", ".onnx.data"):
            (target / f"{name}_model{ending}{suffix}").write_bytes(b"PK" + name.encode())
    about = {"validation": {"data": "/home/me/barks", "split": "test", "clips": 3}}
    write_record(target, model_identity(exportable(copy.deepcopy(model))), backend, precision, {}, **about)
    return target


def test_exports_are_pushed_with_their_hashes_checked_and_named_on_the_card(model, wavlink_folder, tmp_path):
    add_export(wavlink_folder, model, "openvino", "fp32")
    add_export(wavlink_folder, model, "onnx", "int8")
    out = pushed(wavlink_folder, tmp_path / "out")
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {"openvino/audio_model.bin", "openvino/wavlink_fp32.json", "onnx/text_model_int8.onnx.data"} <= written
    text = (out / "README.md").read_text()
    section = text.partition("\n## Exports\n")[2].partition("\n## ")[0]
    assert "| openvino | fp32 |" in section and "| onnx | int8 |" in section and f'Embedder("{REPO}"' in section
    assert "[onnx/wavlink_int8.json](onnx/wavlink_int8.json)" in section
    record = json.loads((out / "onnx/wavlink_int8.json").read_text())
    assert record["validation"]["data"] == "barks" and record["sha256"] and pickled(out) == []
    (out / "openvino/other.bin").write_bytes(b"PK")
    assert pickled(out) == ["openvino/other.bin"]
    (wavlink_folder / "onnx/text_model_int8.onnx").write_bytes(b"PKtexs")
    with pytest.raises(SystemExit, match="text_model_int8.onnx of .*onnx is missing or damaged"):
        pushed(wavlink_folder, tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def test_an_export_of_other_weights_is_refused_by_name(model, wavlink_folder, tmp_path):
    other = copy.deepcopy(model)
    other.audio_model.global_token.data.mul_(2)
    add_export(wavlink_folder, other, "openvino", "fp32")
    with pytest.raises(SystemExit, match="wavlink/openvino was exported for other weights than those of"):
        pushed(wavlink_folder, tmp_path / "out")


def test_a_copy_of_a_bundled_model_is_pushed_with_the_exports_that_were_added(licensed_bundle, model, tmp_path):
    source = shutil.copytree(licensed_bundle, tmp_path / "copy")
    add_export(source, model, "openvino", "int8")
    out = pushed(source, tmp_path / "out")
    text = (out / "README.md").read_text()
    assert (out / "openvino/text_model_int8.xml").is_file() and text.count("\n## Exports\n") == 1
    assert (out / "sources.csv").is_file()
    assert text.index("## Exports") < text.index("## Nested dims")


def test_a_model_without_exports_has_no_such_section(wavlink_folder, tmp_path):
    assert "Exports" not in (pushed(wavlink_folder, tmp_path / "out") / "README.md").read_text()


def test_a_multilingual_model_states_its_languages_and_where_it_comes_from(tmp_path):
    source = shutil.copytree(FOLDER, tmp_path / "multilingual", ignore=shutil.ignore_patterns("README.md", "scores"))
    weights = load_file(source / "model.safetensors")
    weights["text_projection.weight"] = weights["text_projection.weight"] * 2
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    record = {"teacher": NAME, "language": "en", "languages": {"de": 1234, "fr": 5}}
    (source / "distillation.json").write_text(json.dumps(record), encoding="utf-8")
    out = pushed(source, tmp_path / "out")
    card = ModelCard.load(out / "README.md").content
    assert "translations learned from: de (1,234), fr (5)" in card and "the vectors of wavlink-tiny" in card
    assert "| started from wavlink-tiny, a model that comes with the Python package wavlink |" in card
    assert json.loads((out / "distillation.json").read_text(encoding="utf-8")) == record
