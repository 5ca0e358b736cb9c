"""The exact engine: one pass over the store for any number of queries, no index, bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from gradstore.errors import QueryError
from gradstore.progress import progress
from indexer.product import Multiplier, multiplies_bfloat16

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gradstore.reader import Store
    from indexer.feature import Features

# Beside k: enough that what bfloat16 puts in another order is among the candidates.
_MORE: Final = 32
# A gap of so many root mean square errors is taken for certain.
_CERTAIN: Final = 8.0


@dataclass(frozen=True)
class Ranking:
    """Training samples per query, strongest influence first.

    Attributes:
        rows: row numbers in the training store, int64 `[queries, k]`.
        scores: influence, float32 `[queries, k]`.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


def rescored(
    store: Store,
    features: Features,
    queries: NDArray[np.float32],
    candidates: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Exact scores of each query's own candidates, from the store, in float32.

    Every row that is some query's candidate is read once, in the order of the store.

    Args:
        store: the training store.
        features: how its rows become features.
        queries: features of the queries, float32 `[queries, dim]`.
        candidates: numbers of samples, `[queries, candidates]`.

    Returns:
        float32 `[queries, candidates]`.
    """
    scores = np.empty(candidates.shape, np.float32)
    wanted, place = np.unique(candidates, return_inverse=True)
    place = place.reshape(candidates.shape)
    step = max(1, 64 * 2**20 // (4 * features.dim(store)))
    for start in range(0, len(wanted), step):
        vectors = features.take(store, wanted[start : start + step])
        here = (place >= start) & (place < start + step)
        query, _ = np.nonzero(here)
        if len(queries) == 1:
            scores[here] = (vectors @ queries[0])[place[here] - start]
        else:
            scores[here] = (queries @ vectors.T)[query, place[here] - start]
    return scores


def best(scores: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Ranking:
    """The `k` highest of `[queries, candidates]`; of equal ones, what comes first in the store."""
    order = np.lexsort((rows, -scores), axis=-1)[:, :k]
    return Ranking(np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1))


def require_k(k: int, store: Store, keep: NDArray[np.int64] | None = None) -> None:
    """Raise `QueryError` unless there are `k` samples to find."""
    left = store.samples if keep is None else len(keep)
    if left == 0:
        raise QueryError(f"no sample of {store.location} is left by the filter.")
    if not 1 <= k <= left:
        raise QueryError(
            f"k is {k}, but there are {left} samples of {store.location} to find. Use --k {left} "
            "or fewer."
        )


class Highest:
    """The highest scores of a stream of samples, which come in the order of the store.

    Args:
        queries: number of queries.
        count: how many are kept of each.
    """

    def __init__(self, queries: int, count: int) -> None:
        self._count = count
        self.ranking = Ranking(np.empty((queries, 0), np.int64), np.empty((queries, 0), np.float32))

    def add(self, samples: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        """Some more samples, and their scores `[queries, samples]`."""
        old = self.ranking
        some = _highest(scores, old.scores, self._count)
        self.ranking = best(
            np.concatenate([old.scores, np.take_along_axis(scores, some, 1)], 1),
            np.concatenate([old.rows, samples[some]], 1),
            self._count,
        )


class ExactEngine:
    """Scores of every training sample, in one pass over the store.

    Args:
        store: a complete training store.
        features: how its rows become features.
    """

    def __init__(self, store: Store, features: Features) -> None:
        self.store = store
        self.features = features

    def __repr__(self) -> str:
        return f"ExactEngine({self.store.location!r}, measure={self.features.measure.name!r})"

    def scores(
        self,
        queries: NDArray[np.float32],
        *,
        keep: NDArray[np.int64] | None = None,
        bfloat16: bool = False,
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Influence of every sample on every query, a block of samples at a time.

        Args:
            queries: features of the queries, float32 `[queries, dim]`.
            keep: numbers of the samples to score, rising; by default all.
            bfloat16: round both sides to bfloat16: several times as fast, with an error of about
                0.3% of what two unrelated gradients of the same lengths score.

        Yields:
            Numbers of samples, and scores, float32 `[queries, samples]`.
        """
        features, store = self.features, self.store
        width = features.width(store)
        if queries.ndim != 2 or queries.shape[1] != features.dim(store):
            raise QueryError(
                f"the queries have shape {queries.shape}, but features of {store.location} have "
                f"length {features.dim(store)}. Make them with indexer.Features."
            )
        parts = {
            place: Multiplier(queries[:, place * width : (place + 1) * width], bfloat16=bfloat16)
            for place in features.checkpoints
        }
        total_samples = store.samples if keep is None else len(keep)
        with progress(total_samples, "searching", "samples") as bar:
            for start, stop in features.spans(store):
                samples = np.arange(start, stop)
                if keep is not None:
                    low, high = np.searchsorted(keep, (start, stop))
                    samples = keep[low:high]
                if not len(samples):
                    continue
                total = np.zeros((len(queries), len(samples)), np.float32)
                for place, multiply in parts.items():
                    if len(samples) == stop - start:
                        rows = store.rows(place, start, stop)
                    else:
                        rows = store.take(place, samples)
                    if store.slots == 1 and store.dtype != "int8":
                        # What is stored is multiplied as it is, and the product weighed.
                        weights = features.weights(store, place, rows)
                        total += multiply(rows.direction[:, 0]) * weights[:, 0]
                    else:
                        total += multiply(features.part(store, place, rows))
                bar.update(len(samples))
                yield samples, total

    def search(
        self, queries: NDArray[np.float32], k: int, *, keep: NDArray[np.int64] | None = None
    ) -> tuple[Ranking, Ranking]:
        """The `k` samples of highest and of lowest influence on each query.

        Candidates are found in bfloat16 where the processor multiplies it, and scored again in
        float32. Where the scores lie too close together for that to be certain, the query is
        searched once more in float32 throughout.

        Returns:
            Proponents and opponents. Scores are float32 sums; where two are equal, the sample that
            comes first in the store is ranked first.

        Raises:
            QueryError: if there are fewer than `k` samples, or the queries have another length.
        """
        require_k(k, self.store, keep)
        sides, certain = self._search(queries, k, keep, bfloat16=multiplies_bfloat16())
        if not certain.all():
            slow, _ = self._search(queries[~certain], k, keep, bfloat16=False)
            for side, again in zip(sides, slow, strict=True):
                side.rows[~certain], side.scores[~certain] = again.rows, again.scores
        return sides

    def _search(
        self,
        queries: NDArray[np.float32],
        k: int,
        keep: NDArray[np.int64] | None,
        *,
        bfloat16: bool,
    ) -> tuple[tuple[Ranking, Ranking], NDArray[np.bool_]]:
        """Proponents and opponents, and of which queries they are certain."""
        left = self.store.samples if keep is None else len(keep)
        count = min(left, 2 * k + _MORE if bfloat16 else k)
        found = Highest(len(queries), count), Highest(len(queries), count)
        for samples, scores in self.scores(queries, keep=keep, bfloat16=bfloat16):
            found[0].add(samples, scores)
            found[1].add(samples, -scores)
        both = np.concatenate([side.ranking.rows for side in found], axis=1)
        scores = rescored(self.store, self.features, queries, both)
        certain = np.ones(len(queries), bool)
        sides = []
        for sign, side, exact in zip((1, -1), found, np.split(scores, 2, axis=1), strict=True):
            final = best(sign * exact, side.ranking.rows, k)
            if count < left and bfloat16:
                error = np.sqrt(np.mean((sign * exact - side.ranking.scores) ** 2, axis=1))
                gap = final.scores[:, -1] - side.ranking.scores[:, -1]
                certain &= gap > _CERTAIN * error
            sides.append(Ranking(final.rows, sign * final.scores))
        return (sides[0], sides[1]), certain


def _highest(
    scores: NDArray[np.float32], found: NDArray[np.float32], count: int
) -> NDArray[np.int64]:
    """Places of what may be among the `count` highest of each query, `[queries, places]`.

    Args:
        scores: of a block of samples, `[queries, samples]`.
        found: the highest so far, falling. Those come first in the store: of equal scores they
            stay, and so does whatever comes first in the block.
        count: how many are sought.
    """
    if found.shape[1] == count:  # few can be, once many were seen
        count = min(count, int((scores > found[:, -1:]).sum(axis=1).max()))
    if count >= scores.shape[1]:
        return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    if count == 0:
        return np.empty((len(scores), 0), np.int64)
    least = np.partition(scores, -count, axis=1)[:, -count, None]
    higher, equal = scores > least, scores == least
    left = count - higher.sum(axis=1, keepdims=True)
    chosen = higher | (equal & (np.cumsum(equal, axis=1) <= left))
    return np.nonzero(chosen)[1].reshape(len(scores), count)
