"""Scores of every query and training sample, under one measure or one for each side."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer import ExactEngine, Features, measure_of, self_influence
from indexer.measure import QuerySide

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.store.reader import Store


def scores(store: Store, queries: Store, measure: str, **options: Any) -> NDArray[np.float32]:
    """Influence of every training sample on every query.

    Args:
        store: the training store.
        queries: the query store.
        measure: a measure's name, or `TRAINING|QUERY`: the measures that weight training rows and
            query rows. Scores are linear in the indexed features, so one index of the first serves
            any second one.
        options: further options of `Features.of`.

    Returns:
        float32 `[queries, samples]`.
    """
    trained, _, other = measure.partition("|")
    chosen = measure_of(trained)
    if isinstance(chosen, QuerySide):
        features = Features.of(store, chosen.indexed, **options)
        asked = chosen.fitted(store).prepared(features.range(queries))
    else:
        features = Features.of(store, chosen, **options)
        side = features if not other else replace(features, measure=measure_of(other).fitted(store))
        asked = side.range(queries)
    found = [block for _, block in ExactEngine(store, features).scores(asked)]
    return np.concatenate(found, axis=1)


def own_influence(store: Store, measure: str) -> NDArray[np.float32]:
    """Influence of every training sample on itself, float32 `[samples]`."""
    return self_influence(store, Features.of(store, measure_of(measure)))


def top(found: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Indices of the `k` highest of each row, best first; ties in index order."""
    return np.argsort(-found, axis=1, kind="stable")[:, :k]


def distinctness(found: NDArray[np.float32], k: int) -> float:
    """Number of distinct proponents over all proponents: |∪ top-k| / (queries · k)."""
    proponents = top(found, k)
    return len(np.unique(proponents)) / proponents.size
