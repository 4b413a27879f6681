"""The other routes: what the functions of the library answer, in JSON."""

import copy
import re
import shutil
from dataclasses import replace
from datetime import date

import numpy as np
import pytest

import wavlink
from tests.conftest import tone
from tests.helpers import wav
from tests.served import audio_item, data_url, form, serving
from wavlink.search.index import Hit, Index
from wavlink.serving.answers import _hit
from wavlink.serving.responses import SearchHit

CLIPS = [tone(300, 0.4, 1), tone(900, 0.8, 2)]
LABELS = ["dog", "bell", "rain"]


def test_classify_answers_shares_and_probabilities(client, embedder):
    body = {"input": [audio_item(clip) for clip in CLIPS], "labels": LABELS, "top_k": 2, "prior": 0.2}
    status, document = client.post("/v1/classify", body)
    assert status == 200, document
    expected = wavlink.classify(embedder, [wav(clip) for clip in CLIPS], LABELS, top_k=2, prior=0.2)
    for row, result in zip(document["data"], expected, strict=True):
        assert [label["label"] for label in row["labels"]] == [label["label"] for label in result["labels"]]
        for name in ("score", "cosine", "probability"):
            found = [label[name] for label in row["labels"]]
            assert found == pytest.approx([label[name] for label in result["labels"]], abs=1e-4), name
    assert document["calibration"] == "model" and document["prior"] == 0.2
    assert document["prompts"] == ["This is a sound of {}."] and document["model"] == "tiny"


def test_classify_takes_a_form(client):
    body, kind = form(labels=LABELS, prompts=["a {}", "the {}"], top_k="1", file=wav(CLIPS[0]))
    status, document, _ = client.send("POST", "/v1/classify", body, **{"Content-Type": kind})
    assert status == 200, document
    assert [len(row["labels"]) for row in document["data"]] == [1] and document["prompts"] == ["a {}", "the {}"]


def test_search_finds_what_the_index_finds(client, embedder, index_folder):
    index = Index.open(index_folder, embedder)
    sound = wav(tone(800, 0.5, 3))
    mixed = {"text": ["a dog", "rain"], "without": "bell", "weight": 0.7}
    for body, query in (
        ({"text": "a dog", "top_k": 3}, {"text": "a dog", "top_k": 3}),
        ({"sound": audio_item(tone(800, 0.5, 3)), "top_k": 2}, {"sound": sound, "top_k": 2}),
        (mixed, mixed),
        ({"text": "rain", "without_sound": [data_url(sound)]}, {"text": "rain", "without_sound": sound}),
    ):
        status, document = client.post("/v1/search", body)
        assert status == 200, document
        found, expected = document["data"], index.query(**query)
        assert [row["path"] for row in found] == [hit.path for hit in expected]
        np.testing.assert_allclose([row["score"] for row in found], [hit.score for hit in expected], atol=1e-4)
        assert all("file" not in row for row in document["data"])  # no paths of the server
    status, document = client.post("/v1/search", {"text": "a dog", "min_probability": 1.0})
    assert status == 200 and document["data"] == [] and document["note"] == "nothing in this index matches"


def test_an_uploaded_sound_is_what_its_field_says(client, embedder, index_folder):
    index, bell, far = Index.open(index_folder, embedder), wav(tone(800, 0.5, 3)), wav(tone(1400, 0.5, 6))
    for fields, query in (
        ({"file": bell, "without_sound": [far]}, {"sound": bell, "without_sound": far}),
        ({"sound": [bell], "without_sound": [far]}, {"sound": bell, "without_sound": far}),
        ({"text": "rain", "without_sound": [bell, far]}, {"text": "rain", "without_sound": [bell, far]}),
    ):
        body, kind = form(**fields)
        status, document, _ = client.send("POST", "/v1/search", body, **{"Content-Type": kind})
        assert status == 200, document
        scores = [row["score"] for row in document["data"]]
        np.testing.assert_allclose(scores, [hit.score for hit in index.query(**query)], atol=1e-4)


def test_search_shows_columns_about_the_sounds():
    hit = Hit("0.wav", 0.0, 0.0, 1.0, "/home/0.wav", metadata={"label": "dog", "day": date(2024, 5, 1), "loud": False})
    shown = {"path": "0.wav", "score": 0.0, "start": 0.0, "end": 1.0}
    assert _hit(hit) == shown | {"metadata": {"label": "dog", "day": "2024-05-01", "loud": False}}
    assert SearchHit(**_hit(hit)).metadata["label"] == "dog"
    assert _hit(replace(hit, metadata={})) == shown


def test_a_path_in_a_search_is_not_opened(client, index_folder):
    for name in ("0.wav", str(index_folder.parent / "sounds/0.wav"), "http://localhost/a.wav"):
        status, document = client.post("/v1/search", {"sound": name})
        assert status == 400 and document["error"]["param"] == "sound"


