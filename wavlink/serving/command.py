"""The command `wavlink serve`: embed, name, find and locate sounds over HTTP.

wavlink serve runs/my/best --index my_index --port 8000
"""

import argparse
import asyncio
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from wavlink.console import StopSignal, print_json, step
from wavlink.embedder import Embedder
from wavlink.kept_memory import return_freed_memory
from wavlink.system_errors import explained

from .app import create_app
from .connections import BACKLOG, listen, new_server
from .limits import Limits

if TYPE_CHECKING:
    from wavlink.search.index import Index

KEY = "WAVLINK_API_KEY"
_LOCAL = ("127.0.0.1", "::1", "localhost")
_SHORTEST_KEY = 8  # characters
_FILES = 256  # open files besides connections
_TRIM_SECONDS = 10.0  # between returns of freed memory


def run(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM, answer what was accepted, and return 130 or 143."""
    limits = Limits(
        max_bytes=round(options.max_mb * 2**20),
        max_seconds=options.max_seconds,
        max_queue=options.max_queue,
        max_wait=options.max_wait,
        max_connections=options.max_connections,
    )
    key = read_key(options.api_key_file)
    listening = listen(options.host, options.port)
    with listening:
        allow_connections(limits.max_connections)
        if not options.as_json:
            step(f"loading {options.model or 'the model'}")
        embedder, open_index = _load(options)
        quiet()
        app = create_app(embedder, open_index, limits=limits, name=options.name or _id_of(embedder), key=key)
        warm_up(embedder)
        return serve(new_server(app, limits), listening, options, bool(key))


def quiet() -> None:
    """Log no line for each odd sound or form of a client."""
    for name in ("processing", "python_multipart"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if of_transformers := sys.modules.get("transformers.utils.logging"):
        of_transformers.set_verbosity_error()


def serve(server: uvicorn.Server, listening: socket.socket, options: argparse.Namespace, has_key: bool) -> int:
    """Run a server in a thread until a signal stops it, and return the exit code."""
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    failed: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(server.serve(sockets=[listening]))
        except BaseException as error:  # raised in the main thread
            failed.append(error)

    thread = threading.Thread(target=work, name="server")
    with StopSignal("stopping: answering accepted requests") as stopped:
        thread.start()
        try:
            while thread.is_alive() and not server.started:
                thread.join(0.05)
            if server.started:
                _announce(address, options, has_key)
            trimmed = time.monotonic()
            while thread.is_alive() and not stopped:
                thread.join(0.2)
                if time.monotonic() - trimmed >= _TRIM_SECONDS:
                    return_freed_memory()
                    trimmed = time.monotonic()
        finally:
            server.should_exit = True
            try:
                thread.join()
            except KeyboardInterrupt:  # the second: no answers any more
                server.force_exit = True
                thread.join()
    if failed:
        raise failed[0]
    return 128 + stopped.number if stopped.number else 0


def read_key(path: str) -> str:
    """Return the key that clients must give: a file's first line, or the environment's; "" for none.

    Raises:
        ValueError: the file cannot be read, or the key is too short to protect anything.
    """
    if path:
        try:
            key = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            what, _ = explained(error)
            raise ValueError(f"--api_key_file {path} cannot be read, {what}: name another file") from error
    else:
        key = os.environ.get(KEY, "").strip()
    if (path or KEY in os.environ) and len(key) < _SHORTEST_KEY:
        raise ValueError(f"the key has {len(key)} characters: give {_SHORTEST_KEY} or more, without line breaks")
    if not key.isascii() or any(character.isspace() for character in key):
        raise ValueError("the key must be ASCII without spaces, as a header takes it")
    return key


def allow_connections(most: int) -> None:
    """Raise this process's limit of open files, where the system has one, to what connections and files take.

    Raises:
        ValueError: the system does not allow so many.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    others = BACKLOG + _FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < most + others:
        raise ValueError(f"this system allows {hard} open files: give --max_connections {max(1, hard - others)}")
    if soft != resource.RLIM_INFINITY and soft < most + others:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most + others, hard))


def warm_up(embedder: Embedder) -> None:
    """Embed a text and a clip once, so that the first request is no slower than others.

    Raises:
        ValueError: the model gives no vectors.
    """
    import numpy as np

    embedder.embed_text(["rain"])
    noise = np.random.default_rng(0).normal(scale=0.1, size=embedder.sampling_rate)
    list(embedder.embed_clips([noise.astype(np.float32)]))


def _load(options: argparse.Namespace) -> tuple[Embedder, Callable[[Embedder], "Index"] | None]:
    """Load the model, and return how the index is opened with it."""
    computing = {name: getattr(options, name) for name in ("device", "dtype", "backend", "precision")}
    if not options.index:
        return Embedder(options.model, revision=options.revision, **computing), None
    from wavlink.search.index import Index

    where = {"storage_options": options.storage_options}

    def open_index(embedder: Embedder) -> Index:
        index = Index.open(options.index, embedder, **where)
        assert index.embedder is embedder  # else the index is of another model, which raises a ValueError
        return index

    if options.model:
        return Embedder(options.model, revision=options.revision, **computing), open_index
    return Index.open(options.index, **computing, **where).embedder, open_index


def _id_of(embedder: Embedder) -> str:
    """Return a model's id: a Hub id or a bundled model's name, of a folder its last part alone."""
    name = embedder.name
    return os.path.basename(os.path.abspath(name)) if os.path.isdir(name) else name


def _announce(address: str, options: argparse.Namespace, has_key: bool) -> None:
    if not has_key and options.host not in _LOCAL:
        line = f"anyone who reaches {options.host} can use this server: set {KEY} or --api_key_file"
        print(line, file=sys.stderr, flush=True)
    if options.as_json:
        print_json({"url": address})
    else:
        print(f"{address}  (documentation: {address}/docs)", flush=True)
