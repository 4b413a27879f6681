"""Dynamic batches: inputs of several requests are embedded together, by one thread.

While the model computes a batch, requests arrive. The next batch takes all of them, up to a limit, so that a batch is
as large as the load, and a request to an idle server waits for no other. Within a batch the oldest request is answered
first, as soon as its own vectors are there. Whoever shares its batch, a vector is that of `Embedder` (fp32: to 1e-5).
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any

import numpy as np

from wavlink.embedder import Embedder
from wavlink.vocabulary import unnamed

from .errors import RequestError

SOUND_SECONDS, TEXTS = 320.0, 256  # of a batch; `Embedder` divides its clips among several runs of the model
_PART_SECONDS, _PART_TEXTS = 30.0, 64  # of one request in a batch, so that a large request does not stop the others
_PART_CLIPS = 64
_UNLIMITED = 10**9  # a tokenizer without a limit has int(1e30)
_abandoned: ContextVar[threading.Event | None] = ContextVar("abandoned", default=None)


class Abandoned(Exception):
    """Raised in the thread of a request that nobody waits for any more."""


@contextmanager
def stopped_by(event: threading.Event) -> Iterator[None]:
    """Raise `Abandoned` where this thread waits for vectors, or asks for some, after `event` is set."""
    token = _abandoned.set(event)
    try:
        yield
    finally:
        _abandoned.reset(token)


class _Part:
    """Texts or clips of one request, and the future of their vectors."""

    def __init__(self, kind: str, items: Sequence[Any], cost: float):
        self.kind, self.items, self.cost = kind, items, cost  # cost: share of a batch
        self.future: Future = Future()
        self._abandoned = _abandoned.get()  # of the request's thread

    def is_wanted(self) -> bool:
        """Whether somebody waits for it; if not, its thread gets `Abandoned`."""
        if self._abandoned is None or not self._abandoned.is_set():
            return True
        self.future.set_exception(Abandoned())
        return False


class Batcher:
    """One thread that embeds texts and clips of all requests, in the order in which they come.

    Args:
        embedder: used by this thread alone.
        observe: called after each batch with its kind, `"text"` or `"audio"`, its number of inputs, and its seconds.
    """

    def __init__(self, embedder: Embedder, observe: Callable[[str, int, float], None] = lambda *_: None):
        self.embedder, self._observe = embedder, observe
        self._parts: queue.SimpleQueue[_Part | None] = queue.SimpleQueue()
        self._left: _Part | None = None  # the first part of the next batch
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def embed_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """Return the vectors `[texts, dims]` and the number of tokens.

        Raises:
            ValueError: a text over the model's limit, or one that the model has no vector for.
        """
        parts = [texts[start : start + _PART_TEXTS] for start in range(0, len(texts), _PART_TEXTS)]
        results = [self._submit(_Part("text", part, len(part) / TEXTS)) for part in parts]
        vectors = [result[0] for result in results] or [np.empty((0, self.embedder.dims), np.float32)]
        return np.concatenate(vectors), sum(result[1] for result in results)

    def embed_clips(self, clips: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Return the vectors of a few clips `[samples]` at the model's rate."""
        seconds = sum(map(len, clips)) / self.embedder.sampling_rate
        return self._submit(_Part("audio", clips, seconds / SOUND_SECONDS))

    def waiting(self) -> int:
        """Return the number of parts that no batch has taken yet."""
        return self._parts.qsize()

    def close(self) -> None:
        """End the thread after all that was submitted."""
        self._parts.put(None)
        self._thread.join()

    def _submit(self, part: _Part) -> Any:
        self._parts.put(part)
        return part.future.result()

    def _run(self) -> None:
        open_ = True
        while open_:
            parts, open_ = self._take()
            parts = [part for part in parts if part.is_wanted()]
            for kind in ("text", "audio"):
                if same := [part for part in parts if part.kind == kind]:
                    self._compute(kind, same)

    def _take(self) -> tuple[list[_Part], bool]:
        """Wait for a part, and take those that came with it, up to a batch; False after the last one."""
        first, self._left = self._left or self._parts.get(), None
        if first is None:
            return [], False
        parts, cost = [first], first.cost
        while True:
            try:
                part = self._parts.get_nowait()
            except queue.Empty:
                return parts, True
            if part is None:
                return parts, False
            if cost + part.cost > 1:
                self._left = part
                return parts, True
            parts.append(part)
            cost += part.cost

    def _compute(self, kind: str, parts: list[_Part]) -> None:
        """Embed parts together; where that fails, each by itself, so that an error is that of its own request."""
        start, done = time.perf_counter(), 0
        try:
            for result in self._embed_texts(parts) if kind == "text" else self._embed_clips(parts):
                if done == len(parts) - 1:
                    self._observe(kind, sum(len(part.items) for part in parts), time.perf_counter() - start)
                parts[done].future.set_result(result)
                done += 1
        except Exception as error:
            if len(parts) == 1:
                parts[0].future.set_exception(error)
            else:
                for part in parts[done:]:
                    self._compute(kind, [part])

    def _embed_texts(self, parts: list[_Part]) -> list[tuple[np.ndarray, int]]:
        with unnamed():  # a server names no words of its users
            tokens = [count_tokens(self.embedder.processor, part.items) for part in parts]
            vectors = self.embedder.embed_text([text for part in parts for text in part.items])
        ends = np.cumsum([len(part.items) for part in parts])[:-1]
        return list(zip(np.split(vectors, ends), tokens, strict=True))

    def _embed_clips(self, parts: list[_Part]) -> Iterator[list[np.ndarray]]:
        """Yield the vectors of each part while those of the next are computed."""
        with closing(self.embedder.embed_clips(clip for part in parts for clip in part.items)) as vectors:
            for part in parts:
                yield list(islice(vectors, len(part.items)))


class BatchedEmbedder(Embedder):
    """An embedder whose batches are shared by all threads that use it.

    Functions that take an `Embedder`, such as `classify`, run in many threads at once with it.

    Args:
        embedder: whose model and properties these are.
        batcher: of that embedder.
    """

    def __init__(self, embedder: Embedder, batcher: Batcher):
        vars(self).update(vars(embedder))
        self._batcher = batcher

    def embed_clips(self, clips: Iterable, lookahead: int = 256) -> Iterator[np.ndarray]:
        """Embed clips, in order, while they are read; see `Embedder.embed_clips`."""
        part, seconds = [], 0.0
        for index, clip in enumerate(clips):
            part.append(self._check(clip, index))
            seconds += len(part[-1]) / self.sampling_rate
            if seconds >= _PART_SECONDS or len(part) >= min(_PART_CLIPS, lookahead):
                yield from self._batcher.embed_clips(part)
                part, seconds = [], 0.0
        if part:
            yield from self._batcher.embed_clips(part)

    def embed_text(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        """Embed texts `[texts, dims]`; see `Embedder.embed_text`. None of them is truncated."""
        return self._batcher.embed_texts(texts)[0]


def count_tokens(processor: Any, texts: Sequence[str]) -> int:
    """Return the number of tokens of texts.

    Raises:
        RequestError: a text has more than the model takes.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        return 0
    limit = getattr(processor, "text_limit", None) or tokenizer.model_max_length
    lengths = [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]
    for text, length in zip(texts, lengths, strict=True):
        if limit < _UNLIMITED and length > limit:
            raise RequestError(
                400,
                f"the text {text!r:.80} has {length} tokens, the model takes {limit}: shorten it",
                code="context_length_exceeded",
            )
    return sum(lengths)
