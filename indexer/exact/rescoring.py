"""Exact scores of candidates, from the store, in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from gradstore.workers import in_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer.feature import Features, RowWeights


# Of rows that are scored again at once: they stay near the processor.
_ROW_BYTES: Final = 2 * 2**20

_ROW_THREADS: Final = 8


def rescored(
    store: Store,
    features: Features,
    queries: NDArray[np.float32],
    candidates: NDArray[np.int64],
    weights: RowWeights | None = None,
) -> NDArray[np.float32]:
    """Exact scores of each query's own candidates, from the store, in float32.

    Every row that is some query's candidate is read once, in the order of the store.

    Args:
        store: the training store.
        features: how its rows become features.
        queries: features of the queries, float32 `[queries, dim]`.
        candidates: numbers of samples, `[queries, candidates]`; -1 where there is none.
        weights: of the store's rows, if they are at hand.

    Returns:
        float32 `[queries, candidates]`, NaN where there is no candidate.
    """
    scores = np.full(candidates.shape, np.nan, np.float32)
    wanted = np.unique(candidates)
    wanted = wanted[wanted >= 0]
    place = np.where(candidates < 0, -1, np.searchsorted(wanted, candidates))
    averaged = store.slots if features.slots is None else 1  # which are read, too
    step = max(1, _ROW_BYTES // (4 * features.dim(store) * averaged))
    if weights is not None:
        for checkpoint in features.checkpoints:  # read once, and not in every thread
            weights.at(checkpoint)

    # Where each row is somebody's candidate.
    order = np.argsort(place, axis=None, kind="stable")
    ranked = place.ravel()[order]

    def score(start: int) -> None:
        vectors = features.take(store, wanted[start : start + step], weights)
        low, high = np.searchsorted(ranked, (start, start + step))
        for some in range(low, high, step):
            here = order[some : min(some + step, high)]
            rows, asking = vectors[place.flat[here] - start], queries[here // place.shape[1]]
            # Not a product of BLAS, which rounds a row by where it stands: equal rows have to tie.
            scores.flat[here] = np.einsum("nd,nd->n", rows, asking)

    starts = range(0, len(wanted), step)
    if len(starts) <= 1:
        for start in starts:
            score(start)
    else:
        for _ in in_order(score, starts, most=_ROW_THREADS, remote=store.objects.remote):
            pass
    return scores
