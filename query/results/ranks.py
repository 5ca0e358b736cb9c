"""Ranks with the uncertainty of scores: between which ranks may a sample stand?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from indexer.deviations import margin

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from indexer.studies.explanation import Explanation


def rank_intervals(
    scores: NDArray[np.float32], explained: Explanation
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Between which ranks each sample of a list may stand, by the errors that are known.

    A sample surely stands above another if their scores differ by more than the margin of the
    difference, at 95%. Noise of the query moves both, so only the difference of their swings
    counts; errors of projection and training rows are taken as independent, which is on the safe
    side for samples that resemble each other.

    Args:
        scores: scores of the list, best first: `[queries, samples]`.
        explained: their errors.

    Returns:
        First and last possible rank, from 1, int64 `[queries, samples]`. A sample whose last rank
        is the list's length may also stand beyond the list.
    """
    queries, count = scores.shape
    first, last = (np.empty(scores.shape, np.int64) for _ in range(2))
    own = np.nan_to_num(explained.projection_error.astype(np.float64)) ** 2
    own += np.nan_to_num(explained.training_error.astype(np.float64)) ** 2
    for query in range(queries):
        swings = explained.swings[query].astype(np.float64).transpose(1, 0, 2)
        products = swings @ swings.transpose(0, 2, 1)
        lengths = np.diagonal(products, axis1=1, axis2=2)
        apart = lengths[:, :, None] + lengths[:, None] - 2 * products
        shared = np.moveaxis(np.maximum(apart, 0), 0, 2)
        sure = margin(shared, swings.shape[2], own[query][:, None] + own[query])
        values = scores[query].astype(np.float64)
        above = values[None] - values[:, None] > sure  # [sample, other]: whether the other is
        below = values[:, None] - values[None] > sure
        first[query] = 1 + above.sum(axis=1)
        last[query] = count - below.sum(axis=1)
    return first, last


def agreement(parts: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far checkpoints agree on scores: |Σ parts| / Σ |parts|, float32 without the last axis.

    1 if all push in one direction, 0 if they cancel; NaN if all parts are 0.
    """
    with np.errstate(invalid="ignore"):
        found = np.abs(parts.sum(axis=-1)) / np.abs(parts).sum(axis=-1)
    return np.asarray(found, np.float32)
