"""Progress bars: tqdm, with a lock of this process alone; those of other libraries are hidden where they disturb."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


class Bar(tqdm):
    """A tqdm bar that is safe in forked processes.

    It has no monitor thread, which could hold the lock during a fork. tqdm's own lock is also a semaphore between
    forked processes: if one is killed while it holds the lock, all others wait forever, even for a disabled bar.
    """

    monitor_interval = 0

    def __init__(self, *args, miniters: float | None = 1, **kwargs):
        super().__init__(*args, miniters=miniters, **kwargs)  # tqdm's own estimate needs the monitor thread


@contextmanager
def loading_bars_hidden(downloads: bool = False) -> Iterator[None]:
    """Hide transformers' progress bars of weights that are loaded or saved; afterwards its setting is as before.

    Nothing is done where transformers has not been imported.

    Args:
        downloads: whether huggingface_hub's bars are hidden as well.
    """
    if sys.modules.get("transformers") is None:
        yield
        return
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    loading, hub = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()  # of both libraries
    if hub and not downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        if loading:
            logging.enable_progress_bar()
        if hub == are_progress_bars_disabled():
            (enable_progress_bars if hub else disable_progress_bars)()


Bar.set_lock(threading.RLock())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: Bar.set_lock(threading.RLock()))
