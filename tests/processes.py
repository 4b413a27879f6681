"""Processes that tests start: each in a group of its own, all of which is killed when a test ends, however it ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch.multiprocessing as mp

SECONDS = 240  # less than a test may take


@contextmanager
def started(command: Sequence, **options) -> Iterator[subprocess.Popen]:
    """A `subprocess.Popen` with these options; it, and what it has started, ends here by SIGKILL."""
    process = subprocess.Popen([os.fspath(word) for word in command], start_new_session=True, **options)
    try:
        yield process
    finally:
        kill_group(process)


def run_process(
    command: Sequence, *, timeout: float = SECONDS, capture_output: bool = False, check: bool = False, **options
) -> subprocess.CompletedProcess:
    """As `subprocess.run`. On a time-out or a failure what the command has started is killed too."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(command, **options) as process:
        stdout, stderr = process.communicate(timeout=timeout)
    done = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
    if check:
        done.check_returncode()
    return done


def kill_group(process: subprocess.Popen) -> None:
    """SIGKILL to a process of `started` and all that it has started; nothing where they have ended."""
    with suppress(ProcessLookupError, PermissionError):  # macOS refuses where all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()


def spawn(work: Callable, arguments: tuple, count: int, timeout: float = SECONDS) -> None:
    """As `torch.multiprocessing.spawn`, but its processes are killed after so many seconds and on a failure.

    On Linux they are forked from one process that has imported the module of `work`, and do not import it each.
    """
    method = "forkserver" if sys.platform == "linux" else "spawn"
    if method == "forkserver":
        multiprocessing.set_forkserver_preload([work.__module__])
    end = time.monotonic() + timeout
    context = mp.start_processes(work, arguments, nprocs=count, join=False, start_method=method)
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < end, f"{work.__name__} runs for over {timeout:g} s"
    finally:
        for process in context.processes:
            process.kill()
            process.join()
