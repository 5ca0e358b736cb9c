"""Splits one score by checkpoint and timestep."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gradstore.errors import QueryError
from gradstore.store.opening import as_store
from indexer.measure import is_of_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.store.opening import StoreLike
    from indexer.feature import Features


def breakdown(
    train: StoreLike, queries: StoreLike, features: Features, query: int, sample: int
) -> NDArray[np.float32]:
    """Split one score by checkpoint, query slot and sample slot.

    Args:
        train: the training store.
        queries: the query store.
        features: computes features from rows.
        query: number of the query.
        sample: number of the training sample.

    Returns:
        float32 `[checkpoints, slots of the query, slots of the sample]`; its sum is the score. The
        stores' columns `timestep` hold the slots' timesteps.

    Raises:
        QueryError: if slots are matched and their numbers differ, or if the measure transforms
            samples, so that scores are no sums over pairs of rows.

    Examples:
        >>> import gradstore as gs
        >>> features = gs.Features.of("train.gradstore", "retrac")
        >>> gs.breakdown("train.gradstore", "asked.gradstore", features, query=0, sample=2).shape
        (2, 6, 10)
    """
    queries = as_store(queries)
    train = as_store(train)
    if not is_of_rows(features.measure):
        raise QueryError(
            f"{features.measure.name} transforms the mean of a sample's rows, so its scores are no "
            "sums over pairs of rows. Use another measure."
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
