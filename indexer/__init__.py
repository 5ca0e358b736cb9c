"""From stored rows to features and search indexes: what lies between a store and an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradstore.lazy import exporter

if TYPE_CHECKING:
    from indexer.exact import ExactEngine, Ranking
    from indexer.feature import Features, feature_dim, features
    from indexer.index import SearchIndex, build_index, index_path, open_index
    from indexer.measures import (
        MEASURES,
        Calibrated,
        Clip,
        Measure,
        Power,
        ReTrac,
        TracIn,
        measure_of,
    )
    from indexer.precondition import Trak

__all__ = [
    "MEASURES",
    "Calibrated",
    "Clip",
    "ExactEngine",
    "Features",
    "Measure",
    "Power",
    "Ranking",
    "ReTrac",
    "SearchIndex",
    "TracIn",
    "Trak",
    "build_index",
    "feature_dim",
    "features",
    "index_path",
    "measure_of",
    "open_index",
]

_HOMES = {
    "feature_dim": "indexer.feature",
    "features": "indexer.feature",
    "Features": "indexer.feature",
    "ExactEngine": "indexer.exact",
    "Ranking": "indexer.exact",
    "Trak": "indexer.precondition",
    "SearchIndex": "indexer.index",
    "build_index": "indexer.index",
    "index_path": "indexer.index",
    "open_index": "indexer.index",
}
__getattr__ = exporter(__name__, {name: _HOMES.get(name, "indexer.measures") for name in __all__})
