"""Every example runs on tiny models, and learns what it says it learns."""

import csv
import importlib.util
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import soundfile
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModel, WhisperFeatureExtractor, WhisperModel

from modeling_wavlink import WavLinkModel
from processing import WavLinkProcessor
from processing.datasets.load import load_split
from tests import snippets
from tests.bundled_folders import write_bundle
from tests.conftest import RATE, tone

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))  # where a script finds its neighbours
PITCHES = {"dog": 200, "cat": 700, "bell": 2500, "rain": 5000}
SCRIPTS = ("demo", "finetune_lora", "search_folder", "audio_rag", "multilingual")


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_sounds(folder: Path, names: dict[str, int], train: int = 6, **columns) -> Path:
    """An audiofolder of tones, a pitch a label; `columns` are functions of the label."""
    for split, count in (("train", train), ("validation", 2), ("test", 3)):
        (folder / split).mkdir(parents=True)
        rows = []
        for label, hertz in names.items():
            for number in range(count):
                name = f"{label}_{number}.wav".replace(" ", "_")
                clip = tone(hertz * (1 + 0.01 * (number % 6)), 0.3, seed=hash_of(split, label, number))
                soundfile.write(folder / split / name, clip, RATE)
                rows.append({"file_name": name, "label": label} | {key: make(label) for key, make in columns.items()})
        with open(folder / split / "metadata.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return folder


def hash_of(*parts) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate("".join(map(str, parts)))) % 2**32


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tones") / "tones"
    return write_sounds(folder, PITCHES, caption=lambda label: f"a {label} rings .")


@pytest.fixture
def sharp_folder(sharp_model, processor, tmp_path) -> str:
    sharp_model.save_pretrained(tmp_path / "sharp")
    processor.save_pretrained(tmp_path / "sharp")
    return str(tmp_path / "sharp")


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_says_how_to_run_it(name):
    source = (EXAMPLES / f"{name}.py").read_text()
    assert f"python examples/{name}.py" in source.split('"""')[1]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_imports_public_names_alone(path):
    assert snippets.internal_imports(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_notebook_imports_public_names_alone(path):
    cells = nbformat.read(path, as_version=4).cells
    assert [
        name for cell in cells if cell.cell_type == "code" for name in snippets.internal_imports(cell.source)
    ] == []


@pytest.mark.parametrize(
    ("code", "internal"),
    [
        ("import wavlink\nfrom wavlink import Index\nimport numpy, trainer", []),
        ("from wavlink import Index, console", ["wavlink.console"]),
        ("def f():\n    from wavlink.search.index import Index", ["wavlink.search.index.Index"]),
        ("import os, train, wavlink.console", ["train", "wavlink.console"]),
        ("from processing import WavLinkProcessor", ["processing.WavLinkProcessor"]),
    ],
)
def test_internal_imports_are_found(code, internal):
    assert snippets.internal_imports(code) == internal


def test_finetuning_reads_metadata_and_folders_of_labels(tones, tmp_path):
    load_split = load("finetune_lora").load_split
    files, labels = load_split(str(tones), "test")
    for file, label in zip(files, labels, strict=True):
        (tmp_path / "test" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "test" / label / Path(file).name).write_bytes(Path(file).read_bytes())
    by_folder = load_split(str(tmp_path), "test")
    pairs = [
        {(Path(file).name, label) for file, label in zip(*rows, strict=True)} for rows in ((files, labels), by_folder)
    ]
    assert len(by_folder[0]) == 12 and pairs[0] == pairs[1]
    with pytest.raises(SystemExit, match="holds no labelled sounds"):
        load_split(str(tmp_path), "train")


@pytest.mark.slow
def test_lora_learns_the_labels_of_tones(sharp_folder, tones, tmp_path):
    options = ["--out", str(tmp_path / "out"), "--steps", "60", "--batch_size", "12", "--learning_rate", "1e-2"]
    scores = load("finetune_lora").main([sharp_folder, str(tones), *options])
    assert scores["before"]["value"] <= 0.5 and scores["after"]["value"] >= 0.9, scores
    difference = scores["after"]["value"] - scores["before"]["value"]
    assert scores["difference"]["value"] == pytest.approx(difference)
    clip = torch.randn(1, 80, 30)
    merged = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    base = AutoModel.from_pretrained(sharp_folder, trust_remote_code=True)
    adapted = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
    with torch.no_grad():
        same = merged.get_audio_features(clip).pooler_output, adapted.get_audio_features(clip).pooler_output
    torch.testing.assert_close(*same, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_demo_names_finds_draws_and_learns(sharp_folder, no_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)  # where a script finds its neighbours
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    demo = load("demo")
    monkeypatch.setattr(demo, "KINDS", ["white noise", "dial tone"])
    out, options = tmp_path / "demo", ["--steps", "3", "--clips_per_kind", "2"]
    write_bundle(no_bundle, Path(sharp_folder))
    for words in (["--model", sharp_folder], []):  # the second run writes all anew, with the bundled model
        table = str(demo.main([*words, "--out", str(out), *options]))
    assert re.search(r"load +wavlink-tiny, ", table)
    assert table in capsys.readouterr().out and table.splitlines()[-1].startswith("together")
    assert "of 12 right" in table and "12 sounds, 5 sentences" in table and "zero-shot on 4 unseen clips:" in table
    for name in ("before", "after", "difference"):
        assert re.search(rf"  {name} +-?[0-9.]+ % \[-?[0-9.]+, -?[0-9.]+\]", table), table
    assert "AutoModel and pipeline say" in table and "water_stream" in (out / "map.html").read_text(encoding="utf-8")
    assert (out / "tuned/adapter").is_dir() and len(list((out / "sounds").glob("*.ogg"))) == 12


def test_search_finds_the_like_and_leaves_out_the_unlike(sharp_folder, tones, tmp_path, capsys):
    search = load("search_folder").main
    command = [sharp_folder, str(tones / "test"), "--index", str(tmp_path / "index")]
    first, *_ = search([*command, "--like", str(tones / "test/dog_0.wav")])
    assert first.path == "dog_0.wav" and first.score > 0.99
    assert "12 windows, 0 files skipped" in capsys.readouterr().out
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "index/windows.lance/data").iterdir()}
    every = [*command, "--top_k", "12"]
    every += ["--text", "a dog barks"]
    texts = search(every), search([*every, "--without", "a cat meows"])
    # unchanged sounds are not embedded again
    assert parts == {path: path.stat().st_mtime_ns for path in (tmp_path / "index/windows.lance/data").iterdir()}
    assert [hit.path for hit in texts[0]] != [hit.path for hit in texts[1]]


