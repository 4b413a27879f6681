"""Evaluation in bounded memory: however long and many the files, a batch holds a minute of sound."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.clap_models import save_clap
from tests.conftest import RATE, tone
from tests.htsat_models import RATE as CLAP_RATE
from wavlink.embedder import _BATCH_SECONDS, Embedder
from wavlink.evaluation import embed_split as embedding
from wavlink.evaluation.embed_split import embed_audio, embed_text


class Recording:
    """Stands for a model: a clip's vector is of the sums of its mel bands; notes the size of each batch."""

    def __init__(self, dims: int = 8):
        self.config = SimpleNamespace(projection_dim=dims, matryoshka_dims=[dims])
        self.device, self.dtype, self.batches = torch.device("cpu"), torch.float32, []

    def get_audio_features(self, input_features, input_features_mask):
        self.batches.append((len(input_features), len(input_features) * input_features.shape[-1] / 100))
        sums = (input_features * input_features_mask[:, None]).sum(-1)[:, :8] + torch.arange(8)
        return SimpleNamespace(pooler_output=torch.nn.functional.normalize(sums, dim=-1))


class Rows:
    """Files of ten minutes that exist one at a time."""

    def __init__(self, minutes: list[float]):
        self.minutes = minutes

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        array = rng.uniform(-0.1, 0.1, int(60 * RATE * self.minutes[index])).astype(np.float32)
        return {"audio": {"array": array, "sampling_rate": RATE}}


def test_long_files_share_no_batch_of_more_than_a_minute(processor):
    minutes = [3, 0.2, 5, 0.1, 3, 3, 0.3]
    model = Recording()
    results = embed_audio(model, processor, Rows(minutes), minutes, batch_size=32, progress=False)
    assert results.windowed == 4 and results.rows == [*range(7)]
    assert max(seconds for _, seconds in model.batches) <= _BATCH_SECONDS
    assert sum(clips for clips, _ in model.batches) == 3 + 3 * 6 + 10
    for index in (0, 1, 2):
        alone = embed_audio(model, processor, [Rows(minutes)[index]], [1], progress=False)
        torch.testing.assert_close(results.vectors[index], alone.vectors[0], atol=1e-5, rtol=0)


def test_short_clips_are_at_most_batch_size_in_a_batch(processor):
    model = Recording()
    rows = [{"audio": {"array": tone(300, 0.1, n), "sampling_rate": RATE}} for n in range(20)]
    embed_audio(model, processor, rows, [1.0] * 20, batch_size=6, progress=False)
    assert max(clips for clips, _ in model.batches) == 6


PEAK = """
import json, resource, sys
from wavlink.evaluation.embed_split import embed_audio
from processing import WavLinkFeatureExtractor, WavLinkProcessor
from tests.conftest import word_level_tokenizer
from tests.evaluation.test_bounded_batches import Recording, Rows
processor = WavLinkProcessor(WavLinkFeatureExtractor(), word_level_tokenizer("[CLS]", "[SEP]", "[PAD]"))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
embed_audio(Recording(), processor, Rows([1.0]), [1], progress=False)
before, model = peak(), Recording()
minutes = [10.0] * int(sys.argv[1])
found = embed_audio(model, processor, Rows(minutes), minutes, batch_size=32, progress=False)
print(json.dumps([peak() - before, found.windowed]))
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_number_of_long_files():
    """Twelve files of ten minutes in one batch would be 240 windows, 230 MB of log-mels and 460 MB of samples."""
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", PEAK, "12"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    grown, windowed = json.loads(done.stdout.splitlines()[-1])
    assert windowed == 12 and grown < 400  # MB


def test_a_clap_goes_through_the_same_engine(tmp_path):
    from wavlink.loading import load_for_evaluation

    model, processor = load_for_evaluation(str(save_clap(tmp_path, fusion=False)))
    clips = [np.sin(np.arange(int(seconds * CLAP_RATE)) / (9 + n)) for n, seconds in enumerate([0.5, 12.0, 1.0])]
    rows = [{"audio": {"array": clip.astype(np.float32), "sampling_rate": CLAP_RATE}} for clip in clips]
    results = embed_audio(model, processor, rows, [0.5, 12.0, 1.0], progress=False)
    with torch.no_grad():
        alone = [
            model.get_audio_features(**processor(audio=[clip], sampling_rate=CLAP_RATE, return_tensors="pt"))
            for clip in [row["audio"]["array"] for row in rows]
        ]
    torch.testing.assert_close(results.vectors, torch.cat([one.pooler_output for one in alone]), atol=1e-5, rtol=0)
    assert embed_text(model, processor, ["a dog"]).shape == (1, model.config.projection_dim)


def test_a_borrowed_model_can_be_trained_on_afterwards(sharp_model, processor):
    """Nothing computed in inference mode stays in it, and neither its weights nor its kernels are replaced."""
    layers = [type(layer) for layer in sharp_model.modules()]
    embedder = Embedder.borrowing(sharp_model, processor)
    list(embedder.embed_clips([tone()]))
    embedder.embed_text(["a dog"])
    assert embedder.model is sharp_model and [type(layer) for layer in sharp_model.modules()] == layers
    inputs = processor(text=["a dog", "rain"], audio=[tone(), tone(300)], sampling_rate=RATE, return_tensors="pt")
    sharp_model(**inputs).loss.backward()


def test_processes_of_a_sharded_model_compute_equally_many_batches(sharp_model, processor, monkeypatch):
    """One that has fewer computes silence as often as the others go on; it gives no vector."""
    others = iter([1, 1, 1, 1, 0])  # whether another process has a batch

    def all_reduce(left, op):
        left.fill_(max(int(left), next(others)))

    monkeypatch.setattr(embedding.dist, "all_reduce", all_reduce)
    monkeypatch.setattr(embedding.dist, "get_backend", lambda: "gloo")
    computed, real = [], sharp_model.get_audio_features
    monkeypatch.setattr(
        sharp_model, "get_audio_features", lambda **x: computed.append(len(x["input_features"])) or real(**x)
    )
    embedder = embedding._InStep.borrowing(sharp_model, processor)
    results = list(embedder.embed_clips([tone(300, 1.0), tone(500, 2.0)]))
    assert len(results) == 2 and computed == [1, 1, 1, 1]
    np.testing.assert_allclose(
        results,
        list(Embedder.borrowing(sharp_model, processor).embed_clips([tone(300, 1.0), tone(500, 2.0)])),
        atol=1e-5,
    )
