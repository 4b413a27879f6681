"""A server under load, for killed.py: what it has accepted is answered, and every answer is right."""

import base64
import hashlib
import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from forked import command, finish, noting_modules, preload, start
from killed_index import words_of
from killed_train import Subject, train_words, write_sounds

CLIENTS = 8
STOPS_WITHIN = 120  # seconds after SIGTERM or SIGINT
TOLERANCE = 5e-5  # of numbers, since requests share batches
_CONTINUE = b"HTTP/1.1 100 "


class Serve(Subject):
    """A model and an index, asked by 8 clients for all that a server answers; some kills come while it loads."""

    def __init__(self, place: Path, log: Path):
        import train  # noqa: F401

        os.environ["HF_HOME"] = str(place / "home")
        write_sounds(place / "sounds")
        finish(command, train_words(place / "sounds", place / "run", 2), log)
        model, index = place / "run/last", place / "index"
        finish(command, words_of(index, place / "sounds", "--model", model), log)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        options = ("--index", index, "--port", self.port, "--max_wait", 600)
        self.words = list(map(str, ["-m", "wavlink", "serve", model, *options]))
        self.bodies, self.log = bodies(sorted((place / "sounds/train").glob("*.wav"))[:4]), log
        self.kept, self.tally, self.longest = (model, index, place / "home", place / "temporary"), Counter(), 0.0
        self.never_killed(log)
        self.files = digests(*self.kept)

    def never_killed(self, log: Path) -> None:
        """The answers to compare with, each asked for alone; notes how long the server takes to start."""
        began, process = time.monotonic(), start(noting_modules, [log.with_name("modules"), *self.words], log)
        self.expected = [self.ask_until_answered(process, body) for body in self.bodies]
        self.seconds = time.monotonic() - began
        os.kill(process.pid, signal.SIGTERM)
        process.join(STOPS_WITHIN)
        preload(log.with_name("modules"))

    def ask_until_answered(self, process, body: tuple[bytes, bytes]) -> dict:
        while process.is_alive():
            asked = Asked()
            asked.ask(self.port, *body)
            if asked.status:
                assert asked.status == 200, asked.answer
                return json.loads(asked.answer)
            time.sleep(0.05)
        raise SystemExit(self.log.read_text(encoding="utf-8")[-4000:])

    def begin(self) -> None:
        """Nothing is made anew: one server after another has the same files."""

    def wait(self, process, rng: random.Random) -> None:
        self.process, self.over, self.asked = process, threading.Event(), []
        seeds = [rng.random() for _ in range(CLIENTS)]
        self.clients = [threading.Thread(target=self.client, args=(random.Random(seed),)) for seed in seeds]
        loading, seconds = rng.random() < 1 / 6, rng.uniform(0, 1)
        for client in self.clients:
            client.start()
        while not loading and process.is_alive() and not any(asked.status for asked in self.asked):
            time.sleep(0.005)
        time.sleep(seconds * (self.seconds if loading else 2))
        self.answering, self.killed = any(asked.status for asked in self.asked), time.monotonic()

    def client(self, rng: random.Random) -> None:
        while not self.over.is_set():
            number = rng.randrange(len(self.bodies))
            asked = Asked(number, waits=rng.random() < 0.5)
            self.asked.append(asked)
            asked.ask(self.port, *self.bodies[number])
            if not asked.status:
                time.sleep(0.02)  # until it listens again

    def after_kill(self, code: int) -> str:
        seconds = time.monotonic() - self.killed
        self.over.set()
        for client in self.clients:
            client.join()
        self.longest = max(self.longest, seconds if code != -signal.SIGKILL else 0)
        wrong = [self.wrong(asked, code == -signal.SIGKILL) for asked in self.asked]
        if self.answering and code in (-signal.SIGTERM, -signal.SIGINT):
            wrong.append(f"it was answering, and ended with {code}")
        if seconds > STOPS_WITHIN:
            wrong.append(f"it took {seconds:.0f} s to stop")
        if (now := digests(*self.kept)) != self.files:
            wrong.append(f"other files: {sorted(set(now.items()) ^ set(self.files.items()))}")
        return "; ".join(filter(None, wrong))

    def wrong(self, asked: "Asked", at_once: bool) -> str:
        """What is wrong with an answer, or with there being none; counts what there is."""
        if asked.status:
            self.tally["answered"] += 1
            right = asked.status == 200 and same(json.loads(asked.answer), self.expected[asked.number])
            return "" if right else f"request {asked.number} got {asked.status} {asked.answer[:500]!r}"
        kind = "half an answer" if asked.answer else "accepted, not answered" if asked.accepted else "not accepted"
        self.tally[kind] += 1
        return "" if at_once or kind == "not accepted" else kind

    def finish(self, log: Path) -> None:
        """Once more, and each request alone."""
        process = start(command, self.words, log)
        for body, expected in zip(self.bodies, self.expected, strict=True):
            assert same(self.ask_until_answered(process, body), expected)
        os.kill(process.pid, signal.SIGTERM)
        process.join(STOPS_WITHIN)
        assert process.exitcode == 128 + signal.SIGTERM, process.exitcode

    def after_end(self) -> str:
        return "" if digests(*self.kept) == self.files else "other files"

    def told(self) -> tuple[str, dict]:
        facts = dict(self.tally) | {"longest stop in seconds": round(self.longest, 2)}
        return f"{self.tally['answered']:,} answers, all right; by SIGTERM and SIGINT none lost", facts


