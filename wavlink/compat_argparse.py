"""The private feature of `argparse` that this package uses, with a fallback."""

import argparse


def actions_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return a parser's arguments (`_actions` of Python 3.10 to 3.14); none if they are unknown."""
    return parser._actions if hasattr(parser, "_actions") else []
