"""Removal: what do queries lose without their first proponents?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gradstore.progress import track

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from query.evaluation.retraining import Retraining

RANDOM = "random"


def removal(
    retraining: Retraining,
    proponents: Mapping[str, NDArray[np.int64]],
    queries: NDArray[np.int64],
    seeds: int,
    random_sets: int,
) -> dict[str, NDArray[np.float64]]:
    """Change of each query's loss when a model is trained without the query's proponents.

    Args:
        retraining: trains and judges models.
        proponents: the training samples to remove for each query, by method: `[queries, removed]`.
        queries: the queries' numbers among those that are judged.
        seeds: number of trainings of each set.
        random_sets: number of random sets of the same size, the same for all queries.

    Returns:
        `[seeds, queries]` by method, and the mean over random sets as `random`: the loss without
        the samples less the loss with all of them, by models of the same seed.
    """
    count = len(retraining.ids)
    whole = [retraining.values(np.ones(count, bool), seed) for seed in range(seeds)]

    def without(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        members = np.ones(count, bool)
        members[rows] = False
        each = [retraining.values(members, seed) - whole[seed] for seed in range(seeds)]
        return np.stack(each)[:, queries]

    generator = np.random.default_rng(1)
    removed = next(iter(proponents.values())).shape[1]
    sets = [generator.permutation(count)[:removed] for _ in range(random_sets)]
    runs = [(method, place) for method in proponents for place in range(len(queries))]
    found = {
        RANDOM: np.mean([without(rows) for rows in track(sets, "retraining", "models")], axis=0),
        **{method: np.empty((seeds, len(queries))) for method in proponents},
    }
    for method, place in track(runs, "retraining without proponents", "sets"):
        found[method][:, place] = without(proponents[method][place])[:, place]
    return found
