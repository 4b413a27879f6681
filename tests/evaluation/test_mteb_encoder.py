"""`wavlink.register_mteb`: mteb loads our models by name, and its tasks of every class in MAEB get our vectors.

The tasks are MAEB's own, on parquet folders that stand for the Hub's data sets, with sounds as files in them; neither
torchcodec nor torchaudio is imported. Retrieval tasks decode a row by torchcodec when they load, so theirs are arrays.
"""

import dataclasses
import io
import sys
from collections.abc import Callable

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from sklearn.metrics import average_precision_score
from torch.utils.data import DataLoader

from tests.conftest import RATE, WORDS, tone
from tests.mteb_tasks import file, pointed, sound, surroundings  # noqa: F401
from wavlink import Embedder, register_mteb
from wavlink.evaluation.metrics import mean_average_precision, recall_at_k, zero_shot_accuracy

mteb = pytest.importorskip("mteb", reason="mteb, of the extras maeb and dev, is not installed")
from mteb.models import ModelMeta  # noqa: E402
from mteb.models.abs_encoder import AbsEncoder  # noqa: E402
from mteb.models.model_implementations import MODEL_REGISTRY  # noqa: E402
from mteb.types import PromptType  # noqa: E402

from wavlink.evaluation.mteb_encoder import WavLinkEncoder  # noqa: E402

pytestmark = pytest.mark.usefixtures("surroundings", "no_decoders")
KINDS, EACH = (200, 900, 3000), 10  # Hz; clips of each
RATES = (8000, RATE, 44100)


@pytest.fixture
def no_decoders(monkeypatch):
    for name in ("torchcodec", "torchaudio"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def folder(sharp_model, processor, tmp_path) -> str:
    sharp_model.save_pretrained(tmp_path / "wavlink")
    processor.save_pretrained(tmp_path / "wavlink")
    return str(tmp_path / "wavlink")


@pytest.fixture
def registry():
    """mteb's models as before each test."""
    kept = dict(MODEL_REGISTRY)
    yield MODEL_REGISTRY
    MODEL_REGISTRY.clear()
    MODEL_REGISTRY.update(kept)


@pytest.fixture
def meta(registry, folder) -> ModelMeta:
    return register_mteb(folder, "me/tiny")


@pytest.fixture
def encoder(meta) -> WavLinkEncoder:
    return meta.load_model("cpu")


@pytest.fixture
def ours(folder) -> Callable[[list], np.ndarray]:
    """Vectors of sounds or texts, one at a time: `[rows, D]`."""
    embedder = Embedder(folder)

    def one(value) -> np.ndarray:
        return embedder.embed_text([value])[0] if isinstance(value, str) else next(embedder.embed_files([value]))

    return lambda values: np.stack([one(value) for value in values])


@dataclasses.dataclass
class Clips:
    """Sounds of three kinds, of different lengths and rates, in an order that mixes the kinds."""

    kinds: np.ndarray
    files: list[dict]

    @property
    def arrays(self) -> list[dict]:
        """The same, decoded."""
        read = [soundfile.read(io.BytesIO(clip["bytes"]), dtype="float32") for clip in self.files]
        return [{"array": samples, "sampling_rate": rate} for samples, rate in read]


@pytest.fixture
def clips() -> Clips:
    kinds, files = np.tile(np.arange(len(KINDS)), EACH), []
    for number, kind in enumerate(kinds):
        rate = RATES[number // len(KINDS) % len(RATES)]
        clip = tone(KINDS[kind] * (1 + 0.02 * number) * RATE / rate, (0.2 + 0.013 * number) * rate / RATE, number)
        files.append(file(clip, rate))
    return Clips(kinds, files)


def texts_of(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 3 + number % 4, replace=False)) for number in range(count)]


def encode(encoder, dataset: Dataset, prompt_type=None, task="AudioCapsT2ARetrieval") -> np.ndarray:
    about = {"task_metadata": mteb.get_task(task).metadata, "hf_split": "test", "hf_subset": "default"}
    return encoder.encode(DataLoader(dataset, batch_size=2), prompt_type=prompt_type, **about)


