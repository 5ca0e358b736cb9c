"""From samples to ranked training samples: engine, report and command line."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from query.engine import Answer, Ranking, collect_queries, search, to_table
    from query.report import Section, write_report

__all__ = [
    "Answer",
    "Ranking",
    "Section",
    "collect_queries",
    "search",
    "to_table",
    "write_report",
]

_HOMES = {"Section": "query.report", "write_report": "query.report"}


def __getattr__(name: str) -> Any:
    # Loaded when first used, so that the command line answers --help at once.
    if name not in __all__:
        raise AttributeError(f"module 'query' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "query.engine")), name)
