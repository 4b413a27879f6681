"""What the text of an option becomes: a number in its range, numbers, or pairs."""

import argparse
from collections.abc import Callable
from typing import Any


def _number(kind: Callable, words: str, fits: Callable[[Any], bool]) -> Callable[[str], Any]:
    """Return a parser of numbers for `add_argument`, whose errors name the option and say what it takes."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise argparse.ArgumentTypeError(f"must be {words}, got {text!r}")
        return value

    return parse


positive = _number(float, "a number above 0, at most 1e12", lambda value: 0 < value <= 1e12)
seconds = _number(float, "a number of seconds, 0 or more, at most 1e12", lambda value: 0 <= value <= 1e12)
natural = _number(int, "a whole number, 0 or more", lambda value: value >= 0)
positive_int = _number(int, "a whole number, 1 or more", lambda value: value >= 1)
port_number = _number(int, "a whole number from 0 to 65535", lambda value: 0 <= value <= 65535)


def numbers(text: str) -> tuple[int, ...]:
    """Parse `0,2,4`."""
    return tuple(map(int, text.split(",")))


class KeyValues(argparse.Action):
    """Collect KEY=VALUE in a dict."""

    def __call__(self, parser, namespace, values, option_string=None):
        if wrong := [each for each in values if not all(each.partition("=")[::2])]:
            parser.error(f"{option_string} takes KEY=VALUE, got {wrong[0].partition('=')[0]!r}")
        pairs = dict(each.split("=", 1) for each in values)
        setattr(namespace, self.dest, (getattr(namespace, self.dest) or {}) | pairs)
