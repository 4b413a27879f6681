"""Worker processes of a DataLoader, which outlive the signals that stop a run."""

import multiprocessing
import multiprocessing.context
import os
import signal
import threading
from typing import Any

import torch

_FORK = "fork" in multiprocessing.get_all_start_methods() and hasattr(signal, "sigwaitinfo")


def loader_options(num_workers: int) -> dict[str, Any]:
    """Return the options of a training run's `DataLoader` with so many worker processes.

    Its generator is a separate one: a resumed run must not advance that of the model.
    """
    forks = _FORK and num_workers and multiprocessing.get_start_method() == "fork"
    return {
        "num_workers": num_workers,
        "multiprocessing_context": _Context() if forks else None,
        "generator": torch.Generator(),
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": ignore_stop_signals,
    }


if _FORK:

    class _Worker(multiprocessing.context.ForkProcess):
        """A worker that starts with SIGTERM blocked, as are then the threads that libraries start anew in it."""

        def start(self) -> None:
            """Start the process; this thread's mask is restored."""
            before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            try:
                super().start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    class _Context(multiprocessing.context.ForkContext):
        Process = _Worker


def ignore_stop_signals(worker: int = 0) -> None:
    """Make a worker process ignore SIGINT and SIGTERM, unless its parent sends the latter.

    ctrl-C, `timeout` and schedulers send a signal to every process of a run. The main process then ends after its
    step with a checkpoint, and ends its workers itself. Where the system does not report who has sent a signal (macOS,
    Windows), SIGINT alone is ignored.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # also in threads that start later
        threading.Thread(target=_end_by_parent, daemon=True).start()


def _end_by_parent() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
