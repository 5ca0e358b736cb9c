"""Searches training samples for queries; writes answers and reports; defines the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradstore.lazy import exporter

if TYPE_CHECKING:
    from query.blocks import batches
    from query.collection import collect_queries
    from query.evaluation.evaluate import Evaluation, evaluate
    from query.filters import chosen, matching_samples
    from query.info import examine
    from query.queries import Queries
    from query.results.answer import Answer
    from query.results.notebook import gallery as gallery
    from query.results.report import Section, write_report
    from query.results.table import to_table
    from query.scores import write_scores
    from query.searching import search
    from query.serve.server import Server
    from query.studies.hubness import Hubness, hubness
    from query.true_influence import Sources, rerank

__all__ = [
    "Answer",
    "Evaluation",
    "Hubness",
    "Queries",
    "Section",
    "Server",
    "Sources",
    "batches",
    "chosen",
    "collect_queries",
    "evaluate",
    "examine",
    "hubness",
    "matching_samples",
    "rerank",
    "search",
    "to_table",
    "write_report",
    "write_scores",
]

_HOMES = {
    "Answer": "query.results.answer",
    "Hubness": "query.studies.hubness",
    "Queries": "query.queries",
    "Section": "query.results.report",
    "Server": "query.serve.server",
    "Sources": "query.true_influence",
    "batches": "query.blocks",
    "chosen": "query.filters",
    "matching_samples": "query.filters",
    "collect_queries": "query.collection",
    "evaluate": "query.evaluation.evaluate",
    "Evaluation": "query.evaluation.evaluate",
    "examine": "query.info",
    "gallery": "query.results.notebook",
    "hubness": "query.studies.hubness",
    "rerank": "query.true_influence",
    "search": "query.searching",
    "to_table": "query.results.table",
    "write_report": "query.results.report",
    "write_scores": "query.scores",
}
__getattr__ = exporter(__name__, _HOMES)
