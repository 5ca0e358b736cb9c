"""From samples to ranked training samples: engine, report and command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradstore.lazy import exporter

if TYPE_CHECKING:
    from query.blocks import batches
    from query.engine import Answer, collect_queries, search
    from query.filters import chosen
    from query.hubs import Hubness, hubness
    from query.info import examine
    from query.queries import Queries
    from query.report import Section, write_report
    from query.scores import write_scores
    from query.table import to_table
    from query.true_influence import Sources, rerank

__all__ = [
    "Answer",
    "Hubness",
    "Queries",
    "Section",
    "Sources",
    "batches",
    "chosen",
    "collect_queries",
    "examine",
    "hubness",
    "rerank",
    "search",
    "to_table",
    "write_report",
    "write_scores",
]

_HOMES = {
    "Hubness": "query.hubs",
    "Queries": "query.queries",
    "Section": "query.report",
    "Sources": "query.true_influence",
    "batches": "query.blocks",
    "chosen": "query.filters",
    "examine": "query.info",
    "hubness": "query.hubs",
    "rerank": "query.true_influence",
    "to_table": "query.table",
    "write_report": "query.report",
    "write_scores": "query.scores",
}
__getattr__ = exporter(__name__, {name: _HOMES.get(name, "query.engine") for name in __all__})