@dataclass
class Asked:
    """A request, and what came of it.

    Args:
        number: of its body.
        waits: for the server's word that it has accepted the request, before the body is sent.
    """

    number: int = 0
    waits: bool = False
    accepted: bool = False
    status: int = 0  # once the answer is whole
    answer: bytes = b""

    def ask(self, port: int, head: bytes, body: bytes) -> None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=900) as connection:
                connection.sendall(head + (b"Expect: 100-continue\r\n\r\n" if self.waits else b"\r\n"))
                if self.waits:
                    self.accepted = read_head(connection).startswith(_CONTINUE)
                connection.sendall(body)
                self.read(connection)
        except (ConnectionError, EOFError):
            pass

    def read(self, connection: socket.socket) -> None:
        self.answer = read_head(connection)
        head, _, content = self.answer.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        while len(content) < length:
            content += received(connection)
        self.status, self.answer = int(lines[0].split()[1]), content


def read_head(connection: socket.socket) -> bytes:
    """A head, and what of the body has come with it."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += received(connection)
    return found


def received(connection: socket.socket) -> bytes:
    part = connection.recv(2**16)
    if not part:
        raise EOFError
    return part


def bodies(files: list[Path]) -> list[tuple[bytes, bytes]]:
    """Heads, without their last line, and bodies of requests of every route, as JSON and as forms."""
    found = [post("embeddings", {"input": text}) for text in ("rain", ["a dog barks", "a bell rings"])]
    for file in files:
        sound = f"data:audio/wav;base64,{base64.b64encode(file.read_bytes()).decode()}"
        found.append(post("embeddings", {"input": sound}))
        found.append(post("classify", {"input": sound, "labels": ["a dog", "rain", "a bell"]}))
        found.append(post("locate", {"input": sound, "query": "a dog", "window": 0.5, "hop": 0.5}))
        found.append(post("search", {"sound": sound, "top_k": 3}))
        disposition = b'--limit\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        form = disposition + file.read_bytes() + b"\r\n--limit--\r\n"
        found.append((head("embeddings", "multipart/form-data; boundary=limit", form), form))
    return found


def post(route: str, document: dict) -> tuple[bytes, bytes]:
    body = json.dumps(document).encode()
    return head(route, "application/json", body), body


def head(route: str, kind: str, body: bytes) -> bytes:
    lines = f"POST /v1/{route} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", f"Content-Length: {len(body)}"
    return "".join(f"{line}\r\n" for line in lines).encode()


def same(found, expected) -> bool:
    """Whether two documents are equal but for the last digits of their numbers."""
    if isinstance(expected, float) and isinstance(found, float):
        return abs(found - expected) <= TOLERANCE * max(1, abs(expected))
    if isinstance(expected, dict) and isinstance(found, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list) and isinstance(found, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and found == expected


def digests(*folders: Path) -> dict[str, str]:
    """Of every file below some folders."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
