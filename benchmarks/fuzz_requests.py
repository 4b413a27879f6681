"""Hostile requests to a server of wavlink-tiny, and damaged sounds in them, for fuzz.py."""

import asyncio
import base64
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from fuzz_audio import attempt, made, mutate
from fuzz_files import as_json

from wavlink.embedder import Embedder
from wavlink.search.index import Index
from wavlink.serving.app import create_app
from wavlink.serving.command import quiet
from wavlink.serving.connections import listen, new_server
from wavlink.serving.limits import Limits

_NAME = "tiny"
_SECONDS = 30  # in which an answer must come
_REFUSALS = (400, 404, 405, 408, 413, 415, 429, 499)


class Server:
    """A server in a thread, which is started by the first request."""

    def __init__(self, folder: Path):
        self.folder, self.port, self.log = folder, 0, io.StringIO()

    def start(self) -> None:
        self.embedder = Embedder()
        (self.folder / "sounds").mkdir()
        for number in range(4):
            (self.folder / f"sounds/{number}.wav").write_bytes(tone(300 * (number + 1)))
        Index.build(self.folder / "sounds", self.folder / "index", self.embedder, progress=False)
        limits = Limits(header_seconds=0.5, body_seconds=0.5, max_bytes=4 * 2**20)
        app = create_app(self.embedder, partial(Index.open, self.folder / "index"), limits=limits, name=_NAME)
        quiet()
        logging.getLogger("wavlink.serving").addHandler(logging.StreamHandler(self.log))
        listening, server = listen("127.0.0.1", 0), new_server(app, limits)
        work = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
        work.start()
        while not server.started:
            time.sleep(0.01)
        self.port = listening.getsockname()[1]
        self.vector = self.rain()

    def ask(self, content: bytes) -> bytes:
        """What the server sends until it closes the connection."""
        if not self.port:
            self.start()
        with socket.create_connection(("127.0.0.1", self.port), timeout=_SECONDS) as connection:
            found = b""
            try:
                connection.sendall(content)
                while part := connection.recv(2**16):
                    found += part
            except ConnectionError:
                pass
            return found

    def answer(self, content: bytes, may_be_silent: bool = False) -> dict | None:
        """The document of an answer, None where the request was refused; after it another client's is right."""
        received = self.ask(content)
        head, _, body = received.partition(b"\r\n\r\n")
        if not may_be_silent or received:
            status = int(head.split(maxsplit=2)[1]) if head.startswith(b"HTTP/1.1 ") else 0
            assert status in (100, 200, *_REFUSALS), f"{received[:300]!r} {self.log.getvalue()[-2000:]}"
            if b"\r\ncontent-type: application/json" in head.lower() and status in _REFUSALS and body:
                error, _ = json.JSONDecoder().raw_decode(body.decode())
                assert {*error} == {"error"}, error
        assert np.abs(self.rain() - self.vector).max() < 1e-5, "another client's vector has changed"
        self.log.seek(self.log.truncate(0))
        return json.loads(body) if received.startswith(b"HTTP/1.1 200 ") and not may_be_silent else None

    def rain(self) -> np.ndarray:
        body = b'{"input": "rain"}'
        return vectors_of(
            json.loads(self.ask(request("embeddings", "application/json", body)).partition(b"\r\n\r\n")[2])
        )[0]


def vectors_of(document: dict) -> list[np.ndarray]:
    """The vectors of an answer, checked."""
    vectors = [
        np.frombuffer(base64.b64decode(row["embedding"]), "<f4")
        if isinstance(row["embedding"], str)
        else row["embedding"]
        for row in document["data"]
    ]
    vectors = [np.asarray(vector, np.float64) for vector in vectors]
    assert all(abs(np.linalg.norm(vector) - 1) < 1e-3 for vector in vectors), "no unit vector"
    return vectors


def tone(hertz: float = 440.0) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.4 * np.sin(2 * np.pi * hertz * np.arange(2400) / 8000), 8000, format="WAV")
    return file.getvalue()


def request(route: str, kind: str, body: bytes) -> bytes:
    lines = f"POST /v1/{route} HTTP/1.1", "Host: a", "Connection: close", f"Content-Type: {kind}"
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode("latin-1", "replace") + body


def documents() -> dict[str, list[dict]]:
    """Right requests of each route."""
    sound = f"data:audio/wav;base64,{base64.b64encode(tone()).decode()}"
    item = {"type": "input_audio", "input_audio": {"data": sound.partition(",")[2], "format": "wav"}}
    url = {"type": "audio_url", "audio_url": {"url": sound}}
    texts = ["rain", {"type": "text", "text": "a dog"}]
    return {
        "embeddings": [
            {"input": [*texts, item, url], "encoding_format": "base64", "model": _NAME, "user": "x"},
            {"input": sound, "dimensions": 48, "encoding_format": "float"},
        ],
        "classify": [
            {"input": [item], "labels": ["dog_bark", "rain"], "prompts": ["{}"], "clean_up": "spaces", "top_k": 1},
            {"input": sound, "labels": ["a", "b", "c"], "dimensions": 48, "prior": 0.2},
        ],
        "search": [
            {"text": "rain", "sound": [sound], "without": ["a dog"], "without_sound": item, "weight": 0.5, "top_k": 2},
            {"text": ["rain"], "windows": True, "min_probability": 0.1, "prior": 0.5},
        ],
        "locate": [
            {"input": sound, "query": ["rain", "a dog"], "window": 0.2, "hop": 0.1, "top_k": 2, "min_score": -1},
            {"input": item, "query": "rain", "dimensions": 48, "min_probability": 0.5, "prior": 0.5},
        ],
    }