@pytest.mark.slow
def test_the_language_model_learns_to_caption_tones(sharp_folder, tones, tmp_path):
    rag = load("audio_rag")
    rag.WAYS = {name: rag.WAYS[name] for name in ("text + token", "frames")}
    rag.DIFFERENCES, rag.WIDTH, rag.LEARNING_RATE = (("frames", "text + token"),), 96, 3e-3
    figures = rag.main([sharp_folder, str(tones), "--out", str(tmp_path / "rag"), "--steps", "40"])
    for name in ("text + token", "frames"):
        assert figures[name]["exact"]["value"] > 0.9, figures[name]  # of four captions
    gained = figures["frames - text + token"]["loss"]["value"]
    parts = [figures[name]["loss"]["value"] for name in ("frames", "text + token")]
    assert gained == pytest.approx(parts[0] - parts[1])


def test_what_is_written_is_the_likeliest_next_token_each_time(sharp_folder, tones, tmp_path):
    """`generate` on a padded batch of mixed lengths against one clip at a time, a token at a time, by `forward`."""
    rag = load("audio_rag")
    tokenizer = rag.GPT2Tokenizer(**rag.SPECIAL).train_new_from_iterator(["a dog barks", "rain"], 300)
    torch.manual_seed(0)
    captioner = rag.Captioner(tokenizer, 8, "frames", True).eval()
    with torch.no_grad():
        captioner.lm.transformer.wte.weight.mul_(8)  # far from ties
    clips = rag.Clips.__new__(rag.Clips)
    clips.states = {"frames": [torch.randn(length, 8) for length in (3, 7)]}
    clips.retrieved = [["rain"], ["a dog barks", "rain"]]
    written = captioner.write(clips, [0, 1])
    for place in (0, 1):
        text, ids = "", []
        embeds, mask = captioner.prompt(clips, [place])
        with torch.no_grad():
            for _ in range(rag.TOKENS):
                more = captioner.lm.transformer.wte(torch.tensor([ids], dtype=torch.long))
                logits = captioner.lm(inputs_embeds=torch.cat([embeds, more], dim=1)).logits
                ids.append(logits[0, -1].argmax().item())
                if ids[-1] == tokenizer.eos_token_id:
                    break
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert written[place] == text


