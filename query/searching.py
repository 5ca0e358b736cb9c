"""Search for the training samples of highest and of lowest influence."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gradstore.errors import QueryError
from gradstore.store.opening import as_store
from indexer import ExactEngine, SearchIndex, measure_of
from indexer.measure import QuerySide, is_of_rows
from indexer.measures.registry import indexed
from indexer.studies.explanation import explain
from query.checks import require_averaged, require_collected, require_comparable
from query.engines import engine_of
from query.queries import Queries
from query.results.answer import Answer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.store.opening import StoreLike
    from gradstore.store.reader import Store
    from indexer import Measure


def search(
    engine: SearchIndex | ExactEngine | StoreLike,
    queries: StoreLike | Queries,
    k: int = 10,
    *,
    measure: Measure | str | None = None,
    keep: NDArray[np.int64] | None = None,
) -> Answer:
    """Find the training samples of highest and of lowest influence on each query.

    Args:
        engine: an index of the training store, or the exact engine; or a training store, its path
            or URL, for which an existing index is used, else the exact engine.
        queries: a complete query store, its path or URL, or sums of its samples.
        k: number of proponents and number of opponents.
        measure: another measure that the engine serves, such as `trak`, which changes only the
            queries; by default the engine's. Required if `engine` is a store.
        keep: ascending numbers of the training samples to search; by default all.

    Raises:
        FingerprintError: if the rows of the two stores cannot be compared.
        QueryError: if `k` exceeds the number of samples, or the engine does not serve the measure.

    Examples:
        >>> import gradstore as gs
        >>> answer = gs.search("train.gradstore", "asked.gradstore", 3, measure="retrac")
        >>> answer
        Answer('retrac', queries=3, k=3, store='train.gradstore')
        >>> answer.to_table().num_rows  # 3 queries, 3 proponents and 3 opponents each
        18
    """
    if not isinstance(engine, SearchIndex | ExactEngine):
        engine = _engine(as_store(engine), measure)
    store, features = engine.store, engine.features
    queries = queries if isinstance(queries, Queries) else Queries.of(as_store(queries))
    asked, chosen = prepared(engine, queries, measure)
    proponents, opponents = engine.search(asked, k, keep=keep)
    both = np.concatenate([proponents.samples, opponents.samples], axis=1)
    noise = queries.deviations(features)
    if noise is not None and isinstance(chosen, QuerySide):
        noise = chosen.prepared(noise.reshape(-1, noise.shape[2])).reshape(noise.shape)
    explained = explain(store, features, asked, both, noise)
    if not is_of_rows(chosen):  # its vectors depend on the projection: no error is known
        unknown = np.full_like(explained.z, np.nan)
        explained = replace(explained, projection_error=unknown, z=unknown)
    return Answer(
        measure=chosen.name,
        queries=queries,
        store=store,
        proponents=proponents,
        opponents=opponents,
        explained=explained,
    )


def _engine(store: Store, measure: Measure | str | None) -> SearchIndex | ExactEngine:
    if measure is None:
        raise QueryError(
            f"to search in {store.location}, name a measure: search(store, queries, "
            "measure='tracin'), or give an engine: ExactEngine(store, 'tracin')."
        )
    return engine_of(store, measure)


def prepared(
    engine: SearchIndex | ExactEngine, queries: Queries, measure: Measure | str | None = None
) -> tuple[NDArray[np.float32], Measure]:
    """Compute the query features for an engine and measure, and fit the measure to its store.

    Returns:
        float32 `[queries, dim]`, and the measure.

    Raises:
        FingerprintError: if the rows of the two stores cannot be compared.
        QueryError: if the engine does not serve the measure.
    """
    store, features = engine.store, engine.features
    require_comparable(store, queries.store)
    chosen = features.measure if measure is None else measure_of(measure)
    served = indexed(chosen)
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
