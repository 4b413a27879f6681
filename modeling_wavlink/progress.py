"""Progress bars that neither a moved clock nor a killed process can stop."""

import os
import threading
import time

from tqdm import tqdm


class Bar(tqdm):
    """tqdm with a lock and a clock of its own; with `disable=True` no bar is made at all.

    tqdm's lock is also a semaphore that forked processes share: one that is killed while it holds it makes all others
    wait forever, even for a bar that shows nothing. This lock is between threads alone, and anew in a forked process.
    The clock is monotonic: put back by a day, the system's would let a bar stand still for a day.
    """

    _lock = threading.RLock()
    monitor_interval = 0  # no thread beside: it could hold the lock while this process is forked

    def __new__(cls, *arguments, disable: bool | None = False, **options):
        return _NoBar() if disable else super().__new__(cls, *arguments, **options)

    def __init__(self, *arguments, miniters: float | None = 1, **options):
        super().__init__(*arguments, miniters=miniters, **options)  # fixed: tqdm's own estimate needs that thread

    @property
    def _time(self):
        return time.monotonic

    @_time.setter
    def _time(self, clock):  # tqdm sets it first of all that needs it
        pass


class _NoBar:
    """Has what this project uses of a bar, and shows nothing."""

    n = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, n: float = 1) -> None:
        pass

    def set_postfix(self, *_, **__) -> None:
        pass

    def refresh(self) -> None:
        pass

    def close(self) -> None:
        pass


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: Bar.set_lock(threading.RLock()))
