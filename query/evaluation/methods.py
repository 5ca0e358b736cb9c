"""Scores of every query and training sample, by measures of stores and by baselines."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer import ExactEngine, Features, measure_of, self_influence
from indexer.measure import QuerySide
from query.engines import fitted

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
    chosen = fitted(measure_of(trained), store)  # measures of a kernel share it
    if isinstance(chosen, QuerySide):
        features = Features.of(store, chosen.indexed, **options)
        asked = chosen.prepared(features.range(queries))
    else:
        features = Features.of(store, chosen, **options)
        side = features if not other else replace(features, measure=measure_of(other).fitted(store))
        asked = side.range(queries)
    found = [block for _, block in ExactEngine(store, features).scores(asked)]
    return np.concatenate(found, axis=1)


def own_influence(store: Store, measure: str) -> NDArray[np.float32]:
    """Influence of every training sample on itself, float32 `[samples]`."""
    return self_influence(store, Features.of(store, measure_of(measure)))


def cosine(queries: NDArray[Any], train: NDArray[Any]) -> NDArray[np.float32]:
    """Cosine of vectors, such as pixels or features of another model.

    Args:
        queries: `[queries, length]`.
        train: `[samples, length]`.

    Returns:
        float32 `[queries, samples]`; 0 for a vector of zeros.
    """
    sides = []
    for one in (queries, train):
        length = np.linalg.norm(one, axis=1, keepdims=True)
        sides.append(one / np.where(length > 0, length, 1))
    found: NDArray[np.float32] = (sides[0] @ sides[1].T).astype(np.float32)
    return found


def kernel(queries: NDArray[Any], train: NDArray[Any]) -> NDArray[np.float32]:
    """exp(−d² / (0.2 · median d²)) of the distances d of vectors, such as pixels.

    Args:
        queries: `[queries, length]`.
        train: `[samples, length]`.

    Returns:
        float32 `[queries, samples]`.
    """
    squares = (queries**2).sum(1)[:, None] + (train**2).sum(1) - 2 * queries @ train.T
    found: NDArray[np.float32] = np.exp(-squares / (0.2 * np.median(squares))).astype(np.float32)
    return found


def chance(queries: int, samples: int) -> NDArray[np.float32]:
    """Normal random numbers, float32 `[queries, samples]`: what knows nothing."""
    return np.random.default_rng(0).normal(size=(queries, samples)).astype(np.float32)
