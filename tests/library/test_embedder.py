"""Embedder: the plain model's vectors in the order of the clips, taken lazily, by a thread that ends."""

import copy
import itertools
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pandas
import pytest
import soundfile
import torch
from transformers import ClapModel, ClapProcessor

from tests.clap_models import LONG, SHORT, save_clap
from tests.conftest import RATE, tone
from tests.htsat_models import RATE as CLAP_RATE
from wavlink import embedder as module
from wavlink.backends.torch_cpu import PackedLinear
from wavlink.embedder import Embedder, cover, cut_batches
from wavlink.loading import load_for_evaluation, revision

SECONDS = [0.4, 3.0, 0.7, 2.9, 0.1, 1.5, 0.45]
CLIPS = [tone(200 * (i + 1), seconds, i) for i, seconds in enumerate(SECONDS)]


@pytest.fixture
def embedder(sharp_model, processor) -> Embedder:
    return Embedder(sharp_model, processor)


@torch.no_grad()
def plain(model, processor, clips, rate=RATE) -> np.ndarray:
    """The model's own vectors, clip by clip."""
    inputs = [processor(audio=[clip], sampling_rate=rate, return_tensors="pt") for clip in clips]
    return np.concatenate([model.get_audio_features(**one).pooler_output.numpy() for one in inputs])


def vectors(embedder, clips, **options) -> np.ndarray:
    return np.stack(list(embedder.embed_clips(clips, **options)))


def close(found, expected, atol=1e-5):
    np.testing.assert_allclose(found, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("lookahead", [1, 2, 256])
def test_clips_get_the_models_vectors_in_order(sharp_model, processor, embedder, lookahead):
    expected = plain(sharp_model, processor, CLIPS)
    assert np.linalg.norm(expected[:, None] - expected, axis=-1)[~np.eye(len(CLIPS), dtype=bool)].min() > 1e-3
    found = vectors(embedder, CLIPS, lookahead=lookahead)
    assert found.dtype == np.float32 and found.shape == (len(CLIPS), embedder.dims)
    close(found, expected)
    close(np.linalg.norm(found, axis=1), 1)
    close(found, vectors(embedder, CLIPS[::-1])[::-1])
    close(found[3:4], vectors(embedder, CLIPS[3:4]))


def test_vectors_without_fast_kernels_and_with_padding_to_30_s(sharp_model, processor, monkeypatch):
    monkeypatch.setattr(processor.feature_extractor, "padding", "max_length")
    expected = plain(sharp_model, processor, CLIPS[:3])
    slow = Embedder(sharp_model, processor, fast_kernels=False)
    assert not any(isinstance(part, PackedLinear) for part in slow.model.modules())
    close(vectors(slow, CLIPS[:3]), expected)
    close(vectors(Embedder(sharp_model, processor), CLIPS[:3]), expected)


def test_given_model_is_not_changed(sharp_model, processor):
    before = revision(sharp_model)
    embedder = Embedder(sharp_model.train(), processor, dtype="bfloat16")
    assert revision(sharp_model) == before == embedder.revision and sharp_model.training
    assert embedder.model.dtype == torch.bfloat16 and not embedder.model.training
    with torch.no_grad():
        for weight in sharp_model.parameters():
            weight.zero_()
    assert np.isfinite(vectors(embedder, CLIPS[:2])).all()


@pytest.mark.parametrize(("dtype", "atol"), [("bfloat16", 0.1), ("float16", 0.01)])
def test_half_precision_is_close_and_normalised_in_fp32(model, processor, dtype, atol):
    found = vectors(Embedder(model, processor, dtype=dtype), CLIPS)
    close(found, plain(model, processor, CLIPS), atol)
    close(np.linalg.norm(found, axis=1), 1, 1e-6)


def test_a_callers_autocast_changes_no_vector(sharp_model, processor, embedder):
    expected = vectors(embedder, CLIPS[:2]), embedder.embed_text(["a dog", "rain"])
    with torch.autocast("cpu", torch.bfloat16):
        for again in (embedder, Embedder(sharp_model, processor, fast_kernels=False)):
            close(vectors(again, CLIPS[:2]), expected[0])
            close(again.embed_text(["a dog", "rain"]), expected[1])


def test_clips_are_read_lazily(embedder):
    taken = []
    endless = (taken.append(i) or CLIPS[i % 7] for i in itertools.count())
    found = embedder.embed_clips(endless, lookahead=4)
    assert not taken
    for done in range(1, 20):
        next(found)
        # What is done, the batches made ahead, and the lookahead being sorted: each at most one of 4 clips.
        assert len(taken) <= done + 4 * (3 + module._BATCHES_AHEAD)
    found.close()
    assert list(embedder.embed_clips(iter([]))) == []


def test_lookahead_is_limited_to_ten_minutes(embedder, monkeypatch):
    monkeypatch.setattr(module, "_BATCH_SECONDS", 0.5)
    taken = []
    found = embedder.embed_clips(taken.append(i) or CLIPS[5] for i in itertools.count())
    next(found)
    assert len(taken) < 40
    found.close()


def test_first_batch_needs_few_clips(embedder, monkeypatch):
    monkeypatch.setattr(module, "_BATCH_SECONDS", 4)
    monkeypatch.setattr(module, "_FIRST_SECONDS", 2)
    taken = []
    second = np.zeros(RATE, np.float32)
    batches = embedder._batches((taken.append(i) or second for i in itertools.count()), 256)
    # Windows of 2, 4, 8, 16, 32 clips and then of ten batches, of 4 clips each.
    found = [len(taken) for _ in zip(range(18), batches, strict=False)]
    assert found == [2, 6, *2 * [14], *4 * [30], *8 * [62], *2 * [102]]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "embedder"]


