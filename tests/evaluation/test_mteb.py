"""`mteb.evaluate` through SentenceTransformer: its scores are those of our own metrics on our own vectors.

mteb's tasks run as they are, on parquet folders that stand for the Hub's data sets. Their sounds are `{"array",
"sampling_rate"}`, what `datasets.Audio` decodes to, so no decoder is needed.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.metrics import f1_score
from torch.utils.data import DataLoader

from modeling_wavlink.losses_wavlink import truncate_embeddings
from tests import index_files, snippets
from tests.conftest import RATE, WORDS, tone
from tests.mteb_tasks import pointed, sound, surroundings  # noqa: F401
from wavlink import Embedder, WavLinkConfig, WavLinkModel
from wavlink.evaluation import mteb_models
from wavlink.evaluation.metrics import mean_average_precision, recall_at_k, zero_shot_accuracy
from wavlink.search.listing import Sound
from wavlink.search.nearest import nearest
from wavlink.search.rows import window_rows
from wavlink.search.table import Table

mteb = pytest.importorskip("mteb")
from mteb.models import CompressionWrapper, SentenceTransformerEncoderWrapper  # noqa: E402
from mteb.types import OutputDType  # noqa: E402

CLIPS, CAPTIONS = 14, 2  # captions of each clip
LABELS = ["a dog", "the cat", "bell rings", "rain falls", "low sound"]


pytestmark = pytest.mark.usefixtures("surroundings")


@pytest.fixture
def folder(sharp_model, processor, tmp_path) -> Path:
    sharp_model.save_pretrained(tmp_path / "wavlink")
    processor.save_pretrained(tmp_path / "wavlink")
    return tmp_path / "wavlink"


@pytest.fixture
def clips() -> list[np.ndarray]:
    """0.2 to 1.5 s: of different lengths, so that batches are padded."""
    return [tone(150 * 1.3**i, 0.2 + 0.1 * i, i) for i in range(CLIPS)]


@pytest.fixture
def texts() -> list[str]:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 3 + i % 4, replace=False)) for i in range(CLIPS * CAPTIONS)]
    assert len(set(texts)) == len(texts)
    return texts


def wrapped(folder: Path, kind=SentenceTransformerEncoderWrapper, **options) -> SentenceTransformerEncoderWrapper:
    """As docs/maeb.md has it."""
    encoder = kind(str(folder), trust_remote_code=True, device="cpu", **options)
    encoder.mteb_model_meta = encoder.mteb_model_meta.model_copy(update={"modalities": ["audio", "text"]})
    return encoder


def retrieval_task(name: str, folder: Path, clips: list[np.ndarray], texts: list[str]):
    """AudioCaps both ways, in the schema it has on the Hub: corpus, queries, qrels."""
    sounds = [{"id": f"clip-{i}", "audio": sound(clip)} for i, clip in enumerate(clips)]
    captions = [{"id": f"text-{i}", "text": text} for i, text in enumerate(texts)]
    each = len(texts) // len(clips)
    pairs = [(f"text-{i}", f"clip-{i // each}") for i in range(len(texts))]
    queries, corpus = (captions, sounds) if "T2A" in name else (sounds, captions)
    pairs = pairs if "T2A" in name else [pair[::-1] for pair in pairs]
    qrels = [{"query-id": query, "corpus-id": answer, "score": 1} for query, answer in pairs]
    return pointed(name, folder, corpus={"test": corpus}, queries={"test": queries}, qrels={"test": qrels})


def run(encoder, task, tmp_path, precision: str | None = None, **options) -> tuple[dict, dict | list]:
    """Scores, and what they were made of."""
    encode_kwargs = {"batch_size": 4, "show_progress_bar": False, **({"precision": precision} if precision else {})}
    result = mteb.evaluate(
        encoder,
        task,
        cache=None,
        co2_tracker=False,
        show_progress_bar=False,
        prediction_folder=tmp_path / "predictions",
        encode_kwargs=encode_kwargs,
        **options,
    ).task_results[0]
    ((split, (scores,)),) = result.scores.items()
    predictions = json.loads((tmp_path / "predictions" / task.prediction_file_name).read_text())
    return scores, predictions["default"][split]


def vectors(model, processor, clips=None, texts=None, dim: int | None = None) -> torch.Tensor:
    """Ours, one at a time: `[N, D]`, or a nested dim of them."""
    with torch.no_grad():
        if clips is not None:
            inputs = [processor(audio=clip, sampling_rate=RATE, return_tensors="pt") for clip in clips]
            embeds = torch.cat([model.get_audio_features(**each).pooler_output for each in inputs])
        else:
            inputs = [processor(text=text, return_tensors="pt") for text in texts]
            embeds = torch.cat([model.get_text_features(**each).pooler_output for each in inputs])
    return embeds if dim is None else truncate_embeddings(embeds, dim)


@pytest.mark.parametrize("dim", [None, 8])
@pytest.mark.parametrize("name", ["AudioCapsT2ARetrieval", "AudioCapsA2TRetrieval"])
def test_retrieval_scores_are_ours(name, dim, folder, sharp_model, processor, clips, texts, tmp_path):
    task = retrieval_task(name, tmp_path / "data", clips, texts)
    scores, found = run(wrapped(folder, embed_dim=dim), task, tmp_path)
    audio, text = (
        vectors(sharp_model, processor, clips, dim=dim),
        vectors(sharp_model, processor, texts=texts, dim=dim),
    )
    similarities, relevant = (text @ audio.T).numpy(), np.arange(CLIPS) == np.arange(len(texts))[:, None] // CAPTIONS
    if name == "AudioCapsA2TRetrieval":
        similarities, relevant = similarities.T, relevant.T
    rows, columns = ("text", "clip") if "T2A" in name else ("clip", "text")
    theirs = [
        [found[f"{rows}-{i}"][f"{columns}-{j}"] for j in range(similarities.shape[1])]
        for i in range(similarities.shape[0])
    ]
    np.testing.assert_allclose(theirs, similarities, atol=1e-5)
    for k in (1, 5, 10):
        assert scores[f"hit_rate_at_{k}"] == pytest.approx(recall_at_k(similarities, relevant, k), abs=1e-5)
    assert scores["map_at_10"] == pytest.approx(mean_average_precision(similarities, relevant, 10), abs=1e-5)
    assert 0 < scores["hit_rate_at_5"] < 1


def test_zero_shot_scores_are_ours(folder, sharp_model, processor, clips, tmp_path, monkeypatch):
    """ESC-50's own task with five labels; they come as whole sentences, and no prompt is put before them."""
    audio, text = vectors(sharp_model, processor, clips), vectors(sharp_model, processor, texts=LABELS)
    similarities = (audio @ text.T).numpy()
    best = similarities.argmax(1)
    targets = np.where(
        np.arange(CLIPS) % 3, best, np.arange(CLIPS) % len(LABELS)
    )  # random weights, but right and wrong
    rows = [{"audio": sound(clip), "target": int(target)} for clip, target in zip(clips, targets, strict=True)]
    task = pointed("ESC50_Zeroshot", tmp_path / "data", default={"train": rows})
    monkeypatch.setattr(task, "get_candidate_labels", lambda: LABELS)
    scores, found = run(wrapped(folder), task, tmp_path)
    np.testing.assert_allclose(found, similarities, atol=1e-5)
    assert scores["accuracy"] == pytest.approx(zero_shot_accuracy(similarities, targets), abs=1e-12)
    assert scores["f1"] == pytest.approx(f1_score(targets, best, average="macro"), abs=1e-12)
    assert 0 < scores["accuracy"] < 1


