"""Workers of a DataLoader: they ignore the signals that stop a run, and end when their parent ends them."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from torch.utils.data import DataLoader

from processing.datasets.worker_processes import loader_options

pytestmark = pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the sender of a signal is unknown here")


@pytest.fixture
def thread_of_a_library():
    """A thread that starts in every forked process, as some libraries' threads do."""
    begins = [True]

    def start() -> None:
        if begins:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()

    os.register_at_fork(after_in_child=start)
    yield
    begins.clear()


def test_workers_ignore_stop_signals_of_other_processes(thread_of_a_library):
    loader = iter(DataLoader(range(6), batch_size=1, **loader_options(1)))
    assert next(loader).item() == 0
    (worker,) = loader._workers
    for number in (signal.SIGTERM, signal.SIGINT):
        send = f"import os; os.kill({worker.pid}, {int(number)})"
        subprocess.run([sys.executable, "-c", send], check=True, timeout=60)
    assert [batch.item() for batch in loader] == [1, 2, 3, 4, 5]


def test_a_worker_ends_when_its_parent_terminates_it():
    loader = iter(DataLoader(range(6), batch_size=1, **loader_options(1)))
    next(loader)
    (worker,) = loader._workers
    began = time.monotonic()
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0 and time.monotonic() - began < 30
