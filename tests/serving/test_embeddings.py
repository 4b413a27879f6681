"""POST /v1/embeddings: OpenAI's shape, texts and sounds in every form, the vectors of `Embedder`."""

import base64
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from modeling_wavlink.losses_wavlink import truncate_embeddings
from tests.conftest import tone
from tests.helpers import wav
from tests.served import as_base64, audio_item, data_url, form
from wavlink.serving.audio_input import is_data_url
from wavlink.serving.forms import URLENCODED, parse_form
from wavlink.serving.requests import EmbeddingRequest

TEXTS = ["a dog barks", "the loud bell rings . the low cat meows", "rain"]
CLIPS = [tone(300 + 100 * number, seconds, number) for number, seconds in enumerate((0.3, 1.1, 0.05, 2.0))]
EXACT = {"rtol": 0, "atol": 1e-5}


def vectors(document: dict) -> np.ndarray:
    assert document["object"] == "list" and [row["index"] for row in document["data"]] == [
        *range(len(document["data"]))
    ]
    assert all(row["object"] == "embedding" for row in document["data"])
    return np.array([row["embedding"] for row in document["data"]], dtype=np.float32)


def test_texts_have_the_vectors_of_embedder(client, embedder):
    status, document = client.post("/v1/embeddings", {"model": "tiny", "input": TEXTS})
    assert status == 200 and document["model"] == "tiny"
    np.testing.assert_allclose(vectors(document), embedder.embed_text(TEXTS), **EXACT)
    tokens = sum(len(ids) for ids in embedder.processor.tokenizer(TEXTS)["input_ids"])
    assert document["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens, "audio_seconds": 0}
    status, document = client.post("/v1/embeddings", {"input": TEXTS[0]})
    np.testing.assert_allclose(vectors(document), embedder.embed_text(TEXTS[:1]), **EXACT)


def test_sounds_and_texts_in_every_form_keep_their_order(client, embedder):
    files = [wav(clip) for clip in CLIPS]
    url = {"type": "audio_url", "audio_url": {"url": data_url(files[1])}}
    items = [audio_item(CLIPS[0]), TEXTS[0], url, {"type": "text", "text": TEXTS[1]}, data_url(files[2])]
    status, document = client.post("/v1/embeddings", {"input": items})
    sounds, texts = list(embedder.embed_files(files)), embedder.embed_text(TEXTS)
    assert status == 200, document
    np.testing.assert_allclose(vectors(document), [sounds[0], texts[0], sounds[1], texts[1], sounds[2]], **EXACT)
    assert document["usage"]["audio_seconds"] == pytest.approx(1.45)


@pytest.mark.parametrize(
    "head",
    [
        "data:application/ogg;base64,",
        "data:binary/octet-stream;base64,",  # of S3, where an upload has stated no type
        "data:;base64,",
        "DATA:AUDIO/WAV;BASE64,",
        "data:audio/ogg; codecs=opus;base64,",  # Firefox's recorder
        "data:video/webm;codecs=vp8,opus;base64,",  # Chrome's recorder
        'data:video/webm; codecs="vp8, opus" ; base64,',
    ],
)
def test_a_data_url_of_any_type_is_a_sound(client, embedder, head):
    file = wav(CLIPS[0])
    expected = list(embedder.embed_files([file]))
    for content in (as_base64(file), as_base64(file).replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")):
        status, document = client.post("/v1/embeddings", {"input": head + content})
        assert status == 200, document
        np.testing.assert_allclose(vectors(document), expected, **EXACT)


def test_a_text_about_data_is_a_text(client, embedder):
    text = "data: a dog, base64"
    status, document = client.post("/v1/embeddings", {"input": text})
    assert status == 200, document
    np.testing.assert_allclose(vectors(document), embedder.embed_text([text]), **EXACT)


def test_an_odd_text_is_told_from_a_data_url_at_once():
    for text in ("data:x" + " ; a=b " * 40, 'data:x;a="' + '"' * 280, "data:;a=" + " ;" * 140):
        assert not is_data_url(text)  # a pattern that tries every division would take days


def test_a_form_with_files_and_texts(client, embedder):
    files = [wav(clip) for clip in CLIPS[:2]]
    body, kind = form(input=TEXTS[0], dimensions="16", file=files)
    status, document, _ = client.send("POST", "/v1/embeddings", body, **{"Content-Type": kind})
    expected = [embedder.embed_text(TEXTS[:1])[0], *embedder.embed_files(files)]
    assert status == 200, document
    np.testing.assert_allclose(
        vectors(document), truncate_embeddings(torch.from_numpy(np.stack(expected)), 16), **EXACT
    )


@pytest.mark.parametrize("body", ["input=día+de lluvia&dimensions=16", "input=d%C3%ADa%20de+lluvia&dimensions=16"])
def test_a_form_without_files_is_read_as_utf8(client, body):
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    status, document, _ = client.send("POST", "/v1/embeddings", body.encode(), **kind)
    assert status == 200 and len(document["data"][0]["embedding"]) == 16, document
    request, files = parse_form(EmbeddingRequest, {}, body.encode(), 9, URLENCODED)
    assert request.input == ["día de lluvia"] and not files


def test_base64_is_little_endian_float32(client, embedder):
    _, document = client.post("/v1/embeddings", {"input": TEXTS, "encoding_format": "base64"})
    decoded = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in document["data"]]
    np.testing.assert_allclose(decoded, embedder.embed_text(TEXTS), **EXACT)


def test_a_sound_over_the_models_limit_is_the_mean_of_its_windows(client, embedder):
    long = wav(tone(500, 35))
    status, document = client.post("/v1/embeddings", {"input": data_url(long)})
    assert status == 200, document
    np.testing.assert_allclose(vectors(document), list(embedder.embed_files([long])), **EXACT)


def test_concurrent_requests_get_the_vectors_they_would_get_alone(client, embedder):
    """Texts and sounds of many lengths at once: each answer is that of its own request."""
    clips = [tone(200 + 40 * number, 0.1 + 0.07 * (number % 9), number) for number in range(36)]
    texts = [" ".join(TEXTS[number % 3 :][: 1 + number % 2]) for number in range(36)]

    def ask(number: int) -> np.ndarray:
        items = [audio_item(clips[number]), texts[number]]
        status, document = client.post("/v1/embeddings", {"input": items if number % 2 else items[::-1]})
        assert status == 200, document
        return vectors(document)[:: 1 if number % 2 else -1]

    with ThreadPoolExecutor(12) as pool:
        answers = np.stack(list(pool.map(ask, range(36))))
    np.testing.assert_allclose(answers[:, 0], [next(embedder.embed_clips([clip])) for clip in clips], **EXACT)
    np.testing.assert_allclose(answers[:, 1], [embedder.embed_text([text])[0] for text in texts], **EXACT)
