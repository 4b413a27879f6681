"""An S3 server on loopback: moto's, as a process."""

import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from .processes import started

_BUCKET = "sounds"
_SECONDS = 60  # that the server's start may take


@contextmanager
def s3_server() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of an empty bucket, and the storage options to reach it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with started([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stderr=-3, stdout=-3):
        end = time.monotonic() + _SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < end, "moto's server does not start"
                time.sleep(0.05)
        endpoint = f"http://127.0.0.1:{port}"
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{_BUCKET}", method="PUT"), timeout=10).close()
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region": "us-east-1"}
        yield f"s3://{_BUCKET}", {"aws_endpoint": endpoint, "allow_http": "true", **keys}
