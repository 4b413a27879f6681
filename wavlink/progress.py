"""Progress bars: tqdm, with a lock of this process alone."""

import os
import threading

from tqdm import tqdm


class Bar(tqdm):
    """A tqdm bar that is safe in forked processes.

    It has no monitor thread, which could hold the lock during a fork. tqdm's own lock is also a semaphore between
    forked processes: if one is killed while it holds the lock, all others wait forever, even for a disabled bar.
    """

    monitor_interval = 0

    def __init__(self, *args, miniters: float | None = 1, **kwargs):
        super().__init__(*args, miniters=miniters, **kwargs)  # tqdm's own estimate needs the monitor thread


Bar.set_lock(threading.RLock())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: Bar.set_lock(threading.RLock()))
