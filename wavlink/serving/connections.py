"""Connections of slow and hostile clients: uvicorn waits for a request without end, and without a limit that is fair.

A connection that is opened and sends nothing, half a head, or a byte a second is closed after some seconds. Past a
number of open connections the one is closed that has waited longest for its request, so that a client that sends its
request at once gets its answer, however many others are open. Those that have had an answer already and those that
have not are two groups, and the larger one loses a connection: neither can crowd out the other.
"""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from wavlink.system_errors import not_listening

from .limits import Limits

BACKLOG = 512  # connections that the system holds until they are accepted
_FLUSH = 60.0  # seconds in which a client may read its answer
_SLACK = 60.0  # seconds of a request besides those of its limits, after which something must be wrong


class Connections:
    """The open connections of a server that wait for a request to begin, and those that wait for its body.

    Args:
        limits: on their number, and on the time in which a request must begin.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.new: dict[Connection, None] = {}  # without an answer yet, in the order in which they began to wait
        self.idle: dict[Connection, None] = {}  # likewise, for a further request
        self.busy: dict[Connection, None] = {}
        body = limits.body_seconds + limits.max_bytes / limits.body_rate
        self.longest = body + limits.max_wait + _SLACK

    def make_room(self) -> None:
        """Close the connections that have waited longest, until their number is within the limit."""
        while len(self.new) + len(self.idle) + len(self.busy) > self.limits.max_connections:
            self._longest_waiting().drop()

    def _longest_waiting(self) -> "Connection":
        """Return the first to close: one that waits, one whose body is arriving, and at last the newest."""
        waiting = self.idle if len(self.idle) >= len(self.new) else self.new
        if waiting is self.idle or len(waiting) > 1:
            return next(iter(waiting))
        (newest,) = self.new
        return next((connection for connection in self.busy if connection.is_arriving()), newest)


class Connection(H11Protocol):
    """uvicorn's connection, closed where its client lets it wait.

    Args:
        others: all connections of the server.
        options: of uvicorn.
    """

    def __init__(self, others: Connections, **options: Any):
        super().__init__(**options)
        self.others = others
        self.timer: asyncio.TimerHandle | None = None
        self.waits_in = others.new

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()
        self.others.make_room()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request; those of an unfinished head give it no more time."""
        super().data_received(data)
        if self in self.waits_in and self._answers():
            self._start()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, or go on with one that has arrived."""
        super().on_response_complete()
        self._forget()
        self.waits_in = self.others.idle
        if self._answers():
            self._start()
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._forget()
        super().connection_lost(exc)

    def is_arriving(self) -> bool:
        """Whether a body is still arriving."""
        return self.cycle is not None and self.cycle.more_body

    def drop(self) -> None:
        """Close the connection at once."""
        self._forget()
        self.transport.abort()

    def _answers(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._forget()
        self.waits_in[self] = None
        self._set_timer(self.others.limits.header_seconds, self._end_of_wait)

    def _start(self) -> None:
        self._forget()
        self.others.busy[self] = None
        self._set_timer(self.others.longest, self.drop)

    def _end_of_wait(self) -> None:
        if self.transport.get_write_buffer_size():  # its client still reads the answer
            self._set_timer(_FLUSH, self.drop)
        else:
            self.drop()

    def _forget(self) -> None:
        self.waits_in.pop(self, None)
        self.others.busy.pop(self, None)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _set_timer(self, seconds: float, then: Callable[[], None]) -> None:
        self.timer = self.loop.call_later(seconds, then)


def new_server(app: Callable, limits: Limits) -> uvicorn.Server:
    """Return a server of the application that closes slow connections.

    `serve(sockets=[...])` of it runs until `should_exit` is set, and answers what it has accepted.
    """
    config = uvicorn.Config(
        app,
        http=partial(Connection, Connections(limits)),  # type: ignore[arg-type]
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        log_level="error",  # not a line for each client that sends no HTTP
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 is any that is free.

    Raises:
        ValueError: the address is not one of this machine, or in use.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ValueError(not_listening(host, port, error)) from error
