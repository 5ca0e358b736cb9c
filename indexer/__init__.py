"""From stored rows to features and search indexes: what lies between a store and an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradstore.lazy import exporter

if TYPE_CHECKING:
    from indexer.feature import feature_dim, features, iter_features
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

__all__ = [
    "MEASURES",
    "Calibrated",
    "Clip",
    "Measure",
    "Power",
    "ReTrac",
    "SearchIndex",
    "TracIn",
    "build_index",
    "feature_dim",
    "features",
    "index_path",
    "iter_features",
    "measure_of",
    "open_index",
]

_HOMES = {
    "feature_dim": "indexer.feature",
    "features": "indexer.feature",
    "iter_features": "indexer.feature",
    "SearchIndex": "indexer.index",
    "build_index": "indexer.index",
    "index_path": "indexer.index",
    "open_index": "indexer.index",
}
__getattr__ = exporter(__name__, {name: _HOMES.get(name, "indexer.measures") for name in __all__})
