"""A server of `wavlink serve` in a thread, and a client of it."""

import asyncio
import base64
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np

from tests.helpers import wav
from wavlink.serving.app import ROUTES, create_app
from wavlink.serving.connections import listen, new_server
from wavlink.serving.limits import Limits

RESPONSES = {route.path: route.response for route in ROUTES}


class Client:
    """Sends requests to a port of this machine, and returns the status and the document of each answer.

    Answers with status 200 are checked to be what the OpenAPI document says.
    """

    def __init__(self, port: int, key: str = ""):
        self.port, self.key = port, key

    def post(self, path: str, body: object, **headers: str) -> tuple[int, dict]:
        """Post a document as JSON, or bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, document, _ = self.send("POST", path, content, **{"Content-Type": "application/json", **headers})
        return status, document

    def get(self, path: str) -> tuple[int, dict]:
        status, document, _ = self.send("GET", path)
        return status, document

    def send(self, method: str, path: str, content: bytes | None = None, **headers: str) -> tuple[int, object, dict]:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        document = json.loads(text) if is_json else text.decode()
        if answer.status == 200 and path in RESPONSES:
            RESPONSES[path].model_validate(document, strict=True)
        return answer.status, document, dict(answer.headers)

    def connect(self) -> socket.socket:
        """Open a connection, and send nothing."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=120)


@contextmanager
def serving(embedder, index: Callable | None = None, key: str = "", **limits):
    """A client of a server that runs in a thread and is stopped as by a signal."""
    app = create_app(embedder, index, limits=Limits(**limits), key=key, name="tiny")
    listening = listen("127.0.0.1", 0)
    server = new_server(app, Limits(**limits))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    try:
        deadline = time.monotonic() + 120
        while not server.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        client = Client(listening.getsockname()[1], key)
        client.app = app
        yield client
    finally:
        server.should_exit = True
        thread.join(120)
        assert not thread.is_alive()


def audio_item(clip: np.ndarray) -> dict:
    """A clip as OpenAI's chat completions take it."""
    return {"type": "input_audio", "input_audio": {"data": as_base64(wav(clip)), "format": "wav"}}


def data_url(content: bytes) -> str:
    return f"data:audio/wav;base64,{as_base64(content)}"


def as_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def form(**fields: object) -> tuple[bytes, str]:
    """A body of multipart/form-data and its content type; bytes are files, lists are repeated fields."""
    parts = []
    for name, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            kind = '; filename="a.wav"\r\nContent-Type: audio/wav' if isinstance(one, bytes) else ""
            content = one if isinstance(one, bytes) else str(one).encode()
            parts.append(f'--limit\r\nContent-Disposition: form-data; name="{name}"{kind}\r\n\r\n'.encode() + content)
    return b"\r\n".join([*parts, b"--limit--\r\n"]), "multipart/form-data; boundary=limit"
