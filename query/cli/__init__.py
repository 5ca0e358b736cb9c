"""The command `gradstore`. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

from query.cli.entry import main

__all__ = ["main"]
