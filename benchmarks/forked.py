"""A command as a process of its own, forked from one that has imported what it imports: it starts in no time."""

import atexit
import importlib
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

MOST_SECONDS = 3600  # of a command
FORK = multiprocessing.get_context("fork")


def call(function: Callable, words: list, log: Path) -> None:
    """Runs in the child. SIGINT interrupts it even if this script was started where it is ignored, as by nohup."""
    os.setpgid(0, 0)  # what it starts can be killed with it
    tqdm.set_lock(threading.RLock())  # tqdm's own is shared: a killed child that held it would stop all others
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(log, "a", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        function(*words)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def command(*words: str) -> None:
    """As `python WORDS`."""
    sys.argv = list(words)
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


def noting_modules(names: Path, *words: str) -> None:
    try:
        command(*words)
    finally:
        names.write_text("\n".join(sorted(sys.modules)), encoding="utf-8")


def start(function: Callable, words: list, log: Path) -> multiprocessing.Process:
    process = FORK.Process(target=call, args=(function, words, log))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # until `call` can say how it ends by it
    try:
        process.start()
        atexit.register(kill_group, process)  # where this script is interrupted or fails
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return process


def kill_group(process: multiprocessing.Process) -> None:
    """SIGKILL to a process of `start` and all that it has started; nothing where they have ended."""
    process.kill()  # before it has a group of its own
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def finish(function: Callable, words: list, log: Path) -> float:
    """Seconds that it took; it must end well."""
    began, process = time.monotonic(), start(function, words, log)
    process.join(MOST_SECONDS)
    if process.exitcode is None:
        kill_group(process)
        fail(f"{words or function.__name__} did not end in {MOST_SECONDS} s", log)
    if process.exitcode:
        fail(f"{words or function.__name__} ended with {process.exitcode}", log)
    return time.monotonic() - began


def finish_and_preload(words: list, log: Path) -> float:
    """As `finish`; what it has imported, much of it only where it was needed, is imported from then on."""
    names = log.with_name("modules")
    seconds = finish(noting_modules, [names, *words], log)
    preload(names)
    return seconds


def preload(names: Path) -> None:
    """Import what `noting_modules` has noted."""
    for name in names.read_text(encoding="utf-8").split():
        with suppress(Exception):
            importlib.import_module(name)


def fail(why: str, log: Path) -> None:
    sys.exit(f"{why}\n{log.read_text(encoding='utf-8')[-4000:]}")
