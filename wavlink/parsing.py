"""Command line parsers whose help shows every default, and whose errors are one line with the nearest name."""

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .compat_argparse import actions_of
from .console import print_error


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keep descriptions as written, and add its default to the help of each option that takes a value."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        shown = getattr(action, "shown_default", None)
        stated = not text or "default:" in text or (action.default == argparse.SUPPRESS and shown is None)
        if stated or not action.option_strings or action.nargs == 0 or action.required:
            return text
        if shown is not None:
            return f"{text} (default: {str(shown).replace('%', '%%')})"
        empty = action.default in (None, "", [], ())
        return f"{text} (default: {'none' if empty else '%(default)s'})"


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that prints an error in one line and exits with 2.

    Args:
        intermixed: whether positional arguments may stand between and after options.
    """

    def __init__(self, *args, intermixed: bool = False, **options):
        options.setdefault("formatter_class", HelpFormatter)
        super().__init__(*args, **options)
        self.intermixed = intermixed
        self._within = False
        self.as_json = False
        self.commands: dict[str, Parser] = {}
        self.check: Callable | None = None  # checks options together: takes them and the parser, returns them

    def add_commands(self, **options: Any) -> "argparse._SubParsersAction[Parser]":
        """Add subparsers of this class."""
        action = self.add_subparsers(required=True, metavar="COMMAND", parser_class=type(self), **options)
        self.commands = action.choices
        return action

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse like argparse, but refuse unknown arguments."""
        if self._within:
            return super().parse_known_args(args, namespace)
        args = list(sys.argv[1:] if args is None else args)
        self.as_json = "--json" in args
        before = args[: self._refuse_other_command(args)]
        if unknown := self._unknown(before):  # first, as it may be a misspelt required option
            self.refuse([unknown])
        self._within = True
        try:
            parse = self.parse_known_intermixed_args if self.intermixed else super().parse_known_args
            options, rest = parse(args, namespace)
        finally:
            self._within = False
        if rest:
            self.refuse(rest)
        return self.check(options, self) if self.check else options, rest

    def refuse(self, rest: Sequence[str]) -> NoReturn:
        """Report the first unknown option, with the nearest known one."""
        option = next((word for word in rest if word.startswith("-")), None)
        if option is None:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        names = [name.lstrip("-") for name in self._names()]  # whose dashes make short ones look alike
        near = difflib.get_close_matches(option.partition("=")[0].lstrip("-"), names, n=1)
        advice = f"did you mean --{near[0]}?" if near else f"{self.prog} --help lists the options"
        self.error(f"unknown option {option}; {advice}")

    def _names(self) -> list[str]:
        return [name for action in actions_of(self) for name in action.option_strings if name.startswith("--")]

    def _unknown(self, args: Sequence[str]) -> str:
        """Return the first word that looks like an option, but is neither one nor the beginning of one."""
        for word in args:
            name = word.partition("=")[0]
            if word == "--":
                break
            if not name.startswith("--") or " " in name or name in self._names():
                continue
            if not (self.allow_abbrev and any(known.startswith(name) for known in self._names())):
                return word
        return ""

    def _refuse_other_command(self, args: Sequence[str]) -> int:
        """Return the number of words before the command; refuse an unknown one. Without commands, count all words."""
        if not self.commands:
            return len(args)
        values = {name for action in actions_of(self) if action.nargs != 0 for name in action.option_strings}
        for index, (last, word) in enumerate(zip(["", *args], args, strict=False)):
            if not word.startswith("-") and last not in values:
                if word not in self.commands:
                    near = difflib.get_close_matches(word, self.commands, n=1)
                    advice = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(self.commands)}"
                    self.error(f"no command {word!r}; {advice}")
                return index
        return len(args)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        print_error(self.prog, message, self.as_json)
        self.exit(2)


def parser_of(add_options: Callable[[Parser], None], prog: str, description: str | None = None) -> Parser:
    """Return a parser of one command's options.

    Args:
        prog: its name in usage and errors.
        description: the text above its options.
    """
    parser = Parser(prog=prog, description=description)
    add_options(parser)
    return parser


def main_of(
    prog: str, add_options: Callable[[Parser], None], run: Callable[[argparse.Namespace], int | None]
) -> Callable[[Sequence[str] | None], int]:
    """Return the `main` of a command's module: it parses `argv`, by default this process's, and runs the command."""

    def main(argv: Sequence[str] | None = None) -> int:
        return run(parser_of(add_options, prog, sys.modules[run.__module__].__doc__).parse_args(argv)) or 0

    return main
