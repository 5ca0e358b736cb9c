"""Searching: the training samples of highest and of lowest influence."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gradstore.errors import QueryError
from indexer import measure_of
from indexer.measure import QuerySide
from indexer.studies.explanation import explain
from query.checks import require_averaged, require_collected, require_comparable
from query.queries import Queries
from query.results.answer import Answer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer import ExactEngine, Measure, SearchIndex


def search(
    engine: SearchIndex | ExactEngine,
    queries: Store | Queries,
    k: int = 10,
    *,
    measure: Measure | str | None = None,
    keep: NDArray[np.int64] | None = None,
) -> Answer:
    """The training samples of highest and of lowest influence on each query.

    Args:
        engine: an index of the training store, or the exact engine.
        queries: a complete query store, or sums of its samples.
        k: how many of each.
        measure: a measure that the engine serves though it was made for another, such as `trak`,
            which changes the queries alone; by default the engine's.
        keep: numbers of the training samples to search, rising; by default all.

    Raises:
        FingerprintError: if the two stores' rows cannot be compared.
        QueryError: if `k` is larger than the store, or the engine does not serve the measure.
    """
    store, features = engine.store, engine.features
    queries = queries if isinstance(queries, Queries) else Queries.of(queries)
    asked, chosen = prepared(engine, queries, measure)
    proponents, opponents = engine.search(asked, k, keep=keep)
    both = np.concatenate([proponents.rows, opponents.rows], axis=1)
    explained = explain(store, features, asked, both)
    if isinstance(chosen, QuerySide):  # whose queries depend on the projection themselves
        unknown = np.full_like(explained.z, np.nan)
        explained = replace(explained, standard_error=unknown, z=unknown)
    return Answer(
        measure=chosen.name,
        queries=queries,
        store=store,
        proponents=proponents,
        opponents=opponents,
        explained=explained,
    )


def prepared(
    engine: SearchIndex | ExactEngine, queries: Queries, measure: Measure | str | None = None
) -> tuple[NDArray[np.float32], Measure]:
    """What an engine is asked under a measure, and the measure, fitted to its store.

    Returns:
        float32 `[queries, dim]`, and the measure.

    Raises:
        FingerprintError: if the two stores' rows cannot be compared.
        QueryError: if the engine does not serve the measure.
    """
    store, features = engine.store, engine.features
    require_comparable(store, queries.store)
    chosen = features.measure if measure is None else measure_of(measure)
    served = chosen.indexed if isinstance(chosen, QuerySide) else chosen
    if served.name != features.measure.name:
        raise QueryError(
            f"{engine!r} is of {features.measure.name} and does not serve {chosen.name}. Build "
            f"its own: gradstore index --store {store.location} --measures {served.name}"
        )
    require_collected(queries.store, features)
    features.require_matching(store, queries.store)
    asked = queries.features(features)
    if isinstance(chosen, QuerySide):
        require_averaged(chosen, matched=features.slots is not None)
        chosen = chosen.fitted(store)
        asked = chosen.prepared(asked)
    return asked, chosen
