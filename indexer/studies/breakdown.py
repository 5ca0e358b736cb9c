"""One score by checkpoint and timestep."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gradstore.errors import QueryError
from indexer.measure import QuerySide

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer.feature import Features


def breakdown(
    train: Store, queries: Store, features: Features, query: int, sample: int
) -> NDArray[np.float32]:
    """One score by checkpoint, the query's slot and the sample's: what each pair of rows adds.

    Args:
        train: the training store.
        queries: the query store.
        features: how rows become features.
        query: number of the query.
        sample: number of the training sample.

    Returns:
        float32 `[checkpoints, slots of the query, slots of the sample]`, whose sum is the score.
        The slots' timesteps are the stores' columns `timestep`.

    Raises:
        QueryError: if slots are to be matched and are not as many, or the measure changes the
            queries, whose scores are no sums over pairs of rows.
    """
    if isinstance(features.measure, QuerySide):
        raise QueryError(
            f"{features.measure.name} changes the average of a query's rows, so that its scores "
            "are no sums over pairs of rows. Break down a score of another measure."
        )
    if features.slots is not None and queries.slots != features.slots:
        raise QueryError(
            f"{queries.location} has {queries.slots} timesteps per sample and the training store "
            f"{features.slots}: they cannot be matched. Collect queries at the same timesteps."
        )
    out = np.zeros((len(features.etas), queries.slots, train.slots), np.float32)
    for checkpoint in features.checkpoints:
        sides = []
        for store, number in ((queries, query), (train, sample)):
            rows = store.take(checkpoint, np.array([number]))
            weights = features.weights(store, checkpoint, rows)
            sides.append(rows.direction[0].astype(np.float32) * weights[0, :, None])
        out[checkpoint] = sides[0] @ sides[1].T
        if features.slots is not None:
            out[checkpoint] *= np.eye(features.slots, dtype=np.float32)
    return out
