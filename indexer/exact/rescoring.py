"""Exact float32 scores of candidates, computed from the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from gradstore.workers import in_order
from indexer.dots import dots

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer.feature import Features, RowWeights


# Bytes of the rows rescored at once: few enough to stay in the processor's cache.
_ROW_BYTES: Final = 2 * 2**20

_ROW_THREADS: Final = 8


def rescored(
    store: Store,
    features: Features,
    queries: NDArray[np.float32],
    candidates: NDArray[np.int64],
    weights: RowWeights | None = None,
) -> NDArray[np.float32]:
    """Exact float32 scores of each query's own candidates, computed from the store.

    Every row that is a candidate of any query is read once, in store order.

    Args:
        store: the training store.
        features: computes features from its rows.
        queries: features of the queries, float32 `[queries, dim]`.
        candidates: sample numbers, `[queries, candidates]`; -1 for none.
        weights: the store's row weights, if already read.

    Returns:
        float32 `[queries, candidates]`, NaN where there is no candidate.
    """
    scores = np.full(candidates.shape, np.nan, np.float32)
    wanted = np.unique(candidates)
    wanted = wanted[wanted >= 0]
    place = np.where(candidates < 0, -1, np.searchsorted(wanted, candidates))
    averaged = store.slots if features.slots is None else 1  # all slots are read before averaging
    step = max(1, _ROW_BYTES // (4 * features.dim(store) * averaged))
    if weights is not None:
        for checkpoint in features.checkpoints:  # read here once instead of in every thread
            weights.at(checkpoint)

    # Candidate positions, sorted by row.
    order = np.argsort(place, axis=None, kind="stable")
    ranked = place.ravel()[order]

    def score(start: int) -> None:
        vectors = features.take(store, wanted[start : start + step], weights)
        low, high = np.searchsorted(ranked, (start, start + step))
        for some in range(low, high, step):
            here = order[some : min(some + step, high)]
            rows, asking = vectors[place.flat[here] - start], queries[here // place.shape[1]]
            scores.flat[here] = dots(rows, asking)

    starts = range(0, len(wanted), step)
    if len(starts) <= 1:
        for start in starts:
            score(start)
    else:
        for _ in in_order(score, starts, most=_ROW_THREADS, remote=store.objects.remote):
            pass
    return scores
