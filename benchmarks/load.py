"""How many requests `wavlink serve` answers, how fast, and beside whom; every answer is compared.

    python benchmarks/load.py [MODEL] [--clients 1 8 32 128] [--seconds 60] [--clip_seconds 10] [--record]
    python benchmarks/load.py --hostile 2000 --seconds 60
    python benchmarks/load.py --clients 8 --seconds 900

The server is a process of its own on loopback, with as many threads as this machine has processors. First the clips
are embedded offline, by `Embedder.embed_files` in this process, which gives the rate to compare with and the vectors
to expect. Then so many clients at a time, each on one connection, post a clip after the other to /v1/embeddings, as
wav files in base64, and compare each vector.

`--hostile N` opens N more connections from another process while the clients work: in turn one that sends nothing,
half a head, half a body, and a byte a second; one that is closed is opened again.

Without MODEL it is Base with random weights and one layer of text. Exits with 1 where an answer was wrong or an error.
"""

import argparse
import asyncio
import base64
import io
import itertools
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
import psutil
import records
import soundfile
import tables
from speed_systems import new_wavlink

from wavlink.embedder import Embedder
from wavlink.serving.command import allow_connections

ROOT = Path(__file__).parents[1]
RATE = 16000
CLIPS = 16  # that differ
PAUSE = 10  # seconds until a connection that was closed is opened again
TOLERANCE = 1e-5
BEGINNINGS = (
    b"",
    b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\n",
    b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b" " * 50000,
)
COLUMNS = ("clients", "requests a second", "of offline", "p50", "p99", "p99 / batch", "errors", "wrong", "memory")


def new_clips(seconds: float, seed: int) -> list[bytes]:
    """Make wav files of noise at 16 kHz, so that decoding takes the same time in all."""
    generator = np.random.default_rng(seed)
    files = []
    for _ in range(CLIPS):
        file = io.BytesIO()
        soundfile.write(file, generator.normal(scale=0.1, size=round(seconds * RATE)), RATE, format="WAV")
        files.append(file.getvalue())
    return files


def offline(embedder: Embedder, files: list[bytes], seconds: float) -> tuple[list[np.ndarray], float]:
    """Return the vectors of the files, and how many files a second are embedded over about `seconds`."""
    vectors = list(embedder.embed_files(files))  # warm
    start, done = time.perf_counter(), 0
    many = itertools.takewhile(lambda _: time.perf_counter() < start + seconds, itertools.cycle(files))
    for _ in embedder.embed_files(many):
        done += 1
    return vectors, done / (time.perf_counter() - start)


