"""A folder of sounds, an embedder and an index of them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from modeling_wavlink import WavLinkModel
from wavlink.embedder import Embedder
from wavlink.search.build import index_sounds
from wavlink.search.file_facts import UNKNOWN
from wavlink.search.scoring import vectors_of
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
    """Vectors by path, start and end; no row appears twice, and the facts of the files agree with them."""
    opened, found = Table.open(folder), {}
    for batch in opened.scan(["path", "start", "end", "embedding"], "error = ''"):
        vectors = vectors_of(batch["embedding"])
        for row, vector in zip(batch.select(["path", "start", "end"]).to_pylist(), vectors, strict=True):
            key = row["path"], row["start"], row["end"]
            assert key not in found
            found[key] = vector
    files = opened.files()
    counts = Counter(path for path, _, _ in found)
    assert counts == {path: file.rows for path, file in files.items() if not file.error}
    assert all(f.windows in (-1, f.rows) and f.version != UNKNOWN for f in files.values() if not f.error)
    return found


def assert_same_rows(folder, other) -> None:
    """As vectors are to be the same to 1e-5 whatever shares their batch, a number of fp16 may be the next."""
    found, expected = rows(folder), rows(other)
    assert found.keys() == expected.keys()
    for key, vector in found.items():
        np.testing.assert_allclose(vector, expected[key], atol=1e-3, err_msg=str(key))
