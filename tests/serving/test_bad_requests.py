"""A request that cannot be answered gets a 4xx and the reason in JSON."""

import gzip
import io
import json

import numpy as np
import pytest
import soundfile

from tests.conftest import tone
from tests.helpers import wav
from tests.served import as_base64, audio_item, data_url, form, serving
from wavlink.serving.errors import RequestError
from wavlink.serving.requests import EmbeddingRequest, LocateRequest, from_json


def flac(seconds: int, rate: int = 8000) -> bytes:
    """Silence of any length in a small file."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 1, "PCM_16", format="FLAC") as sound:
        for _ in range(-(-seconds // 600)):
            sound.write(np.zeros(600 * rate, np.int16))
    return file.getvalue()


def with_rate(rate: int) -> bytes:
    content = bytearray(wav(tone(seconds=0.2)))
    position = content.index(b"fmt ") + 12
    content[position : position + 4] = rate.to_bytes(4, "little")
    return bytes(content)


def sound(content: bytes) -> dict:
    return {"input": data_url(content)}


CASES = {
    "no input": ("embeddings", {}, 400, "input is missing"),
    "empty list": ("embeddings", {"input": []}, 400, "input is missing"),
    "empty text": ("embeddings", {"input": "  "}, 400, "input is empty"),
    "token ids": ("embeddings", {"input": [1, 2]}, 400, "input.0"),
    "unknown field": ("embeddings", {"input": "rain", "dimension": 16}, 400, "dimension"),
    "unknown model": ("embeddings", {"input": "rain", "model": "other"}, 404, "only 'tiny'"),
    "unknown dimensions": ("embeddings", {"input": "rain", "dimensions": 17}, 400, "one of 4, 8, 16, 32, got 17"),
    "dimensions of zero": ("embeddings", {"input": "rain", "dimensions": 0}, 400, "got 0"),
    "unknown encoding": ("embeddings", {"input": "rain", "encoding_format": "hex"}, 400, "'float' or 'base64'"),
    "text over the limit": ("embeddings", {"input": "rain " * 40}, 400, "42 tokens, the model takes 32"),
    "long text": ("embeddings", {"input": "rain" * 3000}, 400, "12000 characters"),
    "too many texts": ("embeddings", {"input": ["rain"] * 2049}, 400, "2049 inputs"),
    "half a character": ("embeddings", b'{"input": "\\ud800"}', 400, "input"),
    "no JSON": ("embeddings", b"{", 400, "not valid JSON"),
    "UTF-16": ("embeddings", json.dumps({"input": "rain"}).encode("utf-16"), 400, "in UTF-8"),
    "not UTF-8": ("embeddings", b'{"input": "\xff"}', 400, "not valid JSON"),
    "deep JSON": ("embeddings", b'{"input": ' + b"[" * 100_000, 400, "not valid JSON"),
    "no object": ("embeddings", b'"rain"', 400, "JSON object"),
    "empty body": ("embeddings", b"", 400, "the body is empty"),
    "empty sound": ("embeddings", sound(b""), 400, "input is empty"),
    "no sound": ("embeddings", sound(b"not a sound"), 400, "cannot read input as sound"),
    "no samples": ("embeddings", sound(wav(tone()[:0])), 400, "no samples"),
    "NaN": ("embeddings", sound(wav(np.full(400, np.nan, np.float32))), 400, "NaN"),
    "wrong rate": ("embeddings", sound(with_rate(100)), 400, "sampling rate of 100"),
    "no rate": ("embeddings", sound(with_rate(0)), 400, "input"),
    "ten hours": ("embeddings", sound(flac(36_000)), 413, "it may have 40 s"),
    "long together": ("embeddings", {"input": [data_url(wav(tone(seconds=21)))] * 2}, 413, "lasts too long"),
    "no base64": ("embeddings", {"input": "data:audio/wav;base64,???"}, 400, "not valid base64"),
    "URL without base64": ("embeddings", {"input": "data:audio/wav,abc"}, 400, "not in base64"),
    "data URL of a text": (
        "embeddings",
        {"input": "data:text/plain;base64,cmFpbg=="},
        400,
        "cannot read input as sound",
    ),
    "short data URL": ("embeddings", {"input": "data:application/ogg;base64,T2dn"}, 400, "cannot read input as sound"),
    "plus as a space": ("embeddings", {"input": "data:audio/wav;base64,UklG UklG UklG UklG "}, 400, "valid base64"),
    "address": (
        "embeddings",
        {"input": {"type": "audio_url", "audio_url": {"url": "http://localhost/a.wav"}}},
        400,
        "nothing is fetched",
    ),
    "unknown type": ("embeddings", {"input": {"type": "image"}}, 400, "'input_audio'"),
    "type without its field": ("embeddings", {"input": {"type": "input_audio"}}, 400, "has no 'input_audio'"),
    "a type and another's field": (
        "embeddings",
        {"input": [{"type": "text", "text": "rain", "input_audio": {"data": "AAAA"}}]},
        400,
        "has 'input_audio' as well",
    ),
    "one label": ("classify", {**sound(wav(tone())), "labels": ["a"]}, 400, "labels"),
    "same labels": ("classify", {**sound(wav(tone())), "labels": ["a", "a"]}, 400, "each once"),
    "prompt without a place": ("classify", {**sound(wav(tone())), "labels": ["a", "b"], "prompts": ["c"]}, 400, "{}"),
    "text in place of a sound": ("classify", {"input": "dog.wav", "labels": ["a", "b"]}, 400, "data URL"),
    "no sound to name": ("classify", {"labels": ["a", "b"]}, 400, "input is missing"),
    "prior of 1": ("classify", {**sound(wav(tone())), "labels": ["a", "b"], "prior": 1}, 400, "prior"),
    "nothing to search": ("search", {}, 400, "text is missing"),
    "no probability": ("search", {"text": "a", "min_probability": 2}, 400, "min_probability"),
    "two texts have none": ("search", {"text": ["a", "b"], "min_probability": 0.5}, 400, "one text alone"),
    "a data URL as a text": ("search", {"text": data_url(wav(tone(seconds=1)))}, 400, "text has "),
    "nothing to locate": ("locate", sound(wav(tone())), 400, "query is missing"),
    "two recordings": ("locate", {"input": [data_url(wav(tone()))] * 2, "query": "a"}, 400, "one recording"),
    "many windows": (
        "locate",
        {**sound(wav(tone(seconds=3))), "query": "a", "window": 1, "hop": 1e-3},
        400,
        "windows",
    ),
    "hop over the window": ("locate", {**sound(wav(tone())), "query": "a", "window": 1, "hop": 2}, 400, "hop"),
    "shortest window": ("locate", {**sound(wav(tone())), "query": "a", "window": 5e-324}, 400, "windows"),
    "long window": ("locate", {**sound(wav(tone())), "query": "a", "window": 31}, 400, "30 s"),
}


@pytest.mark.parametrize(("path", "body", "status", "reason"), CASES.values(), ids=CASES)
def test_bad_requests_get_a_reason(client, path, body, status, reason):
    found, document = client.post(f"/v1/{path}", body)
    assert found == status and set(document) == {"error"}, document
    assert {*document["error"]} == {"message", "type", "param", "code"}
    assert document["error"]["type"] == "invalid_request_error" and reason in document["error"]["message"]


def test_errors_of_http_have_the_same_shape(client):
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/v1/embeddings", 405), ("DELETE", "/health", 405)):
        found, document, _ = client.send(method, path)
        assert found == status and document["error"]["type"] == "invalid_request_error"
    found, document, _ = client.send("POST", "/v1/embeddings", wav(tone()), **{"Content-Type": "audio/wav"})
    assert found == 415 and "multipart/form-data" in document["error"]["message"]
    found, document, _ = client.send("POST", "/v1/embeddings", b"x", **{"Content-Type": "multipart/form-data"})
    assert found == 400 and document["error"]["message"]


def test_json_that_is_sent_as_a_form_gets_a_reason(client):
    """As `curl -d` sends it without a header."""
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    status, document, _ = client.send("POST", "/v1/embeddings", b' {"input": "rain"}', **kind)
    assert status == 415 and "Content-Type: application/json" in document["error"]["message"]


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=limit"])
def test_a_compressed_body_gets_a_reason(client, kind):
    body, headers = gzip.compress(b'{"input": "rain"}'), {"Content-Type": kind, "Content-Encoding": "gzip"}
    status, document, _ = client.send("POST", "/v1/embeddings", body, **headers)
    assert status == 415 and "content-encoding 'gzip'" in document["error"]["message"]
    headers = {"Content-Type": "application/json", "Content-Encoding": "identity"}
    assert client.send("POST", "/v1/embeddings", b'{"input": "rain"}', **headers)[0] == 200


def test_a_form_that_is_wrong_gets_a_reason(client):
    for fields, reason in (
        ({"input": "rain", "volume": "3"}, "volume"),
        ({"dimensions": "many", "input": "rain"}, "dimensions"),
        ({"file": b"not a sound"}, "cannot read file[0] as sound"),
        ({"file": b""}, "file[0] is empty"),
        ({"file": "not a file"}, "file holds no file"),
        ({"sound": b"not a sound"}, "there is no field 'sound'"),
        ({"dimensions": b"16"}, "dimensions holds a file, and takes text"),
    ):
        body, kind = form(**fields)
        status, document, _ = client.send("POST", "/v1/embeddings", body, **{"Content-Type": kind})
        assert status == 400 and reason in document["error"]["message"], document


def test_an_error_of_the_server_is_not_shown(client, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr("wavlink.serving.answers.classify", fail)
    status, document = client.post("/v1/classify", {"input": audio_item(tone()), "labels": ["a", "b"]})
    assert status == 500 and document["error"]["type"] == "server_error" and "secret" not in str(document)
    assert "/secret/path" in caplog.text


def test_a_large_body_is_refused_while_it_arrives(embedder):
    with serving(embedder, max_bytes=10_000) as client:
        assert client.post("/v1/embeddings", {"input": "rain"})[0] == 200
        body = {"input": data_url(bytes(20_000))}
        status, document = client.post("/v1/embeddings", body)
        assert status == 413 and "10000 bytes" in document["error"]["message"]
        chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (20_000, bytes(20_000))  # without a Content-Length
        with client.connect() as connection:
            connection.sendall(
                b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
        status, document = client.post("/v1/search", {"text": "rain"})
        assert status == 404 and "--index" in document["error"]["message"]


def test_a_key_is_needed_where_there_is_one(embedder):
    with serving(embedder, key="correct-horse") as client:
        assert client.post("/v1/embeddings", {"input": "rain"})[0] == 200
        for key in ("", "correct-hors", "correct-horse2", "wrong"):
            client.key = key
            status, document, headers = client.send("POST", "/v1/embeddings", b"{}")
            assert status == 401 and document["error"]["code"] == "invalid_api_key"
            assert headers["www-authenticate"] == "Bearer" and "correct" not in str(document)
            assert client.get("/metrics")[0] == client.get("/v1/models")[0] == 401
        client.key = ""
        assert client.get("/health")[0] == client.get("/openapi.json")[0] == 200


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"input": [1] * 2049}, "2049 inputs, the most are 2048"),
        ({"input": [[1] * 2049]}, "input[0] holds 2049 inputs"),
        ({f"k{number}": 0 for number in range(2049)}, "no field 'k0'"),
        ({"input": {f"k{number}": 0 for number in range(17)}}, "input holds 17 fields, the most are 16"),
        (
            {"input": ["rain", {"input_audio": dict.fromkeys(map(str, range(17)))}]},
            "input[1].input_audio holds 17 fields",
        ),
    ],
)
def test_a_request_of_many_parts_is_refused_before_each_is_checked(body, reason, monkeypatch):
    """Pydantic describes every part that is wrong: of 200,000 numbers in 3 s and 468 MiB, in which all else waits."""

    def check(*_):
        pytest.fail("the parts are checked")

    monkeypatch.setattr(EmbeddingRequest, "model_validate", check)
    with pytest.raises(RequestError) as refused:
        from_json(EmbeddingRequest, json.dumps(body).encode())
    assert refused.value.status == 400 and reason in str(refused.value)


@pytest.mark.parametrize("part", [b"[]", b'{"a":1}', b'"\\"",""', b"0"])
def test_json_of_many_values_is_refused_before_it_is_parsed(part, monkeypatch):
    """32 MB of empty lists would become 0.7 GB of them."""
    monkeypatch.setattr("wavlink.serving.requests.json.loads", lambda _: pytest.fail("the body is parsed"))
    with pytest.raises(RequestError, match="more than 132768 values") as refused:
        from_json(EmbeddingRequest, b'{"input": [' + b",".join([part] * 200_001) + b"]}")
    assert refused.value.status == 400


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize("head", ['{"user": "\\"", "input": [', '{"user": "\u2200", "input": ['])
def test_values_in_another_encoding_are_not_parsed(encoding, head):
    """A quote that is escaped, or a character with the byte of one, would hide the values after it."""
    with pytest.raises(RequestError, match="values|in UTF-8"):
        from_json(EmbeddingRequest, (head + ",".join(["[]"] * 200_001) + "]}").encode(encoding))


@pytest.mark.parametrize("text", [",[{" * 100_000, '",[' * 100_000, "\\," * 200_001, '\\"[,' * 100_001])
def test_brackets_and_commas_of_a_text_are_no_values(text):
    assert from_json(EmbeddingRequest, json.dumps({"input": [text]}).encode()).input == [text]


def test_the_most_parts_of_a_request_are_the_servers(embedder):
    with serving(embedder, max_items=2) as client:
        for body, kind in ((b'{"input": ["a", "b", "c"]}', "application/json"), form(input=["a", "b", "c"])):
            status, document, _ = client.send("POST", "/v1/embeddings", body, **{"Content-Type": kind})
            assert status == 400 and "3 inputs, the most are 2 " in document["error"]["message"]


@pytest.mark.parametrize(
    ("model", "body", "param"),
    [
        (EmbeddingRequest, {"Input": "rain"}, "Input"),
        (EmbeddingRequest, {"input": "rain", "stream": False}, "stream"),
        (EmbeddingRequest, {"input": {"type": "text", "Text": "rain"}}, "input.Text"),
        (EmbeddingRequest, {"input": ["rain", {"type": "text", "text": "dog", "strength": 1}]}, "input.1.strength"),
        (EmbeddingRequest, {"input": ["rain", ""]}, "input.1"),
        (EmbeddingRequest, {"input": {"type": "input_audio", "input_audio": {"dat": "x"}}}, "input.input_audio"),
        (LocateRequest, {"query": 3}, "query"),
        (LocateRequest, {"query": "rain", "top_k": 0}, "top_k"),
    ],
)
def test_an_error_names_its_field(model, body, param):
    with pytest.raises(RequestError) as raised:
        from_json(model, json.dumps(body).encode())
    assert raised.value.param.startswith(param) and raised.value.status == 400


def test_an_unknown_field_names_the_nearest_one(client):
    for body, kind in ((b'{"Input": "rain"}', "application/json"), form(**{"input[]": "rain"})):
        status, document, _ = client.send("POST", "/v1/embeddings", body, **{"Content-Type": kind})
        assert status == 400 and "did you mean input?" in document["error"]["message"], document
    status, document = client.post("/v1/embeddings", {"input": "rain", "k" * 5000: 1})
    assert status == 400 and len(document["error"]["param"]) <= 100


def test_a_field_that_is_null_counts_as_not_given(client):
    """As clients send it that write all fields of OpenAI's API."""
    unset = {"model": None, "dimensions": None, "encoding_format": None, "user": None}
    assert client.post("/v1/embeddings", {"input": "rain", **unset})[0] == 200
    assert client.post("/v1/search", {"text": "rain", "top_k": None, "without": None})[0] == 200
    status, document = client.post("/v1/embeddings", {"input": None})
    assert status == 400 and "input is missing" in document["error"]["message"]


