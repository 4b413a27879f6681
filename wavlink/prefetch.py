"""Compute results in a thread, in advance of the code that takes them."""

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T, R = TypeVar("T"), TypeVar("R")


def prefetch(work: Callable[[Iterator[T]], Iterator[R]], items: Iterable[T], ahead: int) -> Iterator[R]:
    """Yield the results of `work(items)`, which a thread computes up to `ahead` results in advance.

    Closing the iterator ends the thread.
    """
    room, results, closed = threading.Semaphore(ahead), queue.SimpleQueue(), threading.Event()
    end = object()

    def run():
        error = None
        try:
            for result in work(itertools.takewhile(lambda _: not closed.is_set(), items)):
                results.put((result, None))
                room.acquire()
                if closed.is_set():
                    break
        except BaseException as caught:  # raised in the caller, whatever it is
            error = caught
        results.put((end, error))

    thread = threading.Thread(target=run, name="embedder", daemon=True)
    thread.start()
    try:
        while True:
            result, error = results.get()
            if error is not None:
                raise error
            if result is end:
                return
            room.release()
            yield result
    finally:
        closed.set()
        room.release()
        thread.join()