def test_overlap_is_the_f1_of_words_with_the_nearest_caption():
    overlap = load("audio_rag").overlap
    assert overlap("A dog barks", ["a cat", "a dog barks loudly"]) == pytest.approx(6 / 7)
    assert overlap("", ["a cat"]) == 0


@pytest.fixture
def sharp_whisper(whisper_folder, tmp_path) -> str:
    """`whisper_folder` with weights twenty times as large: clips lie apart, so little training tells them apart."""
    whisper = WhisperModel.from_pretrained(whisper_folder)
    with torch.no_grad():
        for name, weight in whisper.encoder.named_parameters():
            if weight.dim() > 1 and "embed_positions" not in name:
                weight.mul_(20)
    whisper.save_pretrained(tmp_path / "whisper")
    WhisperFeatureExtractor.from_pretrained(whisper_folder).save_pretrained(tmp_path / "whisper")
    return str(tmp_path / "whisper")


@pytest.mark.slow
def test_an_xlm_r_is_asked_in_six_languages(sharp_whisper, tmp_path, capsys):
    names = {"explosion": 200, "piano": 900, "Czech speech": 4000}
    said = {"Czech speech": 'A man says in Czech: "Dobrý den"'}
    columns = {"caption": lambda label: said.get(label, f"a sound of {label}"), "language": lambda label: label[:2]}
    folder = write_sounds(tmp_path / "sounds", names, train=96, **columns)
    multilingual = load("multilingual")
    options = ["--max_steps", "36", "--num_workers", "0", "--mixed_precision", "no", "--learning_rate", "3e-4"]
    command = [str(folder), "--audio_model", sharp_whisper, "--out", str(tmp_path / "out")]
    scores = multilingual.main([*command, *options, "--batch_size", "24"])
    config = AutoConfig.from_pretrained(tmp_path / "out/run/best", trust_remote_code=True)
    assert config.text_config.model_type == "xlm-roberta" and config.text_pooling == "mean"
    rows = load_split(str(tmp_path / "out/data"), "test").remove_columns("audio")
    assert {row["caption_said"] or "" for row in rows} == {"", "Dobrý den"}
    assert "Ein Geräusch: Klavier." in rows["caption_de"] and "这是钢琴的声音。" in rows["caption_zh"]
    assert {*scores["zero_shot"]} == {"en", "de", "fr", "es", "ru", "zh"} and scores["chance"] == 1 / 3
    assert np.mean([x["value"] for x in scores["zero_shot"].values()]) > 0.6, scores
    assert "zero-shot, 9 clips, chance level 33.3" in capsys.readouterr().out


def test_a_small_xlm_r_takes_as_many_tokens_as_it_has_positions_for(whisper_folder, tmp_path):
    load("multilingual").new_xlm_r(["a dog barks", "ein Hund bellt", "狗叫"], tmp_path / "xlm-r", width=32)
    towers = str(whisper_folder), str(tmp_path / "xlm-r")
    model = WavLinkModel.from_audio_text_pretrained(*towers).eval()
    inputs = WavLinkProcessor.from_audio_text_pretrained(*towers)(text=["ein Hund bellt " * 200], return_tensors="pt")
    assert model.config.text_pooling == "mean" and inputs["input_ids"].shape == (1, 128)
    assert model.get_text_features(**inputs).pooler_output.norm().item() == pytest.approx(1, abs=1e-5)


def test_the_words_of_labels_are_told_apart_in_every_language():
    multilingual = load("multilingual")
    assert len(multilingual.WORDS) == 40
    for name in multilingual.PROMPTS:
        assert len({words[name] for words in multilingual.WORDS.values()}) == 40, name
