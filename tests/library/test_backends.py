"""Backends of `Embedder`: torch's vectors in OpenVINO and onnxruntime, and which backend a name or an export chooses."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from modeling_wavlink import WavLinkModel
from processing import WavLinkProcessor
from tests.conftest import RATE, tone
from wavlink.backends import choice
from wavlink.embedder import Embedder

SECONDS = [0.4, 3.0, 0.7, 2.9, 0.0123, 1.5, 0.45]
CLIPS = [tone(200 * (i + 1), seconds, i) for i, seconds in enumerate(SECONDS)]
TEXTS = ["a dog barks", "the loud bell rings . the low cat meows", "rain"]
NEEDS = {"openvino": ("openvino",), "onnx": ("onnxruntime", "onnx", "onnxscript")}
# (backend, text tower, its pooling, the audio pooling, frames pooled to one)
CASES = [
    ("openvino", "bert", "mean", "token", 1),
    ("openvino", "clip", "eos", "token_mean", 3),
    ("openvino", "modernbert", "cls", "mean", 2),
    ("onnx", "bert", "mean", "token", 2),
]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """Conversions of this module, beside no one's cache."""
    folder = tmp_path_factory.getbasetemp() / "backends_cache"
    monkeypatch.setattr(constants, "HF_HOME", str(folder))
    return folder


def needs(backend: str) -> None:
    for name in NEEDS[backend]:
        pytest.importorskip(name)


def save(request, folder: Path, text="bert", text_pooling="mean", pooling="token", frame_pooling=1) -> Path:
    towers = [str(request.getfixturevalue(f"{name}_folder")) for name in ("whisper", text)]
    torch.manual_seed(0)
    options = {"text_pooling": text_pooling, "pooling": pooling, "frame_pooling": frame_pooling}
    model = WavLinkModel.from_audio_text_pretrained(*towers, **options).eval()
    torch.nn.init.normal_(model.audio_model.global_token)
    model.save_pretrained(folder)
    WavLinkProcessor.from_audio_text_pretrained(*towers).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(request, tmp_path) -> Path:
    return save(request, tmp_path / "model")


def vectors(embedder: Embedder, clips=CLIPS) -> np.ndarray:
    return np.stack(list(embedder.embed_clips(clips)))


def close(found, expected, atol=1e-5):
    np.testing.assert_allclose(found, expected, atol=atol, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "text", "text_pooling", "pooling", "frame_pooling"), CASES)
def test_fp32_vectors_equal_torchs(backend, text, text_pooling, pooling, frame_pooling, request, tmp_path):
    needs(backend)
    folder = save(request, tmp_path / "model", text, text_pooling, pooling, frame_pooling)
    plain, fast = Embedder(folder), Embedder(folder, backend=backend)
    assert (plain.backend, plain.precision) == ("torch", "fp32")
    assert (fast.backend, fast.precision) == (backend, "fp32")
    assert (fast.revision, fast.parameters, fast.dims) == (plain.revision, plain.parameters, plain.dims)
    expected = vectors(plain)
    found = vectors(fast)
    close(found, expected)
    close(vectors(fast, CLIPS[::-1])[::-1], found)
    close(np.concatenate([vectors(fast, [clip]) for clip in CLIPS]), found)
    close(fast.embed_text(TEXTS), plain.embed_text(TEXTS))
    close(np.concatenate([fast.embed_text([text]) for text in TEXTS]), plain.embed_text(TEXTS))
    inputs = fast.processor(audio=CLIPS, sampling_rate=RATE, return_tensors="pt")
    inputs["input_features"] += 3 * (1 - inputs["input_features_mask"][:, None])  # masked frames are not attended to
    close(fast.model.get_audio_features(**inputs).pooler_output.numpy(), expected)
