"""The application: its routes, and the threads that answer them."""

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException

from wavlink import __version__
from wavlink.embedder import Embedder

from .answers import Answers, Files
from .batching import Abandoned, BatchedEmbedder, Batcher, stopped_by
from .errors import RequestError, as_json, as_request_error, content_of, headers_of
from .forms import FORMS, URLENCODED, parse_form
from .guard import Guard
from .limits import Limits
from .metrics import CONTENT_TYPE, Metrics
from .openapi import describe
from .requests import Body, ClassifyRequest, EmbeddingRequest, LocateRequest, SearchRequest, from_json
from .responses import Answer, ClassifyAnswer, EmbeddingAnswer, LocateAnswer, SearchAnswer

if TYPE_CHECKING:
    from wavlink.search.index import Index

_THREADS = 32  # requests that are decoded and computed at once, the most that share a batch
_DESCRIPTION = "Embed, name, find and locate sounds. Errors are `{error: {message, type, param, code}}`."

logger = logging.getLogger(__name__)


class Route(NamedTuple):
    """A path, the request it takes, its response, and the name of what answers it in `Answers`."""

    path: str
    request: type[Body]
    response: type[Answer]
    answer: str
    summary: str


ROUTES = (
    Route("/v1/embeddings", EmbeddingRequest, EmbeddingAnswer, "embeddings", "Embed texts and sounds"),
    Route("/v1/classify", ClassifyRequest, ClassifyAnswer, "classify", "Name sounds"),
    Route("/v1/search", SearchRequest, SearchAnswer, "search", "Find sounds of the index"),
    Route("/v1/locate", LocateRequest, LocateAnswer, "locate", "Find where in a recording something sounds"),
)
PATHS = [*(route.path for route in ROUTES), "/v1/models", "/health", "/metrics", "/docs", "/openapi.json"]


def create_app(
    embedder: Embedder,
    index: "Callable[[Embedder], Index] | None" = None,
    *,
    limits: Limits | None = None,
    name: str = "",
    key: str = "",
) -> FastAPI:
    """Return the application of a model, for uvicorn or another ASGI server; one process is enough.

    Args:
        embedder: used by the application alone from now on.
        index: opens the index that is searched, with the embedder that it is given.
        limits: default: `Limits()`.
        name: the model's id (default: the embedder's name).
        key: that clients have to give; "" for none.

    Raises:
        ValueError: an index that cannot be opened, or of another model.
    """
    limits, metrics = limits or Limits(), Metrics(PATHS)
    batcher = Batcher(embedder, metrics.count_batch)
    batched = BatchedEmbedder(embedder, batcher)
    answers = Answers(name or embedder.name, batcher, batched, index and index(batched), limits, metrics)
    threads = Threads(limits)
    metrics.watch("wavlink_queue", "Requests that wait or are computed", lambda: threads.admitted)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        threads.close()
        batcher.close()

    app = FastAPI(title="WavLink", version=__version__, description=_DESCRIPTION, lifespan=lifespan, redoc_url=None)
    app.add_middleware(Guard, limits=limits, metrics=metrics, key=key)
    app.add_exception_handler(HTTPException, _refuse)
    for route in ROUTES:
        _add(app, route, answers, threads)
    _add_facts(app, answers, threads)
    describe(app, {route.path: (route.request, route.response) for route in ROUTES}, bool(key))
    return app


