"""The command `wavlink`: one parser tree over every command.

The modules that do the work load torch. They are imported once the command line has been parsed, so that help, usage
errors and completion answer at once.
"""

import argparse
import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from .compat_argparse import actions_of
from .console import EXIT_CODES, escape_unwritable, in_results, run_command
from .installing import install_hint
from .kept_memory import limit_kept_memory
from .options import indexes, models, publishing, training
from .parsing import Parser
from .search.location import refuse_no_index
from .train_options import train as of_train

SHELLS = ("bash", "zsh", "fish")


class Command(NamedTuple):
    """A command.

    Attributes:
        module, function: what does the work, given the parsed options.
        options: adds its options to a parser.
        extra: of setup.cfg, that it needs.
        does: one line for the help.
        example: arguments of an example.
        of_index: its folder must hold an index, which is checked before `module` is imported.
    """

    module: str
    function: str
    options: Callable[[Parser], None]
    extra: str
    does: str
    example: str
    of_index: bool = False


SEARCH, INFO = "wavlink.search.command", "wavlink.search.information"
COMMANDS = {
    "train": Command(
        *("wavlink.training.command", "run", of_train, "train"),
        "train a recipe, or resume it",
        "sounds --data my_sounds --output_dir runs/my",
    ),
    "eval": Command(
        *("wavlink.evaluation.command", "run", models.evaluate, "eval"),
        "score models on a benchmark",
        "--model runs/my/best --benchmark my_sounds",
    ),
    "calibrate": Command(
        *("wavlink.evaluation.calibrate", "run", models.calibrate, "eval"),
        "fit probabilities of matches, and store them in a model",
        "runs/my/best --data my_sounds",
    ),
    "prompts": Command(
        *("wavlink.evaluation.prompt_sweep", "run", models.prompts, "eval"),
        "find the prompts that name sounds best",
        "runs/my/best --data my_sounds --store",
    ),
    "distill": Command(
        *("wavlink.training.distillation", "run", training.distill, "train"),
        "make a smaller text tower, or one of more languages",
        "sentence-transformers/all-MiniLM-L6-v2 --data my_sounds --out runs/text",
    ),
    "train-frames": Command(
        *("wavlink.training.frame_training", "run", training.train_frames, "train"),
        "train the head that finds texts in a recording's frames",
        "runs/my/best --data my_sounds",
    ),
    "classify": Command(
        *("wavlink.classification", "run", models.classify, ""),
        "name sounds",
        "dog.wav my_sounds --labels dog rain",
    ),
    "index": Command(
        *(SEARCH, "index", indexes.index, "search"),
        "index sounds",
        "my_sounds --out my_index",
    ),
    "query": Command(
        *(SEARCH, "query", indexes.query, "search"),
        "find sounds in an index",
        'my_index "a dog barks" --without rain',
        of_index=True,
    ),
    "duplicates": Command(
        *(SEARCH, "duplicates", indexes.duplicates, "search"),
        "find sounds of an index that are nearly the same",
        "my_index",
        of_index=True,
    ),
    "info": Command(
        *(INFO, "info", indexes.info, "search"), "show what an index or a model's folder holds", "my_index"
    ),
    "verify": Command(
        *(SEARCH, "verify", indexes.verify, "search"),
        "compare an index with its checksums",
        "my_index --drop",
        of_index=True,
    ),
    "remove": Command(
        *(SEARCH, "remove", indexes.remove, "search"),
        "remove sounds from an index",
        "my_index dogs/old.wav",
        of_index=True,
    ),
    "reindex": Command(
        *(SEARCH, "reindex", indexes.reindex, "search"),
        "make a smaller copy of an index",
        "my_index --out small --dim 16",
        of_index=True,
    ),
    "map": Command(
        *("wavlink.search.map", "run", indexes.draw_map, "map"),
        "draw an index as a map to click on",
        "my_index --out map.html",
        of_index=True,
    ),
    "where": Command(
        *("wavlink.localization", "run", models.where, ""),
        "find where in a recording a sound is",
        "runs/my/best night.flac --query siren",
    ),
    "export": Command(
        *("wavlink.backends.export", "run", publishing.export, "fast"),
        "export both towers for OpenVINO or ONNX",
        "runs/my/best --backend openvino",
    ),
    "push": Command(
        *("hub_cards.push", "run", publishing.push, "push"),
        "publish a model with its card",
        "runs/my/best your-name/wavlink-my",
    ),
    "push-index": Command(
        *(SEARCH, "push", indexes.push_index, "search"),
        "publish an index as a data set; the sounds stay here",
        "my_index your-name/my-index",
        of_index=True,
    ),
    "pull": Command(
        *(SEARCH, "pull", indexes.pull, "search"),
        "download an index from the Hub",
        "your-name/my-index --out my_index --model runs/my/best",
    ),
    "space": Command(
        *("hub_cards.space.app", "run", publishing.space, "space"),
        "serve a demo in the browser",
        "--model runs/my/best --index my_index",
    ),
    "serve": Command(
        *("wavlink.serving.command", "run", publishing.serve, "serve"),
        "serve a model over HTTP",
        "runs/my/best --index my_index",
    ),
    "samples": Command(
        *("wavlink.samples", "run", training.samples, "data"),
        "write captioned sounds for a first try, made by code or real",
        "my_sounds",
    ),
    "ray": Command(
        *("wavlink.search.ray", "run", indexes.ray, "cluster"),
        "index a collection on a Ray cluster",
        "my_sounds --model runs/my/best --out s3://bucket/my_index",
    ),
}