def make_json(folder: Path, sounds: str) -> tuple[Callable, Callable]:
    """JSON of each route with hostile values, now and then damaged."""
    server, routes = Server(folder), documents()

    def draw(rng: np.random.Generator) -> bytes:
        route = list(routes)[rng.integers(len(routes))]
        return route.encode() + b"\n" + as_json(rng, routes[route][rng.integers(2)])

    def read(content: bytes) -> bool:
        route, _, body = content.partition(b"\n")
        answer = server.answer(request(route.decode(), "application/json", body))
        if answer and route == b"embeddings":
            vectors_of(answer)
        return answer is not None

    return draw, read


def make_form(folder: Path, sounds: str) -> tuple[Callable, Callable]:
    """Forms of both kinds: damaged parts, boundaries, names and lengths."""
    server = Server(folder)
    named = 'name="file"; filename="a.wav"\r\nContent-Type: audio/wav', 'name="input"', 'name="dimensions"'
    values = tone(), b"rain", b"48"
    parts = [
        f"--limit\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode() + value + b"\r\n"
        for name, value in zip(named, values, strict=True)
    ]
    bodies = [b"".join(parts[:last]) + b"--limit--\r\n" for last in (1, 2, 3)]
    fields = b"input=rain&dimensions=48&input=%F0%9F%90%95+barks"
    kinds = [b"multipart/form-data; boundary=limit"] * 8 + [b"multipart/form-data", b"multipart/form-data; boundary="]

    def draw(rng: np.random.Generator) -> bytes:
        if rng.random() < 0.2:
            return b"application/x-www-form-urlencoded\n" + mutate(rng, [fields])
        kind, body = kinds[rng.integers(len(kinds))], bodies[rng.integers(3)]
        if rng.random() < 0.2:
            kind = mutate(rng, [kind]).translate(None, b"\r\n\0")
        if rng.random() < 0.5:  # what frames the parts, and not the sound
            place = b"\x7fsound\x7f"
            return kind + b"\n" + mutate(rng, [body.replace(values[0], place)]).replace(place, values[0])
        return kind + b"\n" + mutate(rng, [body])

    def read(content: bytes) -> bool:
        kind, _, body = content.partition(b"\n")
        answer = server.answer(request("embeddings", kind.decode("latin-1"), body))
        if answer:
            vectors_of(answer)
        return answer is not None

    return draw, read


def make_raw(folder: Path, sounds: str) -> tuple[Callable, Callable]:
    """Damaged heads, chunks and several requests on one connection; one without an end may get no answer."""
    server, body = Server(folder), b'{"input": "rain"}'
    whole = request("embeddings", "application/json", body)
    chunked = whole.replace(b"Content-Length: 17", b"Transfer-Encoding: chunked").removesuffix(body)
    many = b"".join(b"x-header-%d: y\r\n" % number for number in range(300))
    seeds = [
        whole,
        chunked + b"11\r\n" + body + b"\r\n0\r\n\r\n",
        chunked + b"8;a=b\r\n" + body[:8] + b"\r\n9\r\n" + body[8:] + b"\r\n0\r\nTrailer: x\r\n\r\n",
        whole.replace(b"Connection: close", b"Expect: 100-continue"),
        whole.replace(b"Connection: close\r\n", b"") + whole,
        whole.replace(b"HTTP/1.1", b"HTTP/1.0"),
        whole.replace(b"Connection: close", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c"),
        whole.replace(b"Host: a\r\n", b"Host: a\r\n" + many),
        whole.replace(b"Host: a", b"Host: " + b"a" * 100_000),
        whole.replace(b"/v1/embeddings", b"/v1/" + b"%2e%2e/" * 2000),
        b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET /openapi.json HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAccept-Encoding: gzip\r\n\r\n",
    ]

    def read(content: bytes) -> bool:
        server.answer(content, may_be_silent=True)
        return False

    return lambda rng: mutate(rng, seeds), read


def make_sound(folder: Path, sounds: str) -> tuple[Callable, Callable]:
    """A damaged sound: its vector, or that it has none, is what the embedder says of the same bytes."""
    server = Server(folder)
    kinds = ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("AIFF", "PCM_16")
    seeds = [file for kind in kinds for file in made(*kind, sounds)]

    def read(content: bytes) -> bool:
        text = json.dumps({"input": f"data:audio/wav;base64,{base64.b64encode(content).decode()}"}).encode()
        answer = server.answer(request("embeddings", "application/json", text))
        vector, error = attempt(lambda: _vector(server.embedder, content), "")
        assert (answer is None) == bool(error), f"the server {'answers' if answer else 'refuses'}: {error}"
        if answer:
            assert np.abs(vectors_of(answer)[0] - vector).max() < 1e-5, "another vector"
        return answer is not None

    return lambda rng: mutate(rng, seeds), read


def _vector(embedder: Embedder, content: bytes) -> np.ndarray:
    vector = next(embedder.embed_files([content]))
    if isinstance(vector, ValueError):
        raise vector
    return vector


TARGETS = {
    "json request": make_json,
    "form request": make_form,
    "raw request": make_raw,
    "sound request": make_sound,
}
INPUTS = 2000  # of each
