"""Work that a thread does in advance of what takes its results."""

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator


def made_ahead(work: Callable[[Iterator], Iterator], items: Iterable, ahead: int) -> Iterator:
    """What `work` makes of `items`, made by a thread, up to `ahead` results in advance. Closing it ends the thread."""
    room, made, closed = threading.Semaphore(ahead), queue.SimpleQueue(), threading.Event()
    end = object()

    def run():
        error = None
        try:
            for result in work(itertools.takewhile(lambda _: not closed.is_set(), items)):
                made.put((result, None))
                room.acquire()
                if closed.is_set():
                    break
        except BaseException as caught:  # for the caller, whatever it is
            error = caught
        made.put((end, error))

    thread = threading.Thread(target=run, name="embedder", daemon=True)
    thread.start()
    try:
        while True:
            result, error = made.get()
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