FIRST = ("samples", "train", "classify", "index", "query")  # commands whose examples the help shows


def main(arguments: Sequence[str] | None = None, wrap_json: bool = True) -> int:
    """Parse the command line, run its command, and return the exit code.

    Args:
        arguments: default: those of this process, whose kept memory is then limited.
        wrap_json: whether `--json` prints an object with `results` or `error`; otherwise each command's own document.
    """
    escape_unwritable()
    argv = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        options = build_parser().parse_args(argv)
    except SystemExit as stopped:
        return stopped.code or 0
    name, debug = options.command, vars(options).pop("debug", False)
    command = COMMANDS[name]
    del options.command

    if arguments is None and name != "train":  # which has limits of its own
        limit_kept_memory(embedding=True)  # before torch computes and threads start

    def import_and_run(_) -> int | None:
        if command.of_index:
            refuse_no_index(options.folder)
        run = getattr(importlib.import_module(command.module), command.function)
        with importlib.import_module("wavlink.progress").loading_bars_hidden():
            return run(**vars(options)) if command.module in (SEARCH, INFO) else run(options)

    with in_results() if wrap_json else contextlib.nullcontext():
        return run_command(
            *(f"wavlink {name}", import_and_run),
            extra=command.extra,
            debug=debug,
            as_json=getattr(options, "as_json", False),
        )


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="wavlink",
        usage="wavlink COMMAND ...",
        description="Compact audio-text embeddings: train, measure, search, publish.",
        epilog=f"{_examples()}\n\n`wavlink COMMAND --help` shows a command's options and an example.\n\n{EXIT_CODES}",
        add_help=False,
    )
    commands = parser.add_commands(dest="command", title="commands")
    options = parser.add_argument_group("options")  # after the commands
    options.add_argument("-h", "--help", action="help", help="show this help message and exit")
    options.add_argument("--version", action=_Version, default=argparse.SUPPRESS, help="print the version and exit")
    options.add_argument(
        "--print-completion",
        action=_Completion,
        choices=SHELLS,
        default=argparse.SUPPRESS,
        help="print the completion script of a shell and exit",
    )
    _debug_option(options)
    for name, command in COMMANDS.items():
        _add_command(commands, name, command)
    return parser


def _add_command(commands, name: str, command: Command) -> None:
    parser = commands.add_parser(
        name,
        prog=f"wavlink {name}",
        help=command.does,
        description=f"{command.does[0].upper()}{command.does[1:]}.",
        epilog=f"example:\n  wavlink {name} {command.example}",
        allow_abbrev=command.options is not of_train,
    )
    command.options(parser)
    _debug_option(parser)
    parser.set_defaults(command=name)


def _examples() -> str:
    return "examples:\n" + "\n".join(f"  wavlink {name} {COMMANDS[name].example}" for name in FIRST)


def _debug_option(parser: Any) -> None:  # or a group of one
    text = "print the traceback above the line of an error"
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=text)


class _Version(argparse.Action):
    def __init__(self, *args, **options):
        super().__init__(*args, nargs=0, **options)

    def __call__(self, parser, *_):
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"wavlink {version('wavlink')}")
        except PackageNotFoundError:
            print("wavlink, not installed: a checkout that is imported from its folder")
        parser.exit()


def _taking_text(parser: Parser) -> Iterator[argparse.Action]:
    """Yield the arguments of all commands that may be a path."""
    for action in actions_of(parser):
        if action.nargs != 0 and not action.choices and action.type in (None, str):
            yield action
    for command in parser.commands.values():
        yield from _taking_text(command)


class _Completion(argparse.Action):
    """Print a shell's completion script, made by shtab."""

    def __call__(self, parser, namespace, shell, option_string=None):
        try:
            import shtab
        except ModuleNotFoundError:
            parser.error(install_hint("shtab"))
        for action in _taking_text(parser):
            action.complete = shtab.FILE
        print(shtab.complete(parser, shell=shell))
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