class Threads:
    """Threads that answer requests, and how many they have admitted."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="request")
        self._pace = 0.0  # seconds from answer to answer while there is work
        self.admitted = 0

    async def run(self, work: Callable[[], bytes], receive: Callable) -> bytes:
        """Return what `work` returns; it is abandoned where its client leaves or its time is over.

        Args:
            receive: of ASGI, after the body.

        Raises:
            RequestError: too many requests are waiting, or this one has for too long.
        """
        if self.admitted >= self._limits.max_queue:
            raise RequestError(
                429,
                f"{self.admitted} requests are waiting, the most that the server takes: try again later",
                code="rate_limit_exceeded",
                retry_after=self._wait(),
            )
        self.admitted += 1
        loop, start, abandoned = asyncio.get_running_loop(), time.monotonic(), threading.Event()
        future = self._pool.submit(_stoppable, work, abandoned)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._release, start))
        answer, gone = asyncio.wrap_future(future), asyncio.ensure_future(_disconnect(receive))
        try:
            await asyncio.wait({answer, gone}, timeout=self._limits.max_wait, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if gone.done():
                raise RequestError(499, "the client has left")
            message = f"not answered within {self._limits.max_wait:g} s: try again later, or send less in a request"
            raise RequestError(503, message, code="timeout", retry_after=self._wait())
        finally:
            abandoned.set()
            gone.cancel()
            answer.cancel()

    def close(self) -> None:
        """Wait for the threads to end."""
        self._pool.shutdown()

    def _release(self, start: float) -> None:
        pace = (time.monotonic() - start) / self.admitted
        self._pace = pace if not self._pace else 0.9 * self._pace + 0.1 * pace
        self.admitted -= 1

    def _wait(self) -> int:
        """Return the seconds in which half of the waiting requests will have been answered, from 1 to 60."""
        return min(60, max(1, math.ceil(self.admitted / 2 * self._pace)))


def _stoppable(work: Callable[[], bytes], abandoned: threading.Event) -> bytes:
    with stopped_by(abandoned):
        if abandoned.is_set():
            raise Abandoned
        return work()


async def _disconnect(receive: Callable) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _add(app: FastAPI, route: Route, answers: Answers, threads: Threads) -> None:
    """Add a route that takes JSON or a form."""
    answer = getattr(answers, route.answer)

    async def endpoint(http: Request) -> Response:
        try:
            parse = await _parser(http, route.request, answers.limits.max_items)

            def work() -> bytes:
                request, uploads = parse()
                answers.check_model(request.model)
                return as_json(answer(request, uploads))

            return Response(await threads.run(work, http.receive), media_type="application/json")
        except HTTPException:
            raise
        except Exception as error:
            if not isinstance(error, ValueError):
                logger.exception("a request failed")
            refused = as_request_error(error)
            return Response(content_of(refused), refused.status, headers_of(refused))

    endpoint.__name__, endpoint.__doc__ = route.answer, route.request.__doc__
    app.post(route.path, summary=route.summary, operation_id=route.answer)(endpoint)


async def _parser(http: Request, model: type[Body], most: int) -> Callable[[], tuple[Body, Files]]:
    """Return a function that parses the request, of at most so many inputs, to be called in a thread."""
    body = await http.body()
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if (encoding := http.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise RequestError(415, f"content-encoding {encoding!r:.100}: send the body as it is")
    if kind == URLENCODED and body.lstrip()[:1] == b"{":
        raise RequestError(415, "the body is JSON and is sent as a form: send Content-Type: application/json")
    if kind in FORMS:
        return lambda: parse_form(model, http.scope, body, most, kind)
    if body and kind != "application/json":
        raise RequestError(415, f"content-type {kind!r:.100}: send application/json or multipart/form-data")
    return lambda: (from_json(model, body, most), [])


def _add_facts(app: FastAPI, answers: Answers, threads: Threads) -> None:
    """Add the routes that say how the server is."""

    @app.get("/v1/models", summary="The model that is served")
    async def models() -> Response:
        embedder = answers.embedder
        model = {"id": answers.name, "object": "model", "created": 0, "owned_by": "wavlink"}
        model |= {"dimensions": sorted({*embedder.matryoshka_dims, embedder.dims}), "revision": embedder.revision}
        model |= {"sampling_rate": embedder.sampling_rate, "max_seconds": answers.limits.max_seconds}
        return Response(as_json({"object": "list", "data": [model]}), media_type="application/json")

    @app.get("/health", summary="Whether the server answers")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": answers.name, "queue": threads.admitted}

    @app.get("/metrics", summary="Figures for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(answers.metrics.text(), headers={"content-type": CONTENT_TYPE})


async def _refuse(http: Request, error: Exception) -> Response:
    """Answer an error of routing or of a form."""
    assert isinstance(error, HTTPException)
    messages = {404: "there is no such path: /docs lists them", 405: f"{http.url.path} takes no {http.method}"}
    refused = RequestError(error.status_code, messages.get(error.status_code, error.detail))
    return Response(content_of(refused), refused.status, {**headers_of(refused), **(error.headers or {})})