def test_locate_finds_what_locate_finds(client, embedder):
    recording = np.concatenate([tone(200, 3), tone(3000, 3, 1), tone(200, 3, 2)])
    options = {"window": 1.0, "hop": 0.5, "min_score": -1.0, "top_k": 2}
    status, document = client.post("/v1/locate", {"input": audio_item(recording), "query": ["rain", "dog"], **options})
    assert status == 200, document
    expected = wavlink.locate(embedder, wav(recording), ["rain", "dog"], **options)
    for row, spans in zip(document["data"], expected, strict=True):
        for found, span in zip(row["spans"], spans, strict=True):
            assert (found["start"], found["end"]) == (span.start, span.end)
            assert found["score"] == pytest.approx(span.score, abs=1e-4)
            assert found["probability"] == pytest.approx(span.probability, abs=1e-4)
    assert (document["duration"], document["window"], document["hop"]) == (9, 1, 0.5)
    status, document = client.post(
        "/v1/locate", {"input": audio_item(recording), "query": "rain", "min_probability": 1.0}
    )
    assert document["data"][0]["spans"] == [] and document["data"][0]["note"] == "nothing in this recording matches"


def test_health_models_and_metrics(client):
    client.post("/v1/embeddings", {"input": ["rain", "dog"]})
    client.get("/no/such/path")
    assert client.get("/health") == (200, {"status": "ok", "model": "tiny", "queue": 0})
    (model,) = client.get("/v1/models")[1]["data"]
    assert model["id"] == "tiny" and model["object"] == "model" and model["dimensions"] == [4, 8, 16, 32]
    status, text = client.get("/metrics")
    lines = dict(line.rpartition(" ")[::2] for line in text.splitlines() if not line.startswith("#"))
    assert status == 200 and float(lines['wavlink_requests_total{route="/v1/embeddings",status="200"}']) >= 1
    assert float(lines['wavlink_requests_total{route="other",status="404"}']) >= 1
    assert float(lines['wavlink_batch_size_sum{kind="text"}']) >= 2 and "no/such" not in text


def test_the_openapi_document_describes_every_request_and_response(client):
    status, document = client.get("/openapi.json")
    schemas = document["components"]["schemas"]
    assert status == 200
    for path in ("embeddings", "classify", "search", "locate"):
        content = document["paths"][f"/v1/{path}"]["post"]["requestBody"]["content"]
        name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert "model" in schemas[name]["properties"]
        assert "file" in content["multipart/form-data"]["schema"]["properties"]
        assert "file" not in schemas[name]["properties"]
        responses = document["paths"][f"/v1/{path}"]["post"]["responses"]
        names = {
            s: r["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2] for s, r in responses.items()
        }
        assert names.keys() == {"200", "4XX", "5XX"} and names["4XX"] == names["5XX"] == "Error"
        assert {"object", "model", "data"} <= schemas[names["200"]]["properties"].keys()
    references = re.findall(r"#/components/schemas/(\w+)", str(document))
    assert references and set(references) <= set(schemas)
    assert client.get("/docs")[0] == 200


def test_the_openapi_document_says_where_a_key_is_needed(client, embedder):
    """The page of the documentation asks for the key then, and clients made from it send it."""
    assert "securitySchemes" not in client.get("/openapi.json")[1]["components"]
    with serving(embedder, key="correct-horse") as other:
        other.key = ""
        _, document, _ = other.send("GET", "/openapi.json")
        assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
        for path, operations in document["paths"].items():
            ((method, operation),) = operations.items()
            is_open = other.send(method.upper(), path)[0] != 401
            assert is_open == ("security" not in operation), path
    assert [*document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]] == ["text/plain"]


def test_head_is_get_without_its_body(client):
    """Checks of health send it, such as `wget --spider`."""
    for path in ("/health", "/metrics", "/v1/models", "/openapi.json"):
        with client.connect() as connection:
            connection.sendall(f"HEAD {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(2**16), b""))
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\n"), answer


def test_a_path_may_end_in_a_slash(embedder):
    """It is not redirected: behind a proxy that encrypts, the address in a redirect would not be encrypted."""
    with serving(embedder, key="correct-horse") as client:
        assert client.post("/v1/embeddings/", {"input": "rain"})[0] == 200
        client.key = ""
        assert client.get("/health/")[0] == 200 and client.get("/v1/models/")[0] == 401
        assert client.get("//")[0] == 401


def test_an_index_that_cannot_be_searched_is_an_error_of_the_server(embedder, index_folder, tmp_path, caplog):
    """It tells no path of this machine, and is over once the index is back."""
    folder = tmp_path / "index"
    shutil.copytree(index_folder, folder)
    with serving(embedder, lambda batched: Index.open(folder, batched)) as client:

        def answers(status: int) -> None:
            found, document = client.post("/v1/search", {"text": "a dog"})
            assert found == status and str(tmp_path) not in str(document), document
            if status == 503:
                assert document["error"]["type"] == "server_error" and "log" in document["error"]["message"]

        folder.rename(tmp_path / "away")
        answers(503)
        assert str(folder) in caplog.text
        assert client.post("/v1/search", {"text": "a dog", "sound": audio_item(CLIPS[0]), "prior": 0.2})[0] == 503
        (tmp_path / "away").rename(folder)
        answers(200)
        assert client.post("/v1/search", {"text": "a dog", "sound": audio_item(CLIPS[0]), "prior": 0.2})[0] == 400
        shutil.rmtree(folder)
        other = copy.copy(embedder)
        other.name, other.revision = "other", "sha256:other"
        Index.build(index_folder.parent / "sounds", folder, other, progress=False)
        answers(503)