class Server:
    """A process of `wavlink serve`."""

    def __init__(self, model: str, options: list[str]):
        command = [sys.executable, "-m", "wavlink", "serve", model, "--port", "0", "--json", *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        text = ""
        while not text.endswith("}\n}\n"):
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit("the server has not started")
            text += line
        self.port = int(json.loads(text)["results"]["url"].rpartition(":")[2])

    def memory(self) -> float:
        """Return resident MiB."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    """Send a request, and return the status and the body of its answer."""
    writer.write(request)
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return int(head.split()[1]), await reader.readexactly(length)


def post(path: str, document: dict) -> bytes:
    body = json.dumps(document).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


class Tally:
    """What the clients of one phase have seen."""

    def __init__(self):
        self.seconds, self.errors, self.wrong = [], 0, 0


async def client(number: int, port: int, requests: list[bytes], expected: list[np.ndarray], end: float, tally: Tally):
    """Post a clip after the other until `end`, and compare each answer."""
    reader = writer = None
    for index in itertools.count(number):
        if time.perf_counter() >= end:
            break
        start = time.perf_counter()
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            status, body = await exchange(reader, writer, requests[index % CLIPS])
        except (OSError, EOFError, asyncio.IncompleteReadError):
            tally.errors += 1
            writer = None
            continue
        tally.seconds.append(time.perf_counter() - start)
        if status != 200:
            tally.errors += 1
            continue
        vector = np.frombuffer(base64.b64decode(json.loads(body)["data"][0]["embedding"]), "<f4")
        tally.wrong += not np.allclose(vector, expected[index % CLIPS], rtol=0, atol=TOLERANCE)
    if writer is not None:
        writer.close()


async def hostile(number: int, port: int) -> None:
    """Keep one connection open, and never finish a request on it."""
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            kind = number % (len(BEGINNINGS) + 1)
            try:
                if kind < len(BEGINNINGS):
                    writer.write(BEGINNINGS[kind])
                    await reader.read()
                else:
                    while not reader.at_eof():
                        writer.write(b"P")
                        await writer.drain()
                        await asyncio.sleep(1)
            finally:
                writer.close()
        await asyncio.sleep(PAUSE)


def attack(count: int, port: int, begun) -> None:
    """Keep so many hostile connections open, until this process is ended; set `begun` once all were tried."""

    async def all_of_them() -> None:
        enemies = [asyncio.ensure_future(hostile(number, port)) for number in range(count)]
        await asyncio.sleep(2)
        begun.set()
        await asyncio.gather(*enemies)

    allow_connections(count)
    asyncio.run(all_of_them())


@contextmanager
def attacked(count: int, port: int) -> Iterator[None]:
    """A context in which another process attacks."""
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    process = context.Process(target=attack, args=(count, port, begun), daemon=True)
    process.start()
    try:
        if not begun.wait(300):
            raise SystemExit("the hostile connections were not opened")
        yield
        if not process.is_alive():
            raise SystemExit("the process of the hostile connections has ended by itself")
    finally:
        process.kill()
        process.join()


async def batches(port: int) -> tuple[float, float]:
    """Return the number of audio batches so far, and the seconds of the model, from /metrics."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    _, body = await exchange(reader, writer, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    writer.close()
    figures = dict(line.rpartition(" ")[::2] for line in body.decode().splitlines() if not line.startswith("#"))
    names = 'wavlink_batch_size_count{kind="audio"}', 'wavlink_compute_seconds_total{kind="audio"}'
    return tuple(float(figures.get(name, 0)) for name in names)


async def phase(clients: int, seconds: float, server: Server, requests: list, expected: list) -> dict:
    """Run so many clients at once, and return the figures."""
    tally = Tally()
    before, start = await batches(server.port), time.perf_counter()
    least = server.memory()
    work = [client(number, server.port, requests, expected, start + seconds, tally) for number in range(clients)]
    await asyncio.gather(*work)
    passed, after = time.perf_counter() - start, await batches(server.port)
    count, computed = (new - old for new, old in zip(after, before, strict=True))
    quantiles = statistics.quantiles(tally.seconds, n=100) if len(tally.seconds) > 1 else [0.0] * 99
    return {
        "clients": clients,
        "answers": len(tally.seconds),
        "rate": (len(tally.seconds) - tally.errors) / passed,
        "p50": quantiles[49],
        "p99": quantiles[98],
        "batch": computed / count if count else 0.0,
        "errors": tally.errors,
        "wrong": tally.wrong,
        "memory": [least, server.memory()],
    }


def row(figures: dict, rate: float) -> list:
    """Return the cells of a phase, by `COLUMNS`."""
    number = records.number
    return [
        *(figures["clients"], number(figures["rate"], 2), number(figures["rate"] / rate, 2)),
        *(number(1000 * figures["p50"], 0, "ms"), number(1000 * figures["p99"], 0, "ms")),
        number(figures["p99"] / figures["batch"], 1) if figures["batch"] else None,
        *(figures["errors"], figures["wrong"]),
        number(figures["memory"][1], 0, "MiB"),
    ]


def measure(options: argparse.Namespace, model: str) -> None:
    allow_connections(max(options.clients))
    files = new_clips(options.clip_seconds, options.seed)
    expected, rate = offline(Embedder(model), files, min(options.seconds, 30))
    print(f"offline: {rate:.2f} clips a second")
    requests = []
    for file in files:
        url = f"data:audio/wav;base64,{base64.b64encode(file).decode()}"
        requests.append(post("/v1/embeddings", {"input": url, "encoding_format": "base64"}))
    server = Server(model, options.serve)
    try:
        phases = []
        for clients in options.clients:
            with attacked(options.hostile, server.port) if options.hostile else nullcontext():
                phases.append(asyncio.run(phase(clients, options.seconds, server, requests, expected)))
            print(json.dumps(phases[-1]), flush=True)
    finally:
        code = server.stop()
    table = records.table(COLUMNS, [row(figures, rate) for figures in phases])
    print(tables.markdown(table))
    beside = f" beside {options.hostile} hostile connections" if options.hostile else ""
    records.write(
        options.record,
        title="Requests that a server answers, beside the rate offline",
        seed=options.seed,
        note=f"Clips of {options.clip_seconds:g} s, {options.seconds:g} s of each number of clients{beside}; offline "
        f"{rate:.2f} clips a second. Every answer was compared with Embedder's to {TOLERANCE:g}.",
        values={"load": table},
        raw={"offline": rate, "phases": phases, "exit_code": code},
        packages=("fastapi", "uvicorn"),
    )
    if any(figures["errors"] or figures["wrong"] for figures in phases):
        sys.exit("there were errors or wrong answers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", nargs="?", help="a folder or a Hub id (default: Base with random weights)")
    add("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    add("--seconds", type=float, default=60, help="of each number of clients (%(default)s)")
    add("--clip_seconds", type=float, default=10, help="of each clip (%(default)s)")
    add("--hostile", type=int, default=0, help="connections that never finish a request (%(default)s)")
    add("--serve", nargs=argparse.REMAINDER, default=[], help="further options of wavlink serve, at the end")
    add("--seed", type=int, default=0)
    records.add_option(parser, "load")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not options.model:
            model, processor = new_wavlink()
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        measure(options, options.model or folder)


if __name__ == "__main__":
    main()
