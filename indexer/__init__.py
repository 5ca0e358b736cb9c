"""From stored rows to features and search indexes: what lies between a store and an answer."""

from __future__ import annotations

from indexer.features import feature_dim, features, iter_features
from indexer.index import SearchIndex, build_index, index_path, open_index
from indexer.measures import MEASURES, Measure, ReTrac, TracIn, measure_of

__all__ = [
    "MEASURES",
    "Measure",
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
