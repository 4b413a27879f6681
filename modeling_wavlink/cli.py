"""The command `wavlink` by its earlier name; it is `wavlink.cli`, and what commands share is `wavlink.console`.

Here `--json` prints each command's own document, as it did, and not an object with `results`.
"""

import sys
from collections.abc import Sequence

from wavlink import cli
from wavlink.cli import COMMANDS, Command
from wavlink.console import (
    EXIT_CODES,
    code_of,
    escape_unwritable,
    on_stop_signals,
    run_command,
    signals_as_interrupts,
    stdout_for,
)

__all__ = [
    "COMMANDS",
    "EXIT_CODES",
    "Command",
    "code_of",
    "escape_unwritable",
    "main",
    "on_stop_signals",
    "run_command",
    "signals_as_interrupts",
    "stdout_for",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of `wavlink`, with JSON in its earlier shape."""
    return cli.main(arguments, wrap_json=False)


if __name__ == "__main__":
    sys.exit(main())
