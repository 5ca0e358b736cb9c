"""From stored rows to features and search indexes: what lies between a store and an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradstore.lazy import exporter

if TYPE_CHECKING:
    from indexer.exact import ExactEngine, Ranking
    from indexer.explanation import Explanation, breakdown, explain, self_influence
    from indexer.feature import Features, feature_dim, features
    from indexer.groups import Rollup, rollup
    from indexer.index import SearchIndex, build_index, index_path, open_index
    from indexer.measures import (
        MEASURES,
        Calibrated,
        Clip,
        Measure,
        Power,
        ReTrac,
        TracIn,
        Within,
        measure_of,
    )
    from indexer.precondition import Trak

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
    "feature_dim",
    "features",
    "index_path",
    "measure_of",
    "open_index",
    "rollup",
    "self_influence",
]

_HOMES = {
    "ExactEngine": "indexer.exact",
    "Explanation": "indexer.explanation",
    "Features": "indexer.feature",
    "Ranking": "indexer.exact",
    "Rollup": "indexer.groups",
    "SearchIndex": "indexer.index",
    "Trak": "indexer.precondition",
    "breakdown": "indexer.explanation",
    "build_index": "indexer.index",
    "explain": "indexer.explanation",
    "feature_dim": "indexer.feature",
    "features": "indexer.feature",
    "index_path": "indexer.index",
    "open_index": "indexer.index",
    "rollup": "indexer.groups",
    "self_influence": "indexer.explanation",
}
__getattr__ = exporter(__name__, {name: _HOMES.get(name, "indexer.measures") for name in __all__})
