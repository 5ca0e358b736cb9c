"""Totals of groups of training samples, with intervals by the query's own noises."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from indexer import rollup
from indexer.deviations import margin
from indexer.measure import QuerySide
from query.searching import prepared

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from numpy.typing import NDArray

    from indexer import ExactEngine, Measure, Rollup
    from query.queries import Queries


def totals(
    engine: ExactEngine,
    queries: Queries,
    groups: Sequence[Any],
    *,
    measure: Measure | None = None,
    keep: NDArray[np.int64] | None = None,
) -> tuple[Rollup, NDArray[np.float64]]:
    """Totals of groups for one query, and how far they may move when it is asked with other noises.

    A total is linear in the query, so the parts of the query's noise are asked as queries too, in
    the same pass over the store.

    Args:
        engine: the exact engine of the training store.
        queries: one query.
        groups: group of each sample of the store; None means no group.
        measure: another measure that the engine serves; by default its own.
        keep: ascending numbers of the samples to include; by default all.

    Returns:
        The totals, and half the width of their 95% intervals, float64 `[groups]`; NaN if unknown.

    Raises:
        GradstoreError: as raised by `search` and `rollup`.
    """
    features, width = engine.features, engine.features.width(engine.store)
    asked, chosen = prepared(engine, queries, measure)
    noise = queries.deviations(features)
    if noise is None:
        found = rollup(engine, asked, groups, keep=keep)
        return found, np.full(len(found), np.nan)
    own = np.zeros((len(features.checkpoints), *noise.shape[1:]), np.float32)
    for place, checkpoint in enumerate(features.checkpoints):
        here = slice(checkpoint * width, (checkpoint + 1) * width)
        own[place, :, here] = noise[0, :, here]
    parts = own.reshape(-1, noise.shape[2])
    if isinstance(chosen, QuerySide):
        parts = chosen.prepared(parts)
    found = rollup(engine, np.concatenate([asked, parts]), groups, keep=keep)
    moved = found.total[1:].reshape(len(own), noise.shape[1], -1)
    variances = (moved**2).sum(axis=1).T
    one = replace(
        found, total=found.total[:1], highest=found.highest[:1], top_mean=found.top_mean[:1]
    )
    return one, margin(variances, noise.shape[1])
