"""The command `gradstore`. Each subcommand imports its heavy dependencies itself."""

from __future__ import annotations

from query.cli.entry import main

__all__ = ["main"]
