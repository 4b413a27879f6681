"""The command `wavlink` by its earlier name; it is `wavlink.cli`, and what commands share is `wavlink.console`."""

import sys

from wavlink.cli import COMMANDS, Command, main
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

if __name__ == "__main__":
    sys.exit(main())
