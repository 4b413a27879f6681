"""What this package uses of `argparse` that is private there, with a public way beside it."""

import argparse


def actions_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return a parser's arguments (`_actions` of Python 3.10 to 3.14); none where they are unknown."""
    return parser._actions if hasattr(parser, "_actions") else []
