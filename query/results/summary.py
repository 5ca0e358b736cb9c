"""Summary of answers as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from query.results.report import Line


def summary_text(lines: Sequence[Line]) -> str:
    """Format the summary as a plain text table."""
    headings = {
        "section": "queries",
        "measure": "measure",
        "share": "same label",
        "chance": "chance",
        "distinctness": "distinct",
    }
    rows = [headings, *lines]
    widths = {name: max(len(row[name]) for row in rows) for name in headings}
    return "\n".join("  ".join(row[name].ljust(widths[name]) for name in headings) for row in rows)
