"""A folder of sounds, an embedder and an index of them."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from modeling_wavlink import WavLinkModel
from wavlink.embedder import Embedder
from wavlink.search import build as indexing
from wavlink.search.build import index_sounds
from wavlink.search.table import Table

from .conftest import RATE, tone

SECONDS = {"dog/far.wav": 1.0, "dog/near.wav": 2.0, "bell.flac": 3.0, "rain.wav": 25.0, "cat.ogg": 12.5}


@pytest.fixture(scope="module")
def models(tmp_path_factory, whisper_folder, bert_folder, processor) -> dict[str, Path]:
    """Two, whose clips lie far apart (see `sharp_model`)."""
    folders = {}
    for seed, name in enumerate(("model", "other")):
        torch.manual_seed(seed)
        options = {"text_pooling": "mean", "matryoshka_dims": [32, 16, 8]}
        model = WavLinkModel.from_audio_text_pretrained(str(whisper_folder), str(bert_folder), **options)
        with torch.no_grad():
            torch.nn.init.normal_(model.audio_model.global_token)
            for key, weight in model.audio_model.encoder.named_parameters():
                if weight.dim() > 1 and "embed_positions" not in key:
                    weight.mul_(10)
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
        processor.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def embedder(models) -> Embedder:
    return Embedder(str(models["model"]))


@pytest.fixture
def sounds(tmp_path) -> Path:
    for number, (name, seconds) in enumerate(SECONDS.items()):
        write(tmp_path / "sounds" / name, number, seconds)
    return tmp_path / "sounds"


def write(path: Path, number: int, seconds: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(150 + 170 * number, seconds, number), RATE)


def index(sounds, out, model="", **options):
    return index_sounds(str(sounds), out, model, progress=False, **options)


def rows(folder) -> dict[tuple, np.ndarray]:
    """Codes by path, start and end; no row appears twice, and `files` agrees with them."""
    opened, codes = IndexFolder.open(folder), {}
    for part in opened.manifest.parts:
        windows = opened.read(part, "embeddings")
        for row, code in zip(windows.to_pylist(), opened.manifest.codes(windows), strict=True):
            key = row["path"], row["start"], row["end"]
            assert key not in codes
            codes[key] = code
    known = indexing._known(opened)
    assert {path for path, _, _ in codes} == {path for path, file in known.items() if not file.error}
    return codes


def assert_same_rows(folder, other) -> None:
    """As vectors are to be the same to 1e-5 whatever shares their batch, a code may be the next."""
    codes, expected = rows(folder), rows(other)
    assert codes.keys() == expected.keys()
    for key, code in codes.items():
        assert np.abs(code.astype(int) - expected[key]).max() <= 1, key