def run(encoder, task, batch_size: int = 4) -> dict:
    """The scores of a task's only split and subset."""
    (result,) = mteb.evaluate(
        encoder,
        task,
        cache=None,
        co2_tracker=False,
        show_progress_bar=False,
        encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
    ).task_results
    ((scores,),) = result.scores.values()
    return scores


class Given(AbsEncoder):
    """Vectors that were computed before, by the bytes of the sound."""

    def __init__(self, meta: ModelMeta, files: list[dict], vectors: np.ndarray):
        self.mteb_model_meta = meta
        self.vectors = {sound["bytes"]: vector for sound, vector in zip(files, vectors, strict=True)}

    def encode(self, inputs, **about) -> np.ndarray:
        values = inputs.dataset.data.column("audio").combine_chunks().field("bytes").to_pylist()
        indices = inputs.dataset._indices
        values = values if indices is None else [values[i] for i in indices.column(0).to_pylist()]
        return np.stack([self.vectors[value] for value in values])


# -- the classes of MAEB -------------------------------------------------------------------------------------------


def retrieval(folder, clips, texts, way: str):
    """A task, and which of its documents `[queries, documents]` are relevant."""
    sounds = [{"id": f"clip-{i}", "audio": clip} for i, clip in enumerate(clips.arrays)]
    captions = [{"id": f"text-{i}", "text": text} for i, text in enumerate(texts)]
    relevant = clips.kinds[: len(texts), None] == clips.kinds[None]
    pairs = [(f"text-{i}", f"clip-{j}") for i, j in zip(*np.nonzero(relevant), strict=True)]
    sides = (captions, sounds) if way == "t2a" else (sounds, captions)
    pairs = pairs if way == "t2a" else [pair[::-1] for pair in pairs]
    qrels = [{"query-id": query, "corpus-id": answer, "score": 1} for query, answer in pairs]
    name = {"t2a": "MACST2ARetrieval", "a2t": "AudioCapsA2TRetrieval"}[way]
    configs = {"queries": sides[0], "corpus": sides[1], "qrels": qrels}
    return pointed(name, folder, **{key: {"test": rows} for key, rows in configs.items()}), relevant


@pytest.mark.parametrize("way", ["t2a", "a2t"])
def test_retrieval(way, encoder, ours, clips, tmp_path):
    texts = texts_of(12)
    task, relevant = retrieval(tmp_path / "data", clips, texts, way)
    scores, similarities = run(encoder, task), ours(texts) @ ours(clips.files).T
    similarities, relevant = (similarities, relevant) if way == "t2a" else (similarities.T, relevant.T)
    for k in (1, 5, 10):
        assert scores[f"hit_rate_at_{k}"] == pytest.approx(recall_at_k(similarities, relevant, k), abs=1e-5)
    assert 0 < scores["hit_rate_at_1"] < 1
    again, _ = retrieval(tmp_path / "again", clips, texts, way)
    assert run(encoder, again, batch_size=32) == scores


def test_reranking(encoder, ours, clips, tmp_path):
    rng, queries, ranked = np.random.default_rng(0), range(6), {}
    for query in queries:
        ranked[query] = rng.choice(np.arange(len(queries), len(clips.files)), 8, replace=False)
    rows = [{"id": f"clip-{i}", "audio": clip} for i, clip in enumerate(clips.arrays)]
    qrels = [
        {"query-id": f"clip-{query}", "corpus-id": f"clip-{row}", "score": int(clips.kinds[row] == clips.kinds[query])}
        for query, found in ranked.items()
        for row in found
    ]
    top = [{"query-id": f"clip-{i}", "corpus-ids": [f"clip-{row}" for row in rows]} for i, rows in ranked.items()]
    configs = {"queries": rows[: len(queries)], "corpus": rows, "qrels": qrels, "top_ranked": top}
    configs = {key: {"test": rows} for key, rows in configs.items()}
    scores = run(encoder, pointed("GTZANAudioReranking", tmp_path / "data", **configs))
    vectors = ours(clips.files)
    similarities = np.stack([vectors[ranked[query]] @ vectors[query] for query in queries])
    relevant = np.stack([clips.kinds[ranked[query]] == clips.kinds[query] for query in queries])
    assert scores["main_score"] == pytest.approx(mean_average_precision(similarities, relevant, 8), abs=1e-5)
    assert 0 < scores["main_score"] < 1


