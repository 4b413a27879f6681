"""What stands before every route: the key, the size of the body, and the time in which it must arrive.

A body is read in full before its route starts, so that a slow client costs memory for what it has sent, and nothing
else.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from .errors import RequestError, as_request_error, content_of, headers_of
from .limits import Limits
from .metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

OPEN = ("/health", "/docs", "/openapi.json")  # without a key
_LINGER = 2.0  # seconds

logger = logging.getLogger(__name__)


class Disconnected(Exception):
    """Raised where a client left before its request had arrived."""


class _Upload:
    """A body that is arriving: how much there is of it, and a future that is done once it must make room."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.received, self.start, self.evicted = 0, loop.time(), loop.create_future()


class Guard:
    """ASGI middleware.

    Args:
        app: the routes.
        limits: of bodies.
        metrics: count the requests.
        key: that clients give as `Authorization: Bearer KEY`; "" for none.
    """

    def __init__(self, app: Callable, limits: Limits, metrics: Metrics, key: str = ""):
        self.app, self.limits, self.metrics = app, limits, metrics
        self._key = _digest(key) if key else None
        self._arriving: dict[_Upload, None] = {}  # the oldest first
        self._held = 0  # bytes of all bodies, until they are answered

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on with its body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = _as_routed(scope)
        start, status, body = time.perf_counter(), 0, None

        async def counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            self._check_key(scope)
            body = await self.read_body(scope, receive)
            self._held += len(body)
            await self.app(scope, _replay(body, receive), counted)
        except Disconnected:
            status = 499  # as nginx counts it
        except Exception as error:
            if status:
                raise
            if not isinstance(error, RequestError):
                logger.exception("a request failed")
            await _refuse(as_request_error(error), counted, receive if body is None else None)
        finally:
            self._held -= len(body or b"")
            self.metrics.count_request(scope["path"], status, time.perf_counter() - start)

    def _check_key(self, scope: MutableMapping[str, Any]) -> None:
        if self._key is None or scope["path"] in OPEN:
            return
        scheme, _, given = _header(scope, b"authorization").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(given.strip()), self._key):
            raise RequestError(401, "give the server's key: Authorization: Bearer KEY", code="invalid_api_key")

    async def read_body(self, scope: MutableMapping[str, Any], receive: Receive) -> bytes:
        """Read a body.

        Raises:
            RequestError: it is too large, too slow, or had to make room for newer ones.
            Disconnected: the client has left.
        """
        length = _header(scope, b"content-length")
        if length.isdecimal() and int(length) > self.limits.max_bytes:
            raise self._too_large()
        upload = _Upload(asyncio.get_running_loop())
        self._arriving[upload] = None
        parts = []
        try:
            while True:
                message = await self.next_part(upload, receive)
                if message["type"] == "http.disconnect":
                    raise Disconnected
                part = message.get("body", b"")
                parts.append(part)
                upload.received += len(part)
                self._held += len(part)
                if upload.received > self.limits.max_bytes:
                    raise self._too_large()
                self._make_room(upload)
                if not message.get("more_body", False):
                    return b"".join(parts)
        finally:
            self._held -= upload.received
            del self._arriving[upload]

    async def next_part(self, upload: _Upload, receive: Receive) -> Message:
        """Wait for the next part of a body, until its time is over."""
        allowed = self.limits.body_seconds + upload.received / self.limits.body_rate
        left = upload.start + allowed - asyncio.get_running_loop().time()
        message = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({message, upload.evicted}, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
            if upload.evicted.done():
                raise _busy()
            if not message.done():
                raise RequestError(408, f"the body did not arrive in time: {upload.received} bytes in {allowed:.0f} s")
            return message.result()
        finally:
            message.cancel()

    def _make_room(self, upload: _Upload) -> None:
        """Where all bodies together are too large, end the one that has been arriving for longest."""
        if self._held <= self.limits.max_buffered:
            return
        oldest = next(iter(self._arriving))
        if oldest is upload:
            raise _busy()
        if not oldest.evicted.done():
            oldest.evicted.set_result(None)

    def _too_large(self) -> RequestError:
        return RequestError(413, f"the body is larger than {self.limits.max_bytes} bytes: send less in a request")


def _as_routed(scope: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return a scope with the path without slashes at its end, and GET for HEAD, whose body the server leaves out."""
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    return {**scope, "method": method, "path": scope["path"].rstrip("/") or "/"}


def _busy() -> RequestError:
    return RequestError(503, "the server is busy, try again in a moment", code="overloaded", retry_after=1)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body at once, then what `receive` gives."""
    waiting = [body]

    async def replayed() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replayed


async def _refuse(error: RequestError, send: Send, receive: Receive | None) -> None:
    """Answer with an error, and close the connection.

    Args:
        receive: of a body that may still be arriving. It is read for a moment, since many clients read no answer
            before they have sent all, and would take a closed connection for the answer.
    """
    content = content_of(error)
    headers = [(name.encode(), value.encode()) for name, value in headers_of(error).items()]
    headers += [(b"content-length", str(len(content)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": receive is not None})
    if receive is not None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_read_off(receive), _LINGER)
        await send({"type": "http.response.body", "body": b""})


async def _read_off(receive: Receive) -> None:
    while (await receive()).get("more_body", False):
        pass


def _header(scope: MutableMapping[str, Any], name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()  # of one length, so that a comparison takes the same time
