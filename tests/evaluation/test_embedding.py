"""Embedding a split: batches, windows, unreadable clips, and resumption."""

import functools

import datasets
import pytest
import torch

from processing.collator import caption_ids
from tests.conftest import RATE, tone
from tests.helpers import wav
from wavlink.evaluation import embed_split as embedding
from wavlink.evaluation.embed_split import embed_audio, embed_dataset, embed_text, fingerprint, open_store


def rows_of(clips) -> list[dict]:
    return [{"audio": {"array": clip, "sampling_rate": RATE}} for clip in clips]


CLIPS = [tone(300 * (i + 1), 0.1 * (5 - i), i) for i in range(5)]


def test_the_order_and_size_of_batches_change_no_vector(sharp_model, processor):
    alone = embed_audio(sharp_model, processor, rows_of(CLIPS), [0.0] * 5, batch_size=1, progress=False)
    lengths = [len(clip) for clip in CLIPS]
    by_length = embed_audio(sharp_model, processor, rows_of(CLIPS), lengths, batch_size=3, progress=False)
    torch.testing.assert_close(by_length.vectors, alone.vectors, atol=1e-5, rtol=0)
    assert alone.rows == by_length.rows == [0, 1, 2, 3, 4] and alone.windowed == 0


def test_texts_come_back_in_their_order(sharp_model, processor):
    texts = ["a dog", "the low bell rings and rings", "rain"]
    alone = torch.cat([embed_text(sharp_model, processor, [text]) for text in texts])
    torch.testing.assert_close(embed_text(sharp_model, processor, texts, batch_size=2), alone, atol=1e-5, rtol=0)


def test_a_clip_that_cannot_be_read_is_named_and_the_others_go_on(sharp_model, processor, caplog):
    rows = rows_of(CLIPS)
    rows[1]["audio"] = {"path": "gone.wav", "bytes": None}
    rows[3]["audio"] = {"path": "text.wav", "bytes": b"no sound at all"}
    results = embed_audio(sharp_model, processor, rows, [0.0] * 5, batch_size=2, progress=False)
    assert results.rows == [0, 2, 4] and sorted(results.unreadable) == [1, 3]
    assert "gone.wav does not exist" in results.unreadable[1] and "cannot read text.wav" in results.unreadable[3]
    whole = embed_audio(sharp_model, processor, rows_of(CLIPS), [0.0] * 5, batch_size=2, progress=False)
    torch.testing.assert_close(results.vectors, whole.vectors[[0, 2, 4]], atol=1e-5, rtol=0)
    for row in rows:
        row["audio"] = {"path": "gone.wav", "bytes": None}
    with pytest.raises(ValueError, match="none of the 5 clips can be read; the first: gone.wav"):
        embed_audio(sharp_model, processor, rows, [0.0] * 5, progress=False)


def test_a_long_clip_is_the_mean_of_its_windows(sharp_model, processor):
    long = tone(500, 70.0, 3)
    results = embed_audio(sharp_model, processor, rows_of([CLIPS[0], long, CLIPS[1]]), [0, 1, 2], progress=False)
    assert results.windowed == 1
    starts = [0, 20 * RATE, 40 * RATE]  # three windows of 30 s, the last at the end
    windows = [long[start : start + 30 * RATE] for start in starts]
    parts = embed_audio(sharp_model, processor, rows_of(windows), [0] * 3, progress=False).vectors
    torch.testing.assert_close(
        results.vectors[1], torch.nn.functional.normalize(parts.mean(0), dim=-1), atol=1e-5, rtol=0
    )
    short = embed_audio(sharp_model, processor, rows_of(CLIPS[:2]), [0, 1], progress=False).vectors
    torch.testing.assert_close(results.vectors[[0, 2]], short, atol=1e-5, rtol=0)


class Stopped(Exception):
    pass


class Counting:
    """Rows that count how often each is read, and fail after `most` of them."""

    def __init__(self, rows, most=10**6):
        self.rows, self.most, self.read = rows, most, []

    def __getitem__(self, index):
        self.read.append(index)
        if len(self.read) > self.most:
            raise Stopped
        return self.rows[index]


def test_stopped_embedding_goes_on_where_it_was(sharp_model, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "_BATCHES_A_PART", 1)
    rows = rows_of(CLIPS)
    rows[2]["audio"] = {"path": "gone.wav", "bytes": None}
    store = open_store(tmp_path / "parts", {"model": "a"})
    options = {"lengths": [0, 1, 2, 3, 4], "batch_size": 2, "progress": False}
    whole = embed_audio(sharp_model, processor, rows, **options)
    with pytest.raises(Stopped):
        embed_audio(sharp_model, processor, Counting(rows, most=4), store=store, **options)
    assert open_store(tmp_path / "parts", {"model": "a"}) == store
    rest = Counting(rows)
    results = embed_audio(sharp_model, processor, rest, store=store, **options)
    assert sorted({*rest.read}) == [2, 4]  # the last clip, and the name of the one that was unreadable before
    assert torch.equal(results.vectors, whole.vectors) and results.unreadable == whole.unreadable


