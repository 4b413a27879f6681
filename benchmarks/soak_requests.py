"""Requests of all kinds to `wavlink serve`, good and bad, from clients that send them one after another."""

import base64
import http.client
import io
import json
import random
import re
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

CLIENTS = 8
RATE = 16000
_BOUNDARY = "limit"


class Request(NamedTuple):
    """One request and the status of its answer; 0: the client leaves before there is one."""

    status: int
    path: str
    body: bytes = b""
    kind: str = "application/json"
    method: str = "POST"


def sound(seconds: float, rate: int = RATE, form: str = "WAV", seed: int = 0) -> bytes:
    """A file of noise."""
    file = io.BytesIO()
    samples = np.random.default_rng(seed).normal(scale=0.1, size=round(seconds * rate))
    soundfile.write(file, samples, rate, format=form)
    return file.getvalue()


def url(content: bytes) -> str:
    return f"data:audio/wav;base64,{base64.b64encode(content).decode()}"


def form(content: bytes, **fields: str) -> bytes:
    """A body of multipart/form-data with one file."""
    parts = [f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    return "".join([*parts, head]).encode() + content + f"\r\n--{_BOUNDARY}--\r\n".encode()


def requests() -> list[Request]:
    """All kinds, for a server of wavlink-tiny or another model, with an index and `--max_seconds 60`."""
    short, flac, long = sound(1.3), sound(4, 44100, "FLAC", 1), sound(35, 8000, "FLAC", 2)
    labels = ["a dog barks", "rain", "a bell"]
    several = f"multipart/form-data; boundary={_BOUNDARY}"

    def post(status: int, path: str, **fields: object) -> Request:
        return Request(status, f"/v1/{path}", json.dumps(fields).encode())

    return [
        post(200, "embeddings", input=["rain falls", "a dog barks"]),
        post(200, "embeddings", input=[url(short), "rain", url(flac)], encoding_format="base64"),
        post(200, "embeddings", input={"type": "input_audio", "input_audio": {"data": url(long), "format": "flac"}}),
        Request(200, "/v1/embeddings", form(flac, input="rain falls"), several),
        post(200, "classify", input=url(short), labels=labels, top_k=2),
        post(200, "search", text="rain falls", without=["a dog barks"], top_k=3),
        post(200, "search", sound=url(short), top_k=3),
        post(200, "locate", input=url(long), query=["rain"], window=2, hop=1),
        *(Request(200, path, method="GET") for path in ("/health", "/metrics", "/v1/models", "/openapi.json")),
        post(400, "embeddings", input=[]),
        post(400, "embeddings", input="rain " * 1500),
        post(400, "embeddings", input=url(b"no sound at all")),
        post(400, "embeddings", input=url(sound(0))),
        post(400, "embeddings", input="rain", dimensions=17),
        post(400, "embeddings", input="http://localhost/a.wav", unknown=1),
        post(400, "classify", input=url(short), labels=["one"]),
        post(413, "embeddings", input=[url(long), url(long)]),
        post(404, "embeddings", input="rain", model="another"),
        Request(400, "/v1/embeddings", b'{"input": '),
        Request(415, "/v1/embeddings", b"<xml/>", "text/xml"),
        Request(400, "/v1/embeddings"),
        Request(404, "/v1/other", b"{}"),
        Request(405, "/v1/embeddings", method="GET"),
        post(0, "embeddings", input=url(flac))._replace(kind="half"),
        post(0, "locate", input=url(long), query=["rain"], window=1, hop=0.5),
    ]


def port_of(log: Path, seconds: float = 300) -> int:
    """Wait until a server's output, `wavlink serve --json`, has its address, and return its port."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := re.search(r'"url": "http://[^"]*:(\d+)"', log.read_text(encoding="utf-8")):
            return int(found[1])
        time.sleep(0.2)
    raise SystemExit(f"the server has not started:\n{log.read_text(encoding='utf-8')[-3000:]}")


class Traffic:
    """Clients in threads, until `stop`.

    Attributes:
        count: requests that were answered as expected, or left.
        wrong: the first answer that was not.
    """

    def __init__(self, port: int, seed: int):
        self.count, self.wrong, self._port, self._ended = 0, "", port, threading.Event()
        self._requests, self._lock = requests(), threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(seed + number,)) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the clients after their present requests."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _work(self, seed: int) -> None:
        rng, connection = random.Random(seed), None
        while not self._ended.is_set() and not self.wrong:
            for request in rng.sample(self._requests, len(self._requests)):
                if self._ended.is_set():
                    break
                try:
                    if not request.status:
                        _leave(self._port, request)
                    else:
                        connection = connection or http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
                        self._check(connection, request)
                        if rng.random() < 0.1:  # others stay on their connection
                            connection.close()
                            connection = None
                except (OSError, http.client.HTTPException) as error:
                    self.wrong = self.wrong or f"{request.method} {request.path}: {error!r}"
                with self._lock:
                    self.count += 1
        if connection:
            connection.close()

    def _check(self, connection: http.client.HTTPConnection, request: Request) -> None:
        body = request.body if request.method == "POST" else None
        connection.request(request.method, request.path, body, {"Content-Type": request.kind})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != request.status:
            self.wrong = self.wrong or f"{request.path} {request.body[:80]!r}: {answer.status} {text[:300]!r}"


def _leave(port: int, request: Request) -> None:
    """Send a request, or half of it, and leave."""
    head = f"POST {request.path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(request.body)}\r\n\r\n"
    body = request.body[: len(request.body) // 2] if request.kind == "half" else request.body
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.sendall(head.encode() + body)
        time.sleep(0.01)


def index_of(folder: Path, model: str) -> Path:
    """Make an index of a few sounds, and return its folder."""
    from wavlink.search.index import Index

    (folder / "sounds").mkdir()
    for number in range(8):
        (folder / f"sounds/{number}.wav").write_bytes(sound(2, seed=number))
    Index.build(folder / "sounds", folder / "index", model or "wavlink-tiny", progress=False)
    return folder / "index"


def serve_command(model: str, workplace: Path) -> Sequence[object]:
    """The words, after Python's, that start a server with an index."""
    options = ["--index", index_of(workplace, model), "--port", 0, "--json", "--max_seconds", 60]
    return ["-m", "wavlink", "serve", *([model] if model else []), *options]
