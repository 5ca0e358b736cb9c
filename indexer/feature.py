"""Features: the vectors whose inner products are influence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gradstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from gradstore.reader import Store
    from indexer.measures import Measure


def feature_dim(store: Store) -> int:
    """Length of a feature: checkpoints × dim."""
    return store.checkpoints * store.dim


def checked_etas(store: Store, etas: Sequence[float] | None) -> list[float]:
    """`etas`, or the store's; one finite number ≥ 0 per checkpoint, else `ConfigError`."""
    if etas is None:
        return store.etas
    if len(etas) != store.checkpoints or not all(np.isfinite(eta) and eta >= 0 for eta in etas):
        raise ConfigError(
            f"etas are {list(etas)}; {store.location} has {store.checkpoints} checkpoints and "
            "needs one finite number ≥ 0 for each."
        )
    return list(etas)


def features(
    store: Store,
    measure: Measure,
    start: int = 0,
    stop: int | None = None,
    *,
    etas: Sequence[float] | None = None,
) -> NDArray[np.float32]:
    """Features of samples `start` to `stop` (one past the last).

    A feature is `√η_k · mean over slots of weight · direction`, concatenated over checkpoints, so
    that the inner product of two is `Σ_k η_k ⟨mean_t row, mean_e row⟩` (DESIGN, "The mathematics").

    Args:
        store: training or query rows.
        measure: weighs the rows.
        start: first sample.
        stop: one past the last sample.
        etas: checkpoint weights η_k; by default the store's.

    Returns:
        float32 `[samples, checkpoints × dim]`.

    Raises:
        UnsealedError: if a shard that is needed is not sealed.
        ConfigError: if there is not one finite, non-negative eta per checkpoint.
    """
    stop = store.samples if stop is None else stop
    etas = checked_etas(store, etas)
    dim = store.dim
    out = np.empty((stop - start, feature_dim(store)), dtype=np.float32)
    for checkpoint, eta in enumerate(etas):
        rows = store.rows(checkpoint, start, stop)
        weights = measure.weights(rows, checkpoint).astype(np.float32)
        weights *= np.float32(np.sqrt(eta) / store.slots)
        out[:, checkpoint * dim : (checkpoint + 1) * dim] = np.einsum(
            "ns,nsd->nd", weights, rows.direction.astype(np.float32, copy=False), optimize=True
        )
    return out


def iter_features(
    store: Store, measure: Measure, *, etas: Sequence[float] | None = None
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Features of all samples, a shard at a time, as (first sample, features)."""
    for start, stop in store.blocks():
        yield start, features(store, measure, start, stop, etas=etas)