def test_clips_over_30_s_are_refused_or_cut_as_configured(folder, sharp_model, processor, texts, tmp_path):
    clips = [tone(300, 1.0), tone(700, 30.5, 1)]
    task = retrieval_task("AudioCapsT2ARetrieval", tmp_path / "data", clips, texts[:4])
    with pytest.raises(ValueError, match="cut it into windows"):
        run(wrapped(folder), task, tmp_path)
    _, found = run(wrapped(folder, max_samples=30 * RATE), task, tmp_path)
    audio = vectors(sharp_model, processor, [clips[0], clips[1][: 30 * RATE]])
    expected = (vectors(sharp_model, processor, texts=texts[:4]) @ audio.T).numpy()
    theirs = [[found[f"text-{i}"][f"clip-{j}"] for j in range(2)] for i in range(4)]
    np.testing.assert_allclose(theirs, expected, atol=1e-5)


def test_mteb_must_be_given_the_audio_modality(folder, clips, texts, tmp_path):
    """Why docs/maeb.md names the modalities: mteb takes every SentenceTransformer in a local folder for text alone."""
    task = retrieval_task("AudioCapsT2ARetrieval", tmp_path / "data", clips, texts)
    encoder = SentenceTransformerEncoderWrapper(str(folder), trust_remote_code=True, device="cpu")
    with pytest.raises(ValueError, match=r"supports \['text'\]"):
        run(encoder, task, tmp_path)


