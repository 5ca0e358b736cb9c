"""From samples to ranked training samples: engine, report and command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradstore.lazy import exporter

if TYPE_CHECKING:
    from query.engine import Answer, collect_queries, search, to_table
    from query.filters import chosen
    from query.hubs import Hubness, hubness
    from query.report import Section, write_report

__all__ = [
    "Answer",
    "Hubness",
    "Section",
    "chosen",
    "collect_queries",
    "hubness",
    "search",
    "to_table",
    "write_report",
]

_HOMES = {
    "Hubness": "query.hubs",
    "Section": "query.report",
    "chosen": "query.filters",
    "hubness": "query.hubs",
    "write_report": "query.report",
}
__getattr__ = exporter(__name__, {name: _HOMES.get(name, "query.engine") for name in __all__})
