"""Batches of several requests: who shares one, what fails alone, and what is refused where too many wait."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.conftest import RATE, tone
from tests.served import audio_item, serving
from wavlink.embedder import Embedder
from wavlink.serving.batching import Abandoned, BatchedEmbedder, Batcher, stopped_by
from wavlink.serving.errors import RequestError

EXACT = {"rtol": 0, "atol": 1e-5}


class Gated(Embedder):
    """An embedder that waits for `gate` before each batch, and keeps the batches."""

    def __init__(self, embedder: Embedder):
        vars(self).update(vars(embedder))
        self.gate, self.batches = threading.Event(), []

    def embed_text(self, texts, batch_size=256):
        self.batches.append(list(texts))
        assert self.gate.wait(60)
        return super().embed_text(texts, batch_size)


@pytest.fixture
def gated(embedder):
    return Gated(embedder)


@pytest.fixture
def batcher(gated):
    """A batcher whose embedder waits for its gate."""
    batcher = Batcher(gated)
    yield batcher
    gated.gate.set()
    batcher.close()


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def submit_behind(pool, batcher, gated, requests):
    """Submit a request, and the others while it is computed; their futures in order."""
    first = pool.submit(batcher.embed_texts, ["rain"])
    until(lambda: gated.batches)
    others = []
    for texts in requests:
        others.append(pool.submit(batcher.embed_texts, texts))
        until(lambda: batcher.waiting() == len(others))
    return [first, *others]


def test_requests_that_arrive_meanwhile_share_the_next_batch(batcher, gated, embedder):
    requests = [["a dog barks", "rain"], ["the bell rings"], ["cat"]]
    with ThreadPoolExecutor(4) as pool:
        futures = submit_behind(pool, batcher, gated, requests)
        gated.gate.set()
        answers = [future.result(60) for future in futures]
    assert gated.batches == [["rain"], ["a dog barks", "rain", "the bell rings", "cat"]]
    for (vectors, tokens), texts in zip(answers, [["rain"], *requests], strict=True):
        np.testing.assert_allclose(vectors, embedder.embed_text(texts), **EXACT)
        assert tokens == sum(len(ids) for ids in embedder.processor.tokenizer(texts)["input_ids"])


class OneByOne(Embedder):
    """An embedder that keeps the number of clips of each call, and waits for `gate` before each vector."""

    def __init__(self, embedder: Embedder):
        vars(self).update(vars(embedder))
        self.gate, self.calls = threading.Semaphore(1), []

    def embed_clips(self, clips, lookahead=256):
        clips = list(clips)
        self.calls.append(len(clips))
        for clip in clips:
            assert self.gate.acquire(timeout=60)
            if not clip.any():
                raise RuntimeError("silence")
            yield clip[:2]


def test_the_oldest_request_of_a_batch_is_answered_while_the_others_are_computed(embedder):
    clips = list(np.random.default_rng(0).normal(size=(32, 10 * RATE)).astype(np.float32))
    one_by_one, sizes = OneByOne(embedder), []
    batcher = Batcher(one_by_one, lambda kind, size, seconds: sizes.append((kind, size)))
    with ThreadPoolExecutor(33) as pool:
        first = pool.submit(batcher.embed_clips, clips[:1])
        first.result(60)
        waiting = pool.submit(batcher.embed_clips, clips[:1])
        until(lambda: len(one_by_one.calls) == 2)
        others = []
        for clip in clips:
            others.append(pool.submit(batcher.embed_clips, [clip]))
            until(lambda: batcher.waiting() == len(others))
        one_by_one.gate.release(2)
        waiting.result(60)
        (vector,) = others[0].result(60)
        assert not any(other.done() for other in others[1:]) and one_by_one.calls == [1, 1, 32]
        one_by_one.gate.release(31)
        found = [vector, *(other.result(60)[0] for other in others[1:])]
    batcher.close()
    np.testing.assert_array_equal(found, [clip[:2] for clip in clips])
    assert sizes == [("audio", 1), ("audio", 1), ("audio", 32)]


def test_an_error_after_the_first_answers_of_a_batch_is_that_of_its_own_request(embedder):
    clips = [np.full(4000, value, np.float32) for value in (0.1, 0, 0.2)]
    one_by_one = OneByOne(embedder)
    batcher = Batcher(one_by_one)
    with ThreadPoolExecutor(4) as pool:
        batcher.embed_clips(clips[:1])
        waiting = pool.submit(batcher.embed_clips, clips[:1])
        until(lambda: len(one_by_one.calls) == 2)
        others = []
        for clip in clips:
            others.append(pool.submit(batcher.embed_clips, [clip]))
            until(lambda: batcher.waiting() == len(others))
        one_by_one.gate.release(9)
        waiting.result(60)
        with pytest.raises(RuntimeError, match="silence"):
            others[1].result(60)
        found = [others[number].result(60)[0] for number in (0, 2)]
    batcher.close()
    assert one_by_one.calls == [1, 1, 3, 1, 1]  # what is answered already is not computed again
    np.testing.assert_array_equal(found, [clips[0][:2], clips[2][:2]])


def test_an_error_is_that_of_its_own_request(batcher, gated, embedder):
    requests = [["dog"], ["rain", "rain " * 40], ["cat"]]
    with ThreadPoolExecutor(4) as pool:
        futures = submit_behind(pool, batcher, gated, requests)
        gated.gate.set()
        with pytest.raises(RequestError, match="42 tokens, the model takes 32"):
            futures[2].result(60)
        for future, text in ((futures[1], "dog"), (futures[3], "cat")):
            np.testing.assert_allclose(future.result(60)[0], embedder.embed_text([text]), **EXACT)


def test_a_large_request_lets_others_in_between(batcher, gated):
    gated.gate.set()
    texts = [f"dog {number}" for number in range(150)]
    batcher.embed_texts(texts)
    assert [len(batch) for batch in gated.batches] == [64, 64, 22] and sum(gated.batches, []) == texts


def test_abandoned_requests_are_not_computed(batcher, gated):
    abandoned = threading.Event()

    def abandon():
        with stopped_by(abandoned):
            return batcher.embed_texts(["never"])

    with ThreadPoolExecutor(2) as pool:
        (first,) = submit_behind(pool, batcher, gated, [])
        second = pool.submit(abandon)
        until(lambda: batcher.waiting() == 1)
        abandoned.set()
        gated.gate.set()
        first.result(60)
        with pytest.raises(Abandoned):
            second.result(60)
    assert gated.batches == [["rain"]]


def test_the_batched_embedder_is_an_embedder(embedder):
    batcher = Batcher(embedder)
    batched = BatchedEmbedder(embedder, batcher)
    clips = [tone(300 + 50 * number, 0.2 + 0.1 * (number % 5), number) for number in range(90)]
    np.testing.assert_allclose(list(batched.embed_clips(iter(clips))), list(embedder.embed_clips(clips)), **EXACT)
    with pytest.raises(ValueError, match="clip 0 must be mono"):
        list(batched.embed_clips([np.array([np.nan], np.float32)]))
    assert batched.embed_text([]).shape == (0, embedder.dims) and list(batched.embed_clips([])) == []
    batcher.close()


def test_requests_over_the_queue_get_429_and_when_to_come_again(gated):
    with serving(gated, max_queue=2) as client, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(client.post, "/v1/embeddings", {"input": "rain"}) for _ in range(2)]
        until(lambda: client.get("/health")[1]["queue"] == 2)
        status, document, headers = client.send(
            "POST", "/v1/embeddings", b'{"input": "dog"}', **{"Content-Type": "application/json"}
        )
        assert status == 429 and document["error"]["type"] == "rate_limit_error"
        assert 1 <= int(headers["retry-after"]) <= 60
        gated.gate.set()
        assert [future.result(60)[0] for future in waiting] == [200, 200]
        assert client.post("/v1/embeddings", {"input": "dog"})[0] == 200


def test_a_request_that_waits_too_long_gets_503(gated):
    with serving(gated, max_wait=0.2) as client:
        status, document = client.post("/v1/embeddings", {"input": "rain"})
        assert status == 503 and document["error"]["code"] == "timeout"
        gated.gate.set()
        until(lambda: client.get("/health")[1]["queue"] == 0)


def test_what_a_client_that_left_has_asked_for_is_not_computed(gated):
    with serving(gated) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/v1/embeddings", {"input": "rain"})
        until(lambda: gated.batches)
        body = b'{"input": "never"}'
        with client.connect() as connection:
            head = "POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: client.get("/health")[1]["queue"] == 2)
        until(lambda: 'status="499"' in client.get("/metrics")[1])
        gated.gate.set()
        assert first.result(60)[0] == 200
        assert client.post("/v1/embeddings", {"input": [audio_item(tone()), "dog"]})[0] == 200
    assert gated.batches == [["rain"], ["dog"]]
