"""`wavlink serve`: what it refuses before it listens, its key, and how it stops."""

import asyncio
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from tests.conftest import tone
from tests.served import Client, audio_item
from wavlink import cli
from wavlink.embedder import Embedder
from wavlink.serving import command
from wavlink.serving.limits import Limits

EXAMPLE = Path(__file__).parents[2] / "examples/openai_client.py"
TEXTS = ["rain falls", "a dog barks"]
COMMAND = [sys.executable, "-m", "wavlink", "serve"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [("short", "5 characters"), ("", "0 characters"), ("two words of it", "without spaces"), ("schlüssel", "ASCII")],
)
def test_a_key_that_protects_nothing_is_refused(content, reason, tmp_path, monkeypatch):
    (tmp_path / "key").write_text(content + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=reason):
        command.read_key(str(tmp_path / "key"))
    monkeypatch.setenv("WAVLINK_API_KEY", content)
    with pytest.raises(ValueError, match=reason):
        command.read_key("")


def test_the_key_is_a_files_or_the_environments(tmp_path, monkeypatch):
    monkeypatch.delenv("WAVLINK_API_KEY", raising=False)
    assert command.read_key("") == ""
    monkeypatch.setenv("WAVLINK_API_KEY", "of-the-environment")
    assert command.read_key("") == "of-the-environment"
    (tmp_path / "key").write_text("of-the-file\n")
    assert command.read_key(str(tmp_path / "key")) == "of-the-file"
    with pytest.raises(ValueError, match="--api_key_file .*none cannot be read"):
        command.read_key(str(tmp_path / "none"))


def test_an_address_that_is_in_use_is_refused_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "no_such_model", "--port", str(port)]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"wavlink serve: cannot listen on 127.0.0.1:{port}") and line.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--max_mb", "0"], "argument --max_mb: must be a number above 0, at most 1e12, got '0'"),
        (["--max_mb", "1e305"], "argument --max_mb: must be a number above 0, at most 1e12, got '1e305'"),
        (["--max_queue", "-1"], "argument --max_queue: must be a whole number, 1 or more, got '-1'"),
        (["--max_wait", "nan"], "argument --max_wait: must be a number above 0, at most 1e12, got 'nan'"),
        (["--port", "70000"], "argument --port: must be a whole number from 0 to 65535, got '70000'"),
        (["--host", "256.0.0.1"], "cannot listen on"),
        (["--max_connections", "100000000"], "open files: give --max_connections"),
        (["no/such/model"], "no/such/model"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(arguments, reason, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(["serve", "--port", "0", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("wavlink serve: ") and reason in lines[-1]


def test_limits_are_above_zero():
    with pytest.raises(ValueError, match="max_seconds must be above 0, got 0"):
        Limits(max_seconds=0)


def test_freed_memory_is_returned_while_a_server_runs(monkeypatch):
    returned = threading.Event()

    class Server:
        started, should_exit = True, False

        async def serve(self, sockets) -> None:
            while not (self.should_exit or returned.is_set()):
                await asyncio.sleep(0.01)

    monkeypatch.setattr(command, "return_freed_memory", returned.set)
    monkeypatch.setattr(command, "_TRIM_SECONDS", 0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert command.serve(Server(), listening, Namespace(as_json=True, host="127.0.0.1"), True) == 0


LOADED = {"revision": None, "device": "cpu", "dtype": "float32", "backend": None, "precision": None}


def test_the_index_names_its_model(embedder, index_folder, wavlink_folder, monkeypatch):
    options = Namespace(model="", index=str(index_folder), storage_options=None, **LOADED)
    monkeypatch.setattr("wavlink.search.open_index.embedder_of", lambda *_, **__: embedder)
    loaded, open_index = command._load(options)
    assert loaded is embedder and len(open_index(embedder)) == 8


def test_an_index_of_another_model_is_refused(index_folder, wavlink_folder):
    options = Namespace(model=str(wavlink_folder), index=str(index_folder), storage_options=None, **LOADED)
    loaded, open_index = command._load(options)
    loaded.revision = "sha256:0"
    with pytest.raises(ValueError, match="their vectors do not compare"):
        open_index(loaded)


@pytest.fixture
def served(wavlink_folder, index_folder, tmp_path, start):
    """A server in a process of its own, with a key, and a client of it."""
    (tmp_path / "key").write_text("correct-horse")
    options = ["--index", index_folder, "--port", "0", "--json", "--api_key_file", tmp_path / "key"]
    with open(tmp_path / "log", "w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = start(
            [*COMMAND, wavlink_folder, *options], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
    text = ""
    while not text.endswith("}\n}\n"):
        text += process.stdout.readline() or pytest.fail((tmp_path / "log").read_text())
    client = Client(int(json.loads(text)["results"]["url"].rpartition(":")[2]), "correct-horse")
    client.process, client.log = process, tmp_path / "log"
    return client


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_accepted_requests_are_answered_after_sigterm(served, wavlink_folder):
    assert served.post("/v1/search", {"text": "rain", "top_k": 1})[0] == 200
    body = json.dumps({"input": ["rain", audio_item(tone(400, 2))]}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {served.key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connections = [served.connect() for _ in range(8)]
    for connection in connections:
        connection.sendall(head.encode() + body[:100])
    assert served.get("/health")[0] == 200  # the heads before it have been read
    served.process.send_signal(signal.SIGTERM)
    while "stopping: answering accepted requests" not in served.log.read_text():  # or the test's own limit of time
        time.sleep(0.01)
    for connection in connections:
        connection.sendall(body[100:])
    answers = []
    for connection in connections:
        received = b""
        while part := connection.recv(2**16):
            received += part
        assert received.startswith(b"HTTP/1.1 200 ")
        answers.append(json.loads(received.partition(b"\r\n\r\n")[2])["data"])
        connection.close()
    assert served.process.wait(60) == 143
    vectors = np.array([[row["embedding"] for row in answer] for answer in answers])
    np.testing.assert_allclose(vectors, vectors[:1].repeat(8, 0), atol=1e-5)
    assert "correct-horse" not in served.log.read_text() and "Traceback" not in served.log.read_text()
    with pytest.raises(ConnectionError):
        served.connect()


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_batches_of_new_sizes_take_no_new_memory(served):
    """In MiB; 196 without the limits, since oneDNN keeps what it compiles for each size."""
    process, resident = psutil.Process(served.process.pid), []
    for words in range(1, 5):
        for count in range(1, 70):
            assert served.post("/v1/embeddings", {"input": ["rain " * words] * count})[0] == 200
        resident.append(process.memory_info().rss / 2**20)
    assert resident[-1] - resident[0] < 40


@pytest.mark.slow
def test_the_example_client_compares_texts_and_a_sound(served, wavlink_folder, tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(400, 0.5), 16000)
    program = [sys.executable, EXAMPLE, tmp_path / "a.wav", "--text", *TEXTS]
    environment = {
        **os.environ,
        "WAVLINK_API_KEY": served.key,
        "OPENAI_BASE_URL": f"http://127.0.0.1:{served.port}/v1",
    }
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    name, *lines = done.stdout.splitlines()
    embedder = Embedder(str(wavlink_folder))
    cosines = embedder.embed_text(TEXTS) @ next(embedder.embed_files([tmp_path / "a.wav"]))
    found = {text: float(cosine) for cosine, text in (line.split(maxsplit=1) for line in lines)}
    assert name == str(tmp_path / "a.wav") and found == pytest.approx(dict(zip(TEXTS, cosines, strict=True)), abs=6e-4)
