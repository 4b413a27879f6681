"""The command `wavlink`: every other command of this package by one name.

It hands its arguments on to the command that does the work, which alone knows its options. Nothing is imported before
it is known which one that is, so that `wavlink --help` answers at once.
"""

import contextlib
import difflib
import importlib
import json
import sys
from collections.abc import Sequence
from typing import NamedTuple


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
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        print(f"wavlink: no command {name!r}; {advice}", file=sys.stderr)
        return 2
    return _run(name, rest)


def _run(name: str, rest: list[str]) -> int:
    command = COMMANDS[name]
    try:
        module = importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _OWN:
            raise
        print(f"wavlink {name}: {error.name} is not installed: pip install 'wavlink[all]'", file=sys.stderr)
        return 2
    importlib.import_module("transformers.utils.logging").disable_progress_bar()  # of the weights being loaded
    sys.argv[0] = f"wavlink {name}"  # what the command's own help calls it
    try:
        return module.main([*command.first, *rest]) or 0
    except (ValueError, OSError) as error:
        print(f"wavlink {name}: {_line(error)}", file=sys.stderr)
        return 2
    except SystemExit as stopped:
        if not isinstance(stopped.code, str):
            return stopped.code or 0
        print(stopped.code, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _line(error: Exception) -> str:
    from hub_cards.foreign_text import clean

    return clean(error, 2000)


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
def stdout_for(result: bool):
    """With `result`, all that is printed goes to stderr, and the yielded function prints the one JSON to stdout."""
    target = sys.stdout
    with contextlib.redirect_stdout(sys.stderr if result else target):
        yield lambda value: result and print(json.dumps(value, indent=2, ensure_ascii=False), file=target, flush=True)


if __name__ == "__main__":
    sys.exit(main())
