"""Progress bars: tqdm, with a lock that no other process shares."""

import os
import threading

from tqdm import tqdm


class Bar(tqdm):
    """tqdm without its monitor thread, which could hold the lock while this process is forked.

    tqdm's own lock is also a semaphore between forked processes: one that is killed while it holds the lock makes all
    others wait forever, even for a disabled bar.
    """

    monitor_interval = 0

    def __init__(self, *args, miniters: float | None = 1, **kwargs):
        super().__init__(*args, miniters=miniters, **kwargs)  # tqdm's own estimate needs the monitor thread


Bar.set_lock(threading.RLock())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: Bar.set_lock(threading.RLock()))
