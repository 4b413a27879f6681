"""The command `wavlink`: every other command of this package by one name.

It hands its arguments on to the command that does the work, which alone knows its options. Nothing is imported before
it is known which one that is, so that `wavlink --help` answers at once.
"""

import contextlib
import difflib
import importlib
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from hub_cards.foreign_text import clean


class Command(NamedTuple):
    """`module`'s `main`, given `first` and then what the user gave."""

    module: str
    first: tuple[str, ...]
    does: str
    example: str


EVALUATION, SEARCH = "modeling_wavlink.evaluation", "modeling_wavlink.search"
COMMANDS = {
    "train": Command("train", (), "train a recipe, or go on with it", "sounds --data my_sounds --output_dir runs/my"),
    "eval": Command(EVALUATION, (), "score models on a benchmark", "--model runs/my/best --benchmark my_sounds"),
    "classify": Command(
        "modeling_wavlink.classify", (), "name sounds", "dog.wav --model runs/my/best --labels dog rain"
    ),
    "index": Command(SEARCH, ("index",), "index sounds", "my_sounds --model runs/my/best --out my_index"),
    "query": Command(SEARCH, ("query",), "find sounds in an index", 'my_index "a dog barks" --without rain'),
    "info": Command(SEARCH, ("info",), "what an index holds, and what was skipped", "my_index"),
    "verify": Command(SEARCH, ("verify",), "compare an index with its checksums", "my_index --drop"),
    "remove": Command(SEARCH, ("remove",), "take sounds out of an index", "my_index dogs/old.wav"),
    "reindex": Command(SEARCH, ("reindex",), "a smaller copy of an index", "my_index --out small --storage binary"),
    "map": Command("modeling_wavlink.sound_map", (), "draw an index as a map to click on", "my_index --out map.html"),
    "where": Command("modeling_wavlink.long", (), "where a sound is", "runs/my/best night.flac --query siren"),
    "export": Command("modeling_wavlink.onnx_export", (), "both towers as ONNX", "runs/my/best onnx/my --int8"),
    "push": Command("hub_cards.push", (), "publish a model with its card", "runs/my/best your-name/wavlink-my"),
    "space": Command("hub_cards.space.app", (), "a demo in the browser", "--model runs/my/best --index my_index"),
}
_OWN = ("hub_cards", "modeling_wavlink", "processing", "train")
EXIT_CODES = """exit codes:
  0    done
  1    a fault of wavlink's own, with its traceback: please report it
  2    not done: what was given, the disk or the Hub does not allow it; one line says why and what to do
  130  stopped by SIGINT (ctrl-C); 143 by SIGTERM. train and index go on where they were, by the same command"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    escape_unwritable()
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        print(f"wavlink: no command {name!r}; {advice}", file=sys.stderr)
        return 2
    return _handed_on(name, rest)


def _handed_on(name: str, rest: list[str]) -> int:
    command = COMMANDS[name]
    sys.argv[0] = f"wavlink {name}"  # what the command's own help calls it

    def imported_and_called(arguments: list[str]) -> int | None:
        main = importlib.import_module(command.module).main
        importlib.import_module("transformers.utils.logging").disable_progress_bar()  # of the weights being loaded
        return main(arguments)

    return run_command(f"wavlink {name}", imported_and_called, [*command.first, *rest])


def run_command(name: str, command: Callable, arguments: Sequence[str] | None = None) -> int:
    """The exit code of a command's `main`, by `EXIT_CODES`; what the user can mend is one line on stderr."""
    escape_unwritable()
    try:
        return command(arguments) or 0
    except (ValueError, OSError) as error:
        print(f"{name}: {clean(error, 2000)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _OWN:
            raise
        extra = "space" if error.name == "gradio" else "all"
        print(f"{name}: {error.name} is not installed: pip install 'wavlink[{extra}]'", file=sys.stderr)
        return 2
    except SystemExit as stopped:
        if not isinstance(stopped.code, str):
            return stopped.code or 0
        print(stopped.code, file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        return code_of(stopped)


def escape_unwritable() -> None:
    """Let stdout and stderr write what their encoding does not have, such as names of files, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _help() -> str:
    lines = [
        "usage: wavlink COMMAND ...",
        "",
        "Audio and text in one short vector: train, measure, search, publish.",
        "",
    ]
    for name, command in COMMANDS.items():
        lines += [f"  {name:9} {command.does}", f"            wavlink {name} {command.example}"]
    return "\n".join([*lines, "", "wavlink COMMAND --help tells a command's options.", "", EXIT_CODES])


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """SIGINT and SIGTERM raise a KeyboardInterrupt that holds their number, so that what is temporary goes.

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
    """The exit code; of one that holds no number, SIGINT's."""
    return 128 + (stopped.args[0] if stopped.args else signal.SIGINT)


@contextlib.contextmanager
def on_stop_signals(handler: Callable) -> Iterator[dict]:
    """SIGINT and SIGTERM call `handler`; yields by number what they did before, and do again afterwards."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield before
    finally:
        for number, own in before.items():
            signal.signal(number, own)


@contextlib.contextmanager
def stdout_for(result: bool):
    """With `result`, all that is printed goes to stderr, and the yielded function prints the one JSON to stdout."""
    target = sys.stdout
    with contextlib.redirect_stdout(sys.stderr if result else target):
        yield lambda value: result and print(json.dumps(value, indent=2), file=target, flush=True)


if __name__ == "__main__":
    sys.exit(main())