def test_zero_shot(encoder, ours, clips, tmp_path, monkeypatch):
    labels = texts_of(8)
    similarities = ours(clips.files) @ ours(labels).T
    right = similarities.argmax(1)
    right[::3] = (right[::3] + 1) % len(labels)  # random weights, but right and wrong
    rows = [{"audio": clip, "labels": int(label)} for clip, label in zip(clips.files, right, strict=True)]
    task = pointed("RavdessZeroshot", tmp_path / "data", default={"train": rows})
    monkeypatch.setattr(task, "get_candidate_labels", lambda: labels)
    scores = run(encoder, task)
    assert scores["accuracy"] == pytest.approx(zero_shot_accuracy(similarities, right), abs=1e-12)
    assert scores["accuracy"] == pytest.approx(2 / 3)


def test_pair_classification(encoder, ours, clips, tmp_path):
    pairs = [(i, (7 * i + 3) % len(clips.files)) for i in range(len(clips.files))]
    same = [int(clips.kinds[i] == clips.kinds[j]) for i, j in pairs]
    rows = [
        {"audio1": clips.files[i], "audio2": clips.files[j], "label": label}
        for (i, j), label in zip(pairs, same, strict=True)
    ]
    same[0] = rows[0]["label"] = 1 - same[0]
    scores = run(encoder, pointed("CREMADPairClassification", tmp_path / "data", default={"test": rows}))
    vectors = ours(clips.files)
    cosines = [vectors[i] @ vectors[j] for i, j in pairs]
    assert scores["cosine_ap"] == pytest.approx(average_precision_score(same, cosines), abs=1e-5)
    assert 0 < scores["cosine_ap"] < 1


def labelled(name: str, folder, clips):
    """A task that knows clips by their kinds."""
    rows = [{"audio": clip, "label": int(kind)} for clip, kind in zip(clips.files, clips.kinds, strict=True)]
    if name == "FSD2019Kaggle":
        rows = [{"audio": row["audio"], "sound": [row["label"], 3 + i % 2]} for i, row in enumerate(rows)]
        splits = {"train": rows[: 5 * len(KINDS)], "test": rows[5 * len(KINDS) :]}
        return pointed(name, folder, hf_subsets=["curated"], curated=splits)
    if name == "BeijingOpera":
        rows = [{**row, "label": row["label"] % 2} for row in rows]  # a fold of few clips may lack a third class
        return pointed(name, folder, default={"train": rows})
    return pointed(name, folder, default={"test": rows})


@pytest.mark.parametrize("name", ["BeijingOpera", "VehicleSoundClustering", "FSD2019Kaggle"])
def test_classification_clustering_and_multilabel(name, encoder, ours, clips, meta, tmp_path):
    """Their classifiers and clusters are mteb's: they are those of our vectors, computed one at a time."""
    scores = run(encoder, labelled(name, tmp_path / "data", clips))
    given = Given(meta, clips.files, ours(clips.files))
    expected = run(given, labelled(name, tmp_path / "again", clips))
    assert scores["main_score"] == pytest.approx(expected["main_score"], abs=1e-6)
    assert 0 < scores["main_score"] < 1
    order = np.random.default_rng(0).permutation(len(clips.files))  # the vectors of other clips
    other = Given(meta, clips.files, ours(clips.files)[order])
    assert run(other, labelled(name, tmp_path / "other", clips))["main_score"] < scores["main_score"]


def test_every_class_of_maeb_is_run_here():
    here = ["MACST2ARetrieval", "GTZANAudioReranking", "RavdessZeroshot", "CREMADPairClassification"]
    here += ["BeijingOpera", "VehicleSoundClustering", "FSD2019Kaggle"]
    tasks = [task.metadata for task in mteb.get_benchmark("MAEB(v1)").tasks]
    assert {*here} <= {task.name for task in tasks}
    assert {task.type for task in tasks if task.name in here} == {task.type for task in tasks}


