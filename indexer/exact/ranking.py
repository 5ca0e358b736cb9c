"""Rankings: samples with the highest scores, and the order of ties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gradstore.errors import QueryError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.store.reader import Store


@dataclass(frozen=True)
class Ranking:
    """Training samples per query, strongest influence first.

    Attributes:
        samples: sample numbers in the training store, int64 `[queries, k]`.
        scores: influence, float32 `[queries, k]`.
    """

    samples: NDArray[np.int64]
    scores: NDArray[np.float32]


def best(scores: NDArray[np.float32], samples: NDArray[np.int64], k: int) -> Ranking:
    """The `k` highest of `[queries, candidates]`; ties rank in store order.

    Examples:
        >>> best(np.array([[1.0, 3.0, 3.0]], np.float32), np.array([[0, 5, 2]]), 2).samples
        array([[2, 5]])
    """
    order = np.lexsort((samples, -scores), axis=-1)[:, :k]
    return Ranking(np.take_along_axis(samples, order, 1), np.take_along_axis(scores, order, 1))


def require_k(k: int, store: Store, keep: NDArray[np.int64] | None = None) -> None:
    """Raise `QueryError` unless at least `k` samples can be found."""
    left = store.samples if keep is None else len(keep)
    if left == 0:
        raise QueryError(f"no sample of {store.location} is left by the filter.")
    if not 1 <= k <= left:
        raise QueryError(
            f"k is {k}, but there are {left} samples of {store.location} to find. Use --k {left} "
            "or fewer."
        )