def test_the_draft_of_a_file_for_mteb_gives_our_vectors(folder, clips, texts, tmp_path):
    """docs/maeb.md's `wavlink_models.py`, of long clips too."""
    page = (Path(__file__).parents[2] / "docs/maeb.md").read_text(encoding="utf-8")
    (code,) = (code for code in snippets.blocks(page, "text") if "class WavLinkWrapper" in code)
    draft = {"__name__": "wavlink_models"}
    exec(code, draft)
    encoder = draft["WavLinkWrapper"](str(folder), device="cpu", embed_dim=16)
    ours = Embedder(folder)
    sounds = [*clips[:3], np.concatenate([clips[4], tone(900, 61.0)])]
    about = {"task_metadata": mteb.get_task("AudioCapsT2ARetrieval").metadata, "hf_split": "test", "hf_subset": "x"}
    for rows, expected in {
        "audio": np.stack([*ours.embed_files([sound(clip) for clip in sounds])]),
        "text": ours.embed_text(texts[:4]),
    }.items():
        dataset = Dataset.from_dict({rows: [*map(sound, sounds)] if rows == "audio" else texts[:4]})
        found = encoder.encode(DataLoader(dataset, batch_size=2), show_progress_bar=False, **about)
        np.testing.assert_allclose(found, truncate_embeddings(torch.tensor(expected), 16), atol=1e-5)
    meta = draft["wavlink_base"]
    config = WavLinkConfig.for_size("base")
    with torch.device("meta"):
        assert meta.n_parameters == WavLinkModel(config).num_parameters()
    assert meta.embed_dim == config.matryoshka_dims and meta.max_tokens == config.text_config.max_position_embeddings
    assert meta.citation == mteb_models.model_meta(str(folder), "me/tiny").citation


def similarities_of(found: dict) -> np.ndarray:
    """`[texts, clips]`."""
    return np.array([[found[f"text-{i}"][f"clip-{j}"] for j in range(CLIPS)] for i in range(len(found))])


def test_retrieval_of_stored_vectors(folder, sharp_model, processor, clips, texts, tmp_path):
    """As docs/storage.md has it: documents are stored in 16 bits, queries are not."""

    class Stored(SentenceTransformerEncoderWrapper):
        def encode(self, inputs, *, prompt_type=None, **options):
            embeds = super().encode(inputs, prompt_type=prompt_type, **options)
            return np.asarray(embeds).astype(np.float16) if prompt_type == "document" else embeds

    task = retrieval_task("AudioCapsT2ARetrieval", tmp_path / "data", clips, texts)
    scores, found = run(wrapped(folder, Stored, embed_dim=16), task, tmp_path)
    audio, text = vectors(sharp_model, processor, clips), vectors(sharp_model, processor, texts=texts)
    names, manifest = [f"{number}.wav" for number in range(CLIPS)], index_files.manifest()
    manifest = dataclasses.replace(manifest, dims=audio.shape[1], matryoshka_dims=[16], dim=16)
    with Table.create(tmp_path / "index", manifest) as table:
        for name, vector in zip(names, audio.numpy(), strict=True):
            table.append(window_rows(manifest, Sound(name, 1, 1, ""), [(0.0, 1.0)], vector[None], windows=1))
    ranked = [nearest(table, query, CLIPS) for query in text.numpy()]
    rows = np.array([[names.index(path) for path in found["path"].to_pylist()] for found, _ in ranked])
    cosines = np.stack([scores for _, scores in ranked])
    np.testing.assert_allclose(np.take_along_axis(similarities_of(found), rows, 1), cosines, atol=1e-3)
    right = rows[:, :5] == np.arange(len(texts))[:, None] // CAPTIONS
    assert scores["hit_rate_at_5"] == pytest.approx(right.any(1).mean(), abs=1e-5)


def test_compression_of_mteb_takes_our_vectors(folder, sharp_model, processor, clips, texts, tmp_path):
    """Its binary is 0 and 1, of queries too."""
    task = retrieval_task("AudioCapsT2ARetrieval", tmp_path / "data", clips, texts)
    encoder = CompressionWrapper(wrapped(folder, embed_dim=16), OutputDType.BINARY)
    _, found = run(encoder, task, tmp_path)
    audio, text = (
        torch.nn.functional.normalize((vectors(sharp_model, processor, **inputs)[:, :16] > 0).float(), dim=-1)
        for inputs in ({"clips": clips}, {"texts": texts})
    )
    np.testing.assert_allclose(similarities_of(found), (text @ audio.T).numpy(), atol=1e-5)


def test_mteb_cannot_score_the_precision_of_sentence_transformers(folder, clips, texts, tmp_path):
    """Why docs/maeb.md has no `encode_kwargs={"precision": "int8"}`: mteb takes no cosine of whole numbers."""
    task = retrieval_task("AudioCapsT2ARetrieval", tmp_path / "data", clips, texts)
    with pytest.raises(RuntimeError, match="floating point"):
        run(wrapped(folder), task, tmp_path, precision="int8")