# -- the encoder ---------------------------------------------------------------------------------------------------


def test_sounds_are_those_of_embedder_at_any_rate(encoder, ours, clips):
    from datasets import Audio

    stereo = file(np.stack([tone(300), tone(700, seed=1)], axis=1))
    files = [*clips.files[:9], stereo]
    dataset = Dataset.from_list([{"audio": clip} for clip in files]).cast_column("audio", Audio())
    np.testing.assert_allclose(encode(encoder, dataset), ours(files), atol=1e-5)
    arrays = [sound(tone(200 + 90 * number, 0.3, number)) for number in range(3)]
    dataset = Dataset.from_list([{"audio": array} for array in arrays])
    np.testing.assert_allclose(encode(encoder, dataset), ours(arrays), atol=1e-5)


def test_a_sound_is_encoded_once(encoder, ours, clips, monkeypatch):
    """In a call, and where vectors are kept in several."""
    given, embed = [], Embedder.embed_files

    def counted(self, files):
        files = [*files]
        given.append(len(files))
        return embed(self, files)

    order = [0, 1, 0, 2, 1, 3]
    dataset, expected = Dataset.from_list([{"audio": clips.files[row]} for row in order]), ours(clips.files[:4])
    monkeypatch.setattr(Embedder, "embed_files", counted)
    for kept, times in ((None, [4, 4]), ({}, [4])):
        encoder.kept = kept
        given.clear()
        for _ in range(2):
            np.testing.assert_allclose(encode(encoder, dataset), expected[order], atol=1e-5)
        assert given == times


def test_long_clips_are_covered_by_windows_or_cut(meta, encoder, ours):
    clips = [tone(300, 1.0), np.concatenate([tone(300, 30.0), tone(2500, 10.0)])]
    dataset = Dataset.from_list([{"audio": file(clip)} for clip in clips])
    np.testing.assert_allclose(encode(encoder, dataset), ours([sound(clip) for clip in clips]), atol=1e-5)
    first = meta.load_model("cpu", long_clips="first")
    cut = [sound(clip[: 30 * RATE]) for clip in clips]
    np.testing.assert_allclose(encode(first, dataset), ours(cut), atol=1e-5)
    assert np.abs(ours(cut)[1] - ours([sound(clips[1])])[0]).max() > 1e-3
    assert encoder.mteb_model_meta.loader_kwargs == {"long_clips": "windows"}
    assert encoder.mteb_model_meta.experiment_name is None
    assert first.mteb_model_meta.experiment_name == "long_clips_first"


def test_prompts_stand_before_texts(meta, ours):
    prompts = {"query": "a sound of ", "AudioCapsA2TRetrieval-document": "this is "}
    encoder = meta.load_model("cpu", model_prompts=prompts)
    dataset = Dataset.from_dict({"text": ["the dog barks", "rain"]})
    plain, query = ours(["the dog barks", "rain"]), ours(["a sound of the dog barks", "a sound of rain"])
    np.testing.assert_allclose(encode(encoder, dataset), plain, atol=1e-5)
    np.testing.assert_allclose(encode(encoder, dataset, PromptType.query), query, atol=1e-5)
    found = encode(encoder, dataset, PromptType.document, "AudioCapsA2TRetrieval")
    np.testing.assert_allclose(found, ours(["this is the dog barks", "this is rain"]), atol=1e-5)
    with pytest.warns(UserWarning, match="not valid"), pytest.raises(KeyError):
        meta.load_model("cpu", model_prompts={"no such task": "x"})


def test_nested_dims_are_cut_and_normalised(meta, ours, clips):
    encoder = meta.load_model("cpu", embed_dim=8)
    vectors = ours(clips.files[:3])[:, :8]
    dataset = Dataset.from_list([{"audio": clip} for clip in clips.files[:3]])
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(encode(encoder, dataset), expected, atol=1e-5)
    assert encoder.mteb_model_meta.embed_dim == 8 and encoder.mteb_model_meta.experiment_name == "embed_dim_8"
    with pytest.raises(ValueError, match="nested dims"):
        meta.load_model("cpu", embed_dim=7)


