"""A Hub on loopback where things go wrong, as and as often as a test says."""

import math
import re
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from .hub_server import Handler, Hub

HOWS = ("broken", "cut", "flipped", "lost")


class FaultyHub(Hub):
    def __init__(self, root: Path):
        self.faults = []
        super().__init__(root, FaultyHandler)

    def fail(self, method: str, path: str, how: str | Callable[[], None], times: float = math.inf) -> None:
        """Lets the next `times` requests with this method, and a path that holds the pattern, go wrong.

        Args:
            how: `"broken"`, the server answers 500; `"cut"`, the connection breaks in the middle of the body;
                `"flipped"`, a bit of the body changes on the way; `"lost"`, all is done but no answer arrives; or
                what to do first, after which all goes well.
        """
        assert callable(how) or how in HOWS
        self.faults.append([method, re.compile(path), how, times])

    def next_fault(self, method: str, path: str) -> str | Callable[[], None] | None:
        with self.lock:
            for fault in self.faults:
                if fault[0] == method and fault[1].search(path) and fault[3] > 0:
                    fault[3] -= 1
                    return fault[2]
        return None


class Cut(Exception):
    pass


class FaultyHandler(Handler):
    hub: FaultyHub

    def do_GET(self):
        self.how = self.hub.next_fault(self.command, urlsplit(self.path).path)
        try:
            if callable(self.how):
                self.how()
            if self.how == "broken":
                self.hub.requests.append((self.command, urlsplit(self.path).path))
                list(self.pieces())
                return self.send(500, {"error": "Internal Error"})
            super().do_GET()
        except Cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def pieces(self):
        if self.how == "cut":
            if self.command in ("POST", "PUT"):
                self.rfile.read1(1000)
            raise Cut
        for number, piece in enumerate(super().pieces()):
            yield bytes([piece[0] ^ 1]) + piece[1:] if self.how == "flipped" and not number else piece

    def send(self, *args):
        if self.how == "lost":
            raise Cut
        super().send(*args)
