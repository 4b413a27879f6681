"""What commands share: exit codes, one line for an error, one JSON document, signals, lines of progress."""

import contextlib
import json
import logging
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar

from .hub_errors import without_token
from .packages import install_hint, is_own
from .sanitize import clean

EXIT_CODES = """exit codes:
  0    done
  1    a fault of wavlink's own, with its traceback: please report it
  2    not done: what was given, the disk or the Hub does not allow it; one line says why and what to do
  130  stopped by SIGINT (ctrl-C); 143 by SIGTERM. train and index go on where they were, by the same command"""
_MOST = 2000  # characters of an error
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
    """Run a command's `main` and return the exit code, by `EXIT_CODES`; what the user can mend is one line on stderr.

    Args:
        arguments: what `command` is called with.
        extra: of setup.cfg, that the command needs.
        debug: print the traceback above the line.
        as_json: print `{"error": line}` on stdout as well.
    """
    escape_unwritable()
    try:
        return command(arguments) or 0
    except (ValueError, OSError) as error:
        line, failure = clean(error, _MOST), error
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
    """Print why a command was not done: a line on stderr, and with `as_json` an object on stdout."""
    print(f"{name}: {line}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": line}, indent=2), flush=True)


def escape_unwritable() -> None:
    """Let stdout and stderr write what their encoding does not have, such as names of files, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Raise a KeyboardInterrupt that holds the signal's number on SIGINT and SIGTERM, so that temporary files go.

    It is one even where other code, interrupted, fails with an error of its own: `shutil.rmtree`, stopped right after
    it has closed a folder, closes it again, which is an OSError.
    """
    came = []

    def stop(number, _):
        came.append(number)
        raise KeyboardInterrupt(number)

    with on_stop_signals(stop):
        try:
            yield
        except Exception as error:
            if came:
                raise KeyboardInterrupt(came[0]) from error
            raise


def code_of(stopped: KeyboardInterrupt) -> int:
    """Return the exit code; of one that holds no number, SIGINT's."""
    return 128 + (stopped.args[0] if stopped.args else signal.SIGINT)


@contextlib.contextmanager
def on_stop_signals(handler: Callable) -> Iterator[dict]:
    """Call `handler` on SIGINT and SIGTERM; yields by number what they did before, and do again afterwards."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield before
    finally:
        for number, own in before.items():
            signal.signal(number, own)


@contextlib.contextmanager
def stdout_for(result: bool):
    """With `result`, print everything to stderr, and yield a function that prints the one JSON document to stdout."""
    target = sys.stdout
    with contextlib.redirect_stdout(sys.stderr if result else target):
        yield lambda value: result and print_json(value, target)


def print_json(value, file=None) -> None:
    """Print a command's result; under `in_results` as an object that holds it as `results`."""
    document = {"results": value} if _in_results.get() else value
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
    """Print a line of progress on stderr: what takes its time now."""
    print(f"{line} ...", file=sys.stderr, flush=True)


@contextlib.contextmanager
def without_foreign_output() -> Iterator[None]:
    """Keep warnings and log records below an error from the terminal; errors are raised and logged as ever."""
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