def test_closing_the_generator_ends_its_thread(embedder, tmp_path):
    found = embedder.embed_clips(itertools.cycle(CLIPS), lookahead=3)
    assert not threads()
    next(found)
    assert len(threads()) == 1
    found.close()
    assert not threads()
    soundfile.write(tmp_path / "a.wav", CLIPS[0], RATE)
    files = embedder.embed_files(itertools.repeat(tmp_path / "a.wav"))
    next(files)
    del files
    assert not threads()
    list(embedder.embed_clips(CLIPS[:1]))
    assert not threads()


class Broken(Exception):
    pass


def test_errors_of_the_clips_reach_the_caller(embedder):
    error = Broken("the disk is gone")

    def clips():
        yield from CLIPS[:3]
        raise error

    with pytest.raises(Broken) as caught:
        list(embedder.embed_clips(clips()))
    assert caught.value is error and not threads()
    with pytest.raises(Broken):
        list(embedder.embed_clips(clips(), lookahead=2))


@pytest.mark.parametrize(
    ("clip", "why"),
    [
        (np.zeros((2, 100), np.float32), r"clip 1 must be mono, .* got \[2, 100\] of float32"),
        (np.zeros(0, np.float32), "clip 1 must be mono"),
        (np.zeros(100, np.int16), "got .* of int16"),
        (np.array([0.0, np.nan], np.float32), "finite"),
        (np.zeros(RATE * 31, np.float32), "clip 1 has 31.00 s, the limit is 30 s: cut it"),
    ],
)
def test_a_wrong_clip_is_named(embedder, clip, why):
    with pytest.raises(ValueError, match=why):
        list(embedder.embed_clips([CLIPS[0], clip]))


