"""Choice of the engine: an existing index, else the exact engine."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gradstore.errors import SearchIndexError
from indexer import ExactEngine, Features, index_path, measure_of, open_index
from indexer.artifact import stands
from indexer.measure import KernelMeasure, QuerySide
from indexer.measures.registry import indexed
from indexer.trak_kernel import build_kernel, fitted_by_kernel, kernel_path
from query.checks import require_averaged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradstore.store.reader import Store
    from indexer import Measure, SearchIndex


_log = logging.getLogger("gradstore")


def engine_of(
    store: Store,
    measure: Measure | str,
    etas: Sequence[float] | None = None,
    *,
    matched: bool = False,
) -> SearchIndex | ExactEngine:
    """Index of a store under a measure and checkpoint weights, else the exact engine."""
    path = index_path(store, measure, etas=etas, matched=matched)
    if stands(path):
        return open_index(path, store, measure, etas=etas, matched=matched)
    return exact_engine(store, measure, etas, matched=matched)


def exact_engine(
    store: Store,
    measure: Measure | str,
    etas: Sequence[float] | None = None,
    *,
    matched: bool = False,
) -> ExactEngine:
    """Exact engine of a store under a measure."""
    store.require_complete()
    served = measure_of(measure)
    if isinstance(served, QuerySide):
        require_averaged(served, matched=matched)
    features = Features.of(store, indexed(served), etas=etas, matched=matched)
    return ExactEngine(store, features)


def fitted(measure: Measure, store: Store) -> Measure:
    """Fit a measure to a store; the kernel that it may need is stored for later queries.

    Raises:
        SearchIndexError: if the existing kernel was built from other inputs.
    """
    if not isinstance(measure, KernelMeasure) or measure.is_fitted:
        return measure.fitted(store)
    if not stands(kernel_path(store)):
        try:
            build_kernel(store)
        except SearchIndexError as error:
            _log.warning("%s The kernel is computed in memory for this command.", error)
            return measure.fitted(store)
    return fitted_by_kernel(measure, store)
