"""Shared behaviour of the commands: exit codes, errors in one line, JSON output, signals, lines of progress."""

import atexit
import contextlib
import gc
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from types import FrameType
from typing import Any, TextIO

from .hub_errors import without_token
from .installing import install_hint
from .packages import is_own
from .sanitize import clean
from .system_errors import described

EXIT_CODES = """exit codes:
  0    done
  1    an error in wavlink itself, with its traceback: please report it
  2    not done: the arguments, the disk or the Hub do not allow it; one line says why and what to do
  130  stopped by SIGINT (ctrl-C); 143 by SIGTERM. The same command resumes train and index"""
_MOST = 2000  # characters of an error
_SAME_STOP = 1.0  # seconds in which a repeated SIGINT is of the same ctrl-C
_in_results = ContextVar("in_results", default=False)


def run_command(
    name: str,
    command: Callable,
    arguments: Sequence[str] | None = None,
    *,
    extra: str = "",
    debug: bool = False,
    as_json: bool = False,
) -> int:
    """Run a command's `main` and return the exit code (see `EXIT_CODES`); a user's error is one line on stderr.

    Args:
        name: of the command, in errors.
        command: returns an exit code or None.
        arguments: that `command` is called with.
        extra: of setup.cfg, that the command needs.
        debug: print the traceback above the line.
        as_json: print `{"error": line}` on stdout as well.
    """
    escape_unwritable()
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)  # Python would search torch's and transformers' objects for cycles, for a second
    try:
        return command(arguments) or 0
    except (ValueError, OSError) as error:
        line, failure = clean(described(error), _MOST), error
    except ModuleNotFoundError as error:
        if not error.name or is_own(error.name):
            raise
        line, failure = install_hint(error.name, extra), error
    except SystemExit as stopped:
        if not isinstance(stopped.code, str):
            return stopped.code or 0
        print(stopped.code, file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        if stopped.args[1:]:
            print(f"{name}: {stopped.args[1]}", file=sys.stderr)
        return code_of(stopped)
    if debug:
        print(without_token("".join(traceback.format_exception(failure))), end="", file=sys.stderr)
    print_error(name, line, as_json)
    return 2


def print_error(name: str, line: str, as_json: bool = False) -> None:
    """Print an error: a line on stderr, and with `as_json` an object on stdout."""
    print(f"{name}: {line}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": line}, indent=2), flush=True)


def escape_unwritable() -> None:
    """Make stdout and stderr write characters that their encoding lacks, such as in file names, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Raise a KeyboardInterrupt with the signal's number on SIGINT and SIGTERM, so that temporary files are removed.

    Errors that the interrupted code raises are replaced by it: `shutil.rmtree`, stopped right after it has closed a
    folder, closes it again, which is an OSError.
    """
    received = []

    def stop(number, _):
        received.append(number)
        raise KeyboardInterrupt(number)

    with on_stop_signals(stop):
        try:
            yield
        except Exception as error:
            if received:
                raise KeyboardInterrupt(received[0]) from error
            raise


def code_of(stopped: KeyboardInterrupt) -> int:
    """Return the exit code of an interrupt; without a signal's number, that of SIGINT."""
    return 128 + (stopped.args[0] if stopped.args else signal.SIGINT)


@contextlib.contextmanager
def on_stop_signals(handler: Callable) -> Iterator[None]:
    """Call `handler` on SIGINT and SIGTERM; the former handlers are restored afterwards."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


class StopSignal:
    """The first SIGINT or SIGTERM that arrives while its context is entered, after which work ends in an orderly way.

    `timeout` and launchers send a signal to a process and once more to its group. Therefore a repeated SIGTERM, or a
    SIGINT within a second, changes nothing; a later SIGINT raises a KeyboardInterrupt.

    Args:
        line: written to stderr at once.

    Attributes:
        event: set by the signal.
        number: the signal's; None before.
    """

    def __init__(self, line: str = ""):
        self.line = line
        self.event = threading.Event()
        self.number: int | None = None
        self._received = 0.0
        self._handling = on_stop_signals(self._receive)

    def __bool__(self) -> bool:
        return self.event.is_set()

    def __enter__(self) -> "StopSignal":
        self._handling.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._handling.__exit__(*error)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if not self:
            self.number, self._received = number, time.monotonic()
            self.event.set()
            if self.line:
                with contextlib.suppress(OSError):  # past sys.stderr, which the signal may have interrupted
                    os.write(2, f"\n{self.line}\n".encode())
        elif number == signal.SIGINT and time.monotonic() > self._received + _SAME_STOP:
            raise KeyboardInterrupt(number)


@contextlib.contextmanager
def stdout_for(result: bool) -> Iterator[Callable]:
    """With `result`, print everything to stderr, and yield a function that prints the one JSON document to stdout."""
    target = sys.stdout
    with contextlib.redirect_stdout(sys.stderr if result else target):
        yield lambda value: result and print_json(value, target)


def print_json(value: Any, file: TextIO | None = None, **beside: Any) -> None:
    """Print a command's result; under `in_results` as an object that holds it as `results`, with `beside`."""
    document = {"results": value, **beside} if _in_results.get() else value
    print(json.dumps(document, indent=2), file=file or sys.stdout, flush=True)


@contextlib.contextmanager
def in_results() -> Iterator[None]:
    """Give every JSON document of the command `wavlink` one shape: an object with `results`, or with `error`."""
    token = _in_results.set(True)
    try:
        yield
    finally:
        _in_results.reset(token)


def step(line: str) -> None:
    """Print a line of progress on stderr: the step that runs now."""
    print(f"{line} ...", file=sys.stderr, flush=True)


@contextlib.contextmanager
def without_foreign_output() -> Iterator[None]:
    """Hide warnings and log records below an error; errors are raised and logged as usual."""
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