def test_parts_of_another_evaluation_are_removed(tmp_path, caplog):
    store = open_store(tmp_path / "parts", {"model": "a"})
    (store / "part-000000.safetensors").write_bytes(b"")
    open_store(tmp_path / "parts", {"model": "a"})
    assert (store / "part-000000.safetensors").exists()
    open_store(tmp_path / "parts", {"model": "b"})
    assert not (store / "part-000000.safetensors").exists()


def test_a_model_that_gives_nan_is_refused(sharp_model, processor, monkeypatch):
    real = sharp_model.get_audio_features

    def broken(**inputs):
        output = real(**inputs)
        output.pooler_output[0] = torch.nan
        return output

    monkeypatch.setattr(sharp_model, "get_audio_features", broken)
    with pytest.raises(ValueError, match="the model gives row 0 a vector with NaN"):
        embed_audio(sharp_model, processor, rows_of(CLIPS[:1]), [0], progress=False)


def captioned(captions: list[list[str]]) -> datasets.Dataset:
    rows = [{"audio": {"bytes": stored(i), "path": f"{i}.wav"}} for i in range(len(captions))]
    for row, texts in zip(rows, captions, strict=True):
        row["caption"] = texts
    dataset = datasets.Dataset.from_list(rows)
    return dataset.cast(datasets.Features({**dataset.features, "audio": datasets.Audio(decode=False)}))


@functools.cache  # libsndfile writes the time into a file
def stored(number: int) -> bytes:
    return wav(CLIPS[number])


def test_captions_are_shared_or_separate(sharp_model, processor):
    dataset = captioned([["a dog", "a loud dog"], ["rain"], ["a dog"]])
    shared = embed_dataset(sharp_model, processor, dataset, ["caption"], progress=False)
    assert shared.texts == ["a dog", "a loud dog", "rain"]
    assert shared.correspondence.T.counts.tolist() == [2, 1, 1]
    separate = embed_dataset(sharp_model, processor, dataset, ["caption"], progress=False, share_captions=False)
    assert separate.texts == ["a dog", "a loud dog", "rain", "a dog"]
    assert separate.correspondence.queries.tolist() == [0, 0, 1, 2] and separate.correspondence.indices.tolist() == [
        0,
        1,
        2,
        3,
    ]
    assert torch.equal(separate.text, shared.text[[0, 1, 2, 0]])


def test_captions_are_shared_as_in_training(sharp_model, processor):
    """By `caption_key`, without case and outer space; each caption of AudioCaps and Clotho stays separate."""
    captions = [["A dog", "rain"], ["a dog ", "a dog"], ["Rain"]]
    embedded = embed_dataset(sharp_model, processor, captioned(captions), ["caption"], progress=False)
    assert embedded.texts == ["A dog", "rain"] and embedded.captions == [["A dog", "rain"], ["A dog"], ["rain"]]
    assert embedded.correspondence.T.counts.tolist() == [2, 2]
    ids = caption_ids(captions)
    for clip, row in enumerate(captions):
        for other, _ in enumerate(captions):
            shared = bool({*ids[clip, : len(row)].tolist()} & {*ids[other, : len(captions[other])].tolist()})
            assert shared == bool({*embedded.captions[clip]} & {*embedded.captions[other]})
    separate = embed_dataset(
        sharp_model, processor, captioned(captions), ["caption"], progress=False, share_captions=False
    )
    assert separate.texts == ["A dog", "rain", "a dog ", "a dog", "Rain"]


def test_captions_of_an_unreadable_clip_are_no_candidates(sharp_model, processor):
    dataset = captioned([["a dog"], ["rain"]])
    dataset = dataset.map(
        lambda row, i: {"audio": {"bytes": b"x", "path": "x.wav"}} if i == 0 else row, with_indices=True
    )
    dataset = dataset.cast_column("audio", datasets.Audio(decode=False))
    embedded = embed_dataset(sharp_model, processor, dataset, ["caption"], progress=False)
    assert embedded.texts == ["rain"] and embedded.rows == [1] and len(embedded.audio) == 1


def test_a_fingerprint_depends_on_captions_and_sounds():
    first = fingerprint(captioned([["a dog"], ["rain"]]))
    assert first == fingerprint(captioned([["a dog"], ["rain"]])) and len(first) == 16
    assert first != fingerprint(captioned([["a dog"], ["rains"]]))
    assert first != fingerprint(captioned([["a dog"]]))