def test_rows_of_a_sound_and_a_text_are_their_sum(encoder, ours, clips):
    dataset = Dataset.from_list([{"audio": clip, "text": "rain"} for clip in clips.files[:2]])
    both = ours(clips.files[:2]) + ours(["rain"])
    expected = both / np.linalg.norm(both, axis=1, keepdims=True)
    np.testing.assert_allclose(encode(encoder, dataset), expected, atol=1e-5)
    with pytest.raises(ValueError, match="neither sounds nor texts, but image"):
        encode(encoder, Dataset.from_dict({"image": [1]}))


@pytest.mark.parametrize("long_clips", ["windows", "first"])
def test_a_sound_that_cannot_be_read_is_named(long_clips, meta, clips):
    encoder = meta.load_model("cpu", long_clips=long_clips)
    dataset = Dataset.from_list([{"audio": clips.files[0]}, {"audio": {"bytes": b"no sound", "path": "x.wav"}}])
    with pytest.raises(ValueError, match=r"AudioCapsT2ARetrieval, default/test: the sound of row 1: .*x\.wav"):
        encode(encoder, dataset)


# -- mteb.get_model ------------------------------------------------------------------------------------------------


def test_a_folder_is_loaded_by_its_name(registry, meta, folder, ours):
    encoder = mteb.get_model("me/tiny", device="cpu")
    dataset = Dataset.from_dict({"text": ["the dog barks"]})
    np.testing.assert_allclose(encode(encoder, dataset), ours(["the dog barks"]), atol=1e-5)
    assert encoder.mteb_model_meta.revision == meta.revision == Embedder(folder).revision.replace(":", "-")
    assert mteb.get_model("me/tiny", embed_dim=16).embed_dim == 16
    with pytest.raises(ValueError, match="one of the nested dims"):
        mteb.get_model("me/tiny", embed_dim=7)
    with pytest.raises(ValueError, match="long_clips must be one of windows, first"):
        mteb.get_model("me/tiny", long_clips="random")
    assert "/" not in str(meta.to_dict()["loader_kwargs"])  # results name no folder of this machine
    assert register_mteb(folder).name == "local/wavlink"


def test_weights_that_changed_are_not_filed_under_the_former_revision(meta, folder, sharp_model):
    with torch.no_grad():
        sharp_model.audio_model.global_token += 1
    sharp_model.save_pretrained(folder)
    with pytest.raises(ValueError, match="call register_mteb again"):
        mteb.get_model("me/tiny")
    register_mteb(folder, "me/tiny")
    assert mteb.get_model("me/tiny").mteb_model_meta.revision != meta.revision


def test_a_bundled_model_has_its_own_name(registry, tiny_bundle):
    meta = register_mteb("wavlink-tiny")
    assert meta.name == "wavlink/wavlink-tiny" and register_mteb().name == meta.name
    for name in ("wavlink-tiny", "wavlink/wavlink-tiny"):
        encoder = mteb.get_model(name, device="cpu")
        assert encoder.model.name == "wavlink-tiny" and encoder.mteb_model_meta.name == meta.name


def test_facts_that_the_model_does_not_tell_are_given(registry, folder):
    facts = {"languages": ["eng-Latn"], "license": "apache-2.0", "training_datasets": {"AudioCapsT2ARetrieval"}}
    meta = register_mteb(folder, "me/tiny", **facts)
    assert {name: getattr(meta, name) for name in facts} == facts
    assert meta.modalities == ["audio", "text"] and meta.n_parameters == Embedder(folder).parameters
    with pytest.raises(ValueError, match="organization/model_name"):
        register_mteb(folder, "tiny")


def test_missing_mteb_names_the_extra(monkeypatch, folder):
    for name in [name for name in sys.modules if name.partition(".")[0] == "mteb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(ImportError, match=r"mteb is not installed: pip install .*\[maeb\]"):
        register_mteb(folder)