def test_embed_files_yields_vectors_and_errors(sharp_model, processor, embedder, tmp_path):
    long = tone(500, 70.0, 3)
    for name, clip in (("a", CLIPS[0]), ("long", long), ("b", CLIPS[1])):
        soundfile.write(tmp_path / f"{name}.wav", clip, RATE, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no sound")
    names = ["gone.wav", "a.wav", "long.wav", "text.wav", "text.wav", "b.wav", "gone.wav"]
    found = list(embedder.embed_files([tmp_path / name for name in names]))
    refused = [place for place, value in enumerate(found) if isinstance(value, ValueError)]
    assert refused == [0, 3, 4, 6]
    assert "gone.wav does not exist" in str(found[0]) and "text.wav" in str(found[3])
    windows = [long[start * RATE : (start + 30) * RATE] for start in (0, 20, 40)]
    mean = plain(sharp_model, processor, windows).mean(0)
    close(found[2], mean / np.linalg.norm(mean))
    close(np.stack([found[1], found[5]]), plain(sharp_model, processor, CLIPS[:2]))
    assert list(embedder.embed_files(["gone.wav"]))[0].args and list(embedder.embed_files([])) == []


def test_a_batch_of_a_table(embedder, tmp_path):
    paths = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for path, clip in zip(paths, CLIPS, strict=False):
        soundfile.write(path, clip, RATE, subtype="FLOAT")
    table = {"path": np.array([str(paths[0]), "gone.wav", str(paths[1])]), "row": np.arange(3)}
    found = embedder(table)
    assert sorted(found) == ["embedding", "error", "path", "row"] and sorted(table) == ["path", "row"]
    assert found["embedding"].dtype == np.float32
    close(found["embedding"][[0, 2]], vectors(embedder, CLIPS[:2]))
    assert np.isnan(found["embedding"][1]).all()
    assert found["error"].tolist() == ["", "gone.wav does not exist or is not a file", ""]
    content = {"audio": np.array([path.read_bytes() for path in paths], dtype=object)}
    close(embedder(content)["embedding"], found["embedding"][[0, 2]])
    with pytest.raises(ValueError, match="needs a column 'path' or 'audio', it has sound"):
        embedder({"sound": table["path"]})


def test_texts(sharp_model, processor, embedder):
    texts = ["a dog", "the low bell rings and rings", "rain"]
    with torch.no_grad():
        alone = [sharp_model.get_text_features(**processor(text=text, return_tensors="pt")) for text in texts]
    close(embedder.embed_text(texts), torch.cat([one.pooler_output for one in alone]).numpy())
    assert embedder.embed_text([]).shape == (0, embedder.dims)
    for given in ("a dog", None, 3, ["a dog", 3]):
        with pytest.raises(ValueError, match="a list of strings"):
            embedder.embed_text(given)
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size must be 1 text or more, got {size}"):
            embedder.embed_text(texts, batch_size=size)


@pytest.mark.parametrize("text", ["\ud83d", "a \udcff bell"])
def test_half_a_surrogate_pair_is_refused_before_it_is_tokenized(embedder, text):
    with pytest.raises(ValueError, match=r"the text '.*\\ud.*' holds half of a surrogate pair, .* give it as UTF-8"):
        embedder.embed_text(["rain", text])


def test_texts_of_any_collection_keep_their_order(embedder):
    texts = ["the low bell rings and rings", "a dog", "rain"]
    expected = embedder.embed_text(texts)
    for given in (pandas.Series(texts, index=[2, 0, 1]), np.array(texts), dict.fromkeys(texts), iter(texts)):
        close(embedder.embed_text(given), expected)


@pytest.mark.parametrize("fusion", [False, True], ids=["unfused", "fused"])
def test_a_clap(fusion, tmp_path):
    folder = save_clap(tmp_path, fusion)
    with pytest.raises(ValueError, match="a ClapModel with a ClapProcessor .* give the folder or Hub id"):
        Embedder(ClapModel.from_pretrained(folder), ClapProcessor.from_pretrained(folder))
    embedder = Embedder(str(folder))
    assert embedder.max_seconds is None and embedder.sampling_rate == CLAP_RATE
    assert embedder.dims == 8 and embedder.matryoshka_dims == [8]
    clips = [*LONG, *SHORT]
    model, processor = load_for_evaluation(str(folder))
    close(vectors(embedder, clips), plain(model, processor, clips, CLAP_RATE))
    assert any(isinstance(part, PackedLinear) for part in embedder.model.modules())
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    for vector in embedder.embed_clips(iter(clips), lookahead=2):
        assert np.isfinite(vector).all()
    assert np.random.random() == expected


def test_pickled_embedder_reloads_its_folder_in_another_process(wavlink_folder, model, processor):
    embedder = Embedder(str(wavlink_folder))
    assert embedder.name == str(wavlink_folder) and embedder.revision == revision(model)
    assert embedder.max_seconds == 30 and embedder.sampling_rate == RATE
    assert embedder.dims == 32 and embedder.matryoshka_dims == [32, 16, 8, 4]
    written = pickle.dumps(embedder)
    assert len(written) < 1000
    close(vectors(pickle.loads(written), CLIPS), plain(model, processor, CLIPS))
    copied = pickle.loads(pickle.dumps(Embedder(model, processor)))
    close(vectors(copied, CLIPS), plain(model, processor, CLIPS))


class Titled(Embedder):
    """A subclass with a constructor and an attribute of its own."""

    def __init__(self, model: str, title: str):
        super().__init__(model, fast_kernels=False)
        self.title = title


def test_new_weights_in_the_same_folder_are_another_embedder(sharp_model, processor, tmp_path):
    """`datasets` keeps what an Embedder has computed by the hash of its pickle."""
    rows, model = str(tmp_path / "rows"), copy.deepcopy(sharp_model)
    soundfile.write(tmp_path / "a.wav", CLIPS[0], RATE, subtype="FLOAT")
    datasets.Dataset.from_dict({"path": [str(tmp_path / "a.wav")]}).save_to_disk(rows)
    processor.save_pretrained(tmp_path / "model")
    found, pickled = [], []
    for _ in range(2):
        model.save_pretrained(tmp_path / "model")
        embedder = Embedder(tmp_path / "model")
        found.append(datasets.load_from_disk(rows).map(embedder, batched=True)["embedding"][0])
        pickled.append(pickle.dumps(embedder))
        close(found[-1], vectors(embedder, CLIPS[:1])[0])
        model.audio_projection.weight.data.neg_()
    close(found[1], -np.array(found[0]))
    assert pickle.loads(pickled[1]).revision == embedder.revision
    with pytest.raises(ValueError, match="holds other weights now, .* make a new one"):
        pickle.loads(pickled[0])


def test_a_subclass_pickles_as_itself(wavlink_folder):
    for embedder in (Titled(str(wavlink_folder), "mine"), Embedder(str(wavlink_folder))):
        embedder.name = "random:mine"
        copied = pickle.loads(pickle.dumps(embedder))
        assert type(copied) is type(embedder) and copied.name == "random:mine"
        assert getattr(copied, "title", "mine") == "mine"
        again = pickle.loads(pickle.dumps(copied))
        assert type(again) is type(embedder) and len(pickle.dumps(copied)) < 1000


def test_what_is_refused(model, processor, wavlink_folder):
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'int4'"):
        Embedder(model, processor, dtype="int4")
    with pytest.raises(ValueError, match="needs its processor"):
        Embedder(model)
    with pytest.raises(ValueError, match="brings its own processor"):
        Embedder(str(wavlink_folder), processor)
    with pytest.raises(ValueError, match="revision='main' is of a Hub id"):
        Embedder(str(wavlink_folder), revision="main")
    with pytest.raises(ValueError, match="revision='main' is of a Hub id"):
        Embedder(model, processor, revision="main")
    wrapped = torch.nn.DataParallel(model), processor
    for pair in (wrapped, (model, processor.feature_extractor), (model.audio_model, processor), (3, processor)):
        with pytest.raises(ValueError, match="is no loaded model and its processor: give a WavLinkModel"):
            Embedder(*pair)
    with pytest.raises(ValueError, match="lookahead"):
        next(Embedder(model, processor).embed_clips(CLIPS, lookahead=0))


def test_batches_have_similar_lengths_within_the_budget():
    costs = [5, 1, 30, 5, 1, 6, 1, 29]
    assert cut_batches(costs, 18) == [[1, 4, 6], [0, 3, 5], [7], [2]]
    assert cut_batches(costs, 2) == [[1, 4], [6], [0], [3], [5], [7], [2]]
    assert cut_batches([], 2) == []


def test_windows_cover_a_clip():
    clip = np.arange(70)
    assert [(part[0], len(part)) for part in cover(clip, 30)] == [(0, 30), (20, 30), (40, 30)]
    assert [len(part) for part in cover(clip[:30], 30)] == [30] and len(cover(clip, None)) == 1


def test_texts_are_tokenized_by_one_thread_at_a_time(model, processor):
    """Padding and truncation are settings of a tokenizer of transformers, which another thread would change."""
    embedder, busy = Embedder(model, processor), threading.Lock()
    tokenizer = embedder.processor.tokenizer

    class Watched:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, *texts, **options):
            assert busy.acquire(blocking=False), "two threads at once"
            time.sleep(0.005)
            try:
                return tokenizer(*texts, **options)
            finally:
                busy.release()

    texts = [["rain"], ["the loud bell rings", "rain"]]
    expected = [embedder.embed_text(each) for each in texts]
    embedder.processor = copy.copy(embedder.processor)
    embedder.processor.tokenizer = Watched()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(embedder.embed_text, texts * 4))
    for vectors, exact in zip(found, expected * 4, strict=True):
        np.testing.assert_allclose(vectors, exact, rtol=0, atol=1e-5)
