"""Features, measures, exact search and search indexes: the layer between stores and answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradstore.lazy import exporter

if TYPE_CHECKING:
    from indexer.approximate.build import build_index
    from indexer.approximate.index import SearchIndex
    from indexer.approximate.opening import open_index
    from indexer.approximate.spec import index_path
    from indexer.exact.engine import ExactEngine
    from indexer.exact.ranking import Ranking
    from indexer.feature import Features
    from indexer.measure import Measure
    from indexer.measures.registry import MEASURES, measure_of
    from indexer.measures.simple import Clip, Power, ReTrac, TracIn
    from indexer.measures.timesteps import Calibrated, Within
    from indexer.measures.trak import Trak
    from indexer.studies.breakdown import breakdown
    from indexer.studies.explanation import Explanation, explain
    from indexer.studies.rollup import Rollup, rollup
    from indexer.studies.self_influence import self_influence

__all__ = [
    "MEASURES",
    "Calibrated",
    "Clip",
    "ExactEngine",
    "Explanation",
    "Features",
    "Measure",
    "Power",
    "Ranking",
    "ReTrac",
    "Rollup",
    "SearchIndex",
    "TracIn",
    "Trak",
    "Within",
    "breakdown",
    "build_index",
    "explain",
    "index_path",
    "measure_of",
    "open_index",
    "rollup",
    "self_influence",
]

_HOMES = {
    "MEASURES": "indexer.measures.registry",
    "Calibrated": "indexer.measures.timesteps",
    "Clip": "indexer.measures.simple",
    "ExactEngine": "indexer.exact.engine",
    "Explanation": "indexer.studies.explanation",
    "Features": "indexer.feature",
    "Measure": "indexer.measure",
    "Power": "indexer.measures.simple",
    "Ranking": "indexer.exact.ranking",
    "ReTrac": "indexer.measures.simple",
    "Rollup": "indexer.studies.rollup",
    "SearchIndex": "indexer.approximate.index",
    "TracIn": "indexer.measures.simple",
    "Trak": "indexer.measures.trak",
    "Within": "indexer.measures.timesteps",
    "breakdown": "indexer.studies.breakdown",
    "build_index": "indexer.approximate.build",
    "explain": "indexer.studies.explanation",
    "index_path": "indexer.approximate.spec",
    "measure_of": "indexer.measures.registry",
    "open_index": "indexer.approximate.opening",
    "rollup": "indexer.studies.rollup",
    "self_influence": "indexer.studies.self_influence",
}
__getattr__ = exporter(__name__, _HOMES)
