"""The model that comes with the package, on the real clips that come with it."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor, pipeline

import wavlink
from wavlink import Embedder, bundled_models
from wavlink.probability import checked_calibration

FOLDER = bundled_models.MODELS / "wavlink-tiny"
CLIPS = Path(__file__).parents[2] / "examples/sounds"
with open(CLIPS / "metadata.csv", newline="", encoding="utf-8") as file:
    ROWS = list(csv.DictReader(file))
PATHS = [CLIPS / row["file_name"] for row in ROWS]


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def embedder():
    return Embedder()


def test_its_folder_is_complete_and_small():
    names = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "sources.csv", "processor_config.json"} <= names
    assert {"tokenizer.json", "modeling_wavlink.py"} <= names and (FOLDER / "scores/scores.json").is_file()
    assert (FOLDER / "model.safetensors").stat().st_size <= 40_000_000
    assert wavlink.bundled() == wavlink.bundled("wavlink-tiny") == str(FOLDER)  # by its hashes
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert config["label_prompts"] and config["match_calibration"]


def test_its_calibration_covers_every_nested_dim(embedder):
    calibration = checked_calibration(embedder.model.config)
    assert {int(dim) for dim in calibration["dims"]} == {*embedder.model.config.matryoshka_dims}


def test_it_names_the_example_sounds(embedder):
    results = wavlink.classify(embedder, PATHS, [row["label"] for row in ROWS], top_k=3)
    names = [[answer["label"] for answer in result["labels"]] for result in results]
    first = sum(row["label"] == found[0] for row, found in zip(ROWS, names, strict=True))
    three = sum(row["label"] in found for row, found in zip(ROWS, names, strict=True))
    assert first >= 7 and three >= 9, names


def test_it_finds_the_example_sounds_by_their_captions(embedder):
    audio = np.stack(list(embedder.embed_files(PATHS)))
    text = embedder.embed_text([row["caption"] for row in ROWS])
    for dim in embedder.model.config.matryoshka_dims:
        cosines = unit(text[:, :dim]) @ unit(audio[:, :dim]).T
        ranks = (cosines > np.diag(cosines)[:, None]).sum(1)
        assert (ranks < 3).sum() >= 8, (dim, ranks)


def test_transformers_gives_its_vectors(embedder):
    model, processor = AutoModel.from_pretrained(FOLDER).eval(), AutoProcessor.from_pretrained(FOLDER)
    samples = wavlink.load_audio(PATHS[0])
    inputs = processor(audio=samples, text=[ROWS[0]["caption"]], sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    (audio,), (text,) = embedder.embed_files(PATHS[:1]), embedder.embed_text([ROWS[0]["caption"]])
    np.testing.assert_allclose(outputs.audio_embeds[0].numpy(), audio, atol=1e-5)
    np.testing.assert_allclose(outputs.text_embeds[0].numpy(), text, atol=1e-5)
    name = pipeline("zero-shot-audio-classification", model=str(FOLDER), trust_remote_code=True)
    assert name(samples, candidate_labels=["cow moo", "violin"])[0]["label"] == "cow moo"


@pytest.mark.slow
def test_the_command_line_needs_no_model(tmp_path):
    for words in (
        ["classify", str(PATHS[0]), "--labels", "cow moo", "violin", "--json"],
        ["index", str(CLIPS), "--out", str(tmp_path / "index")],
        ["query", str(tmp_path / "index"), "a cow moos", "--json"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "wavlink", *words], capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "cow_moo.ogg" in done.stdout


def test_it_finds_a_sound_in_a_recording_by_frames(embedder):
    """Twelve clips end to end, asked for one of them by its caption."""
    clips = [wavlink.load_audio(path) for path in PATHS]
    ends = np.cumsum([len(clip) for clip in clips]) / 16000
    place = [row["file_name"] for row in ROWS].index("violin.ogg")
    samples = np.concatenate([0.5 * clip / np.abs(clip).max() for clip in clips])
    span = wavlink.locate(embedder, {"array": samples, "sampling_rate": 16000}, ROWS[place]["caption"])[0]
    start, end = ends[place] - len(clips[place]) / 16000, ends[place]
    shared = min(span.end, end) - max(span.start, start)
    assert shared / (max(span.end, end) - min(span.start, start)) > 0.8
    assert span.probability > 0.5
