"""The command `gradstore`. Each subcommand imports its heavy dependencies itself."""

from __future__ import annotations

import sys
from typing import Final

INTERRUPTED: Final = 130
"""Exit status after Ctrl-C."""


def main() -> None:
    """Run the command line and exit, as `query.cli.entry.main` says."""
    try:
        from query.cli.entry import main as run
    except KeyboardInterrupt:  # nothing was begun
        sys.exit(INTERRUPTED)
    run()


__all__ = ["INTERRUPTED", "main"]