def test_what_is_no_base64_is_refused_and_line_breaks_are_not(client):
    text = as_base64(wav(tone(seconds=0.1)))
    lines = "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    item = {"type": "input_audio", "input_audio": {"data": lines}}
    assert client.post("/v1/embeddings", {"input": item})[0] == 200
    item = {"type": "input_audio", "input_audio": {"data": text[:-3] + "*" * 3}}
    assert client.post("/v1/embeddings", {"input": item})[0] == 400


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"input=d%FFa", "not in UTF-8"),
        (b"input=d\xffa", "not in UTF-8"),
        (b"&" * 1000, "more than 1000 fields"),
        (b"input=a&" * 1000, "more than 1000 fields"),
    ],
)
def test_an_urlencoded_form_that_is_wrong_gets_a_reason(client, body, reason):
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    status, document, _ = client.send("POST", "/v1/embeddings", body, **kind)
    assert status == 400 and reason in document["error"]["message"], document


def test_an_answer_has_a_bounded_number_of_results(embedder):
    """2048 clips of 0.1 s with 1000 labels each would be 225 MB of JSON, and a gigabyte of memory."""
    sounds = [data_url(wav(tone(seconds=0.1)))] * 3
    with serving(embedder, max_results=6) as client:
        for path, body, status in (
            ("classify", {"input": sounds, "labels": ["a", "b"]}, 200),
            ("classify", {"input": sounds, "labels": ["a", "b", "c"]}, 400),
            ("classify", {"input": sounds, "labels": ["a", "b", "c"], "top_k": 2}, 200),
            ("locate", {"input": sounds[0], "query": ["a", "b"], "top_k": 3}, 200),
            ("locate", {"input": sounds[0], "query": ["a", "b"], "top_k": 4}, 400),
        ):
            found, document = client.post(f"/v1/{path}", body)
            assert found == status, document
            assert status == 200 or "results, the most are 6" in document["error"]["message"]
