"""The contracts on real sounds with real weights: WAVLINK_SOUNDS=... WAVLINK_WEIGHTS=... pytest -m real -s"""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperModel

from modeling_wavlink import WavLinkModel
from processing import WavLinkProcessor
from processing.audio import load_audio
from processing.datasets.load import caption_columns, captions_of, durations, load_split
from tests.conftest import RATE

pytestmark = pytest.mark.real
SPLITS = ("train", "validation", "test")
SECONDS = (0.2, 0.5, 1.0, 1.9, 3.3, 5.0, 9.0, 30.0)


@pytest.fixture(scope="module")
def towers(weights) -> tuple[str, str]:
    return str(weights / "whisper-tiny.en"), str(weights / "all-MiniLM-L6-v2")


@pytest.fixture(scope="module")
def real_model(towers) -> WavLinkModel:
    """Pretrained towers under a new token and new projections."""
    torch.manual_seed(0)
    return WavLinkModel.from_audio_text_pretrained(*towers).eval()


@pytest.fixture(scope="module")
def real_processor(towers) -> WavLinkProcessor:
    return WavLinkProcessor.from_audio_text_pretrained(*towers)


@pytest.fixture(scope="module")
def clips(sounds) -> list[np.ndarray]:
    """Eight test clips, those whose lengths are nearest to SECONDS."""
    test = load_split(str(sounds), "test")
    lengths = np.array(durations(test))
    nearest = [int(np.abs(lengths - seconds).argmin()) for seconds in SECONDS]
    return [load_audio(test[index]["audio"]["path"]) for index in nearest]


@torch.inference_mode()
def embed(model, processor, clips, padding) -> torch.Tensor:
    inputs = processor(audio=clips, sampling_rate=RATE, padding=padding, return_tensors="pt")
    return model.get_audio_features(**inputs).pooler_output


@pytest.fixture(scope="module")
def alone(real_model, real_processor, clips) -> dict[str, torch.Tensor]:
    """`[8, D]` by padding, each clip embedded by itself."""
    return {
        padding: torch.cat([embed(real_model, real_processor, [clip], padding) for clip in clips])
        for padding in ("longest", "max_length")
    }


def test_the_clips_differ_in_length(clips):
    lengths = [len(clip) / RATE for clip in clips]
    assert lengths == sorted(set(lengths)) and lengths[0] < 0.3 and lengths[-1] > 29


@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_one_clip_one_vector(real_model, real_processor, clips, alone, padding):
    batched = embed(real_model, real_processor, clips, padding)
    reversed_order = embed(real_model, real_processor, clips[::-1], padding).flip(0)
    for vectors in (batched, reversed_order):
        torch.testing.assert_close(vectors, alone[padding], atol=1e-5, rtol=0)


def test_native_length_is_close_to_padding_to_30_s(alone):
    """Before training: Whisper has seen no clip without silence at its end, and the token is new."""
    cosines = (alone["longest"] * alone["max_length"]).sum(-1)
    print(
        "\n".join(f"{seconds:5.1f} s  cosine {cosine:.4f}" for seconds, cosine in zip(SECONDS, cosines, strict=True))
    )
    assert 0.8 < cosines.mean() < 0.99 and cosines.min() > 0.7
    assert cosines[-1] > 0.9999  # 30 s is 30 s


@torch.inference_mode()
def test_whisper_parity_on_a_real_clip(real_model, real_processor, towers, clips):
    clip = clips[4]
    features = WhisperFeatureExtractor.from_pretrained(towers[0])(clip, sampling_rate=RATE, return_tensors="pt")
    ours = real_processor(audio=clip, sampling_rate=RATE, padding="max_length", return_tensors="pt")
    assert torch.equal(ours["input_features"], features["input_features"])
    attention = real_model.audio_model.config._attn_implementation
    whisper = WhisperModel.from_pretrained(towers[0], dtype=torch.float32, attn_implementation=attention).eval()
    expected = whisper.encoder(features["input_features"]).last_hidden_state
    states = real_model.audio_model(ours["input_features"], use_global_token=False).last_hidden_state
    assert states.shape == (1, 1500, 384) and torch.equal(states, expected)


@pytest.mark.parametrize("split", SPLITS)
def test_every_row_has_a_file_a_length_and_a_caption(sounds, split):
    with open(sounds / split / "metadata.csv", newline="", encoding="utf-8") as file:
        names = [row["file_name"] for row in csv.DictReader(file)]
    dataset = load_split(str(sounds), split)
    columns = caption_columns(dataset)
    assert [Path(row["audio"]["path"]).name for row in dataset] == names and len(set(names)) == len(names) > 100
    assert columns == ["caption", "caption_2", "caption_3"]
    assert all(0 < seconds <= 30.001 for seconds in durations(dataset))
    assert all(captions_of(row, columns) for row in dataset.remove_columns("audio"))
