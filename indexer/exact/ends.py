"""The highest and the lowest scores of a stream of samples."""

from __future__ import annotations

from threading import local
from typing import TYPE_CHECKING

import numpy as np

from indexer.exact.ranking import Ranking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Highest:
    """The highest scores of a stream of samples, which come in the order of the store.

    What may be among them is put by, and sorted out when there is much of it: after the first
    blocks that is seldom.

    Args:
        queries: number of queries.
        count: how many are kept of each.
        sign: -1 for the lowest scores; what is kept of them is their negative.
    """

    def __init__(self, queries: int, count: int, sign: int = 1) -> None:
        self._queries, self._count, self._sign = queries, count, sign
        self._least = np.full(queries, -np.inf, np.float32)
        nothing = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
        self._found = [nothing]  # queries, samples, scores
        self._waiting = 0

    @classmethod
    def of(cls, several: Sequence[Highest]) -> Highest:
        """The highest of all that were added to any of several."""
        one = cls(several[0]._queries, several[0]._count)
        one._found = [found for other in several for found in other._found]
        return one

    def add(self, samples: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        """Some more samples, and their scores `[queries, samples]`."""
        # After the first blocks most queries find nothing new, which one look at each block's end
        # tells. (Not `>`: of a block that holds NaN the rest is looked at.)
        high = self._sign > 0
        end = scores.max(axis=1) if high else -scores.min(axis=1)
        some = np.flatnonzero(~(end <= self._least))
        if not len(some):
            return
        if 2 * len(some) > self._queries:  # else a copy is less than the others are
            some = np.arange(self._queries)
        else:
            scores = scores[some]
        least = self._sign * self._least[some, None]
        above = scores > least if high else scores < least  # of equal scores the earlier stays
        if np.count_nonzero(above) > 2 * len(some) * self._count:
            signed = np.where(above, self._sign * scores, -np.inf)
            place = signed.shape[1] - self._count
            above &= signed >= np.partition(signed, place, axis=1)[:, place, None]
        # (Of one axis it takes a fraction of the time.)
        query, place = np.divmod(np.flatnonzero(above), scores.shape[1])
        self._found.append((some[query], samples[place], self._sign * scores[query, place]))
        self._waiting += len(query)
        if self._waiting > self._queries * self._count:
            self._sort()

    def _sort(self, *, in_order: bool = True) -> None:
        """Keep the highest of each query.

        Args:
            in_order: whether what was found is in the order of the store, for every query: the
                sort is stable, and a third key takes half as long again.
        """
        query, rows, scores = (np.concatenate(column) for column in zip(*self._found, strict=True))
        order = np.lexsort((-scores, query) if in_order else (rows, -scores, query))
        query, rows, scores = query[order], rows[order], scores[order]
        rank = np.arange(len(query)) - np.searchsorted(query, query)
        last = rank == self._count - 1
        self._least[query[last]] = scores[last]
        kept = rank < self._count
        self._found, self._waiting = [(query[kept], rows[kept], scores[kept])], 0

    @property
    def ranking(self) -> Ranking:
        """The highest, as far as samples were added."""
        self._sort(in_order=False)
        _, rows, scores = self._found[0]
        shape = (self._queries, len(rows) // self._queries)
        return Ranking(rows.reshape(shape), scores.reshape(shape))


class Ends:
    """The highest and the lowest scores, of blocks that come in several threads.

    Args:
        queries: number of queries.
        count: how many are kept of each, at each end.
        signs: which ends: 1 for the highest scores, -1 for the lowest.
    """

    def __init__(self, queries: int, count: int, signs: Sequence[int] = (1, -1)) -> None:
        self._queries, self._count, self._signs = queries, count, signs
        self._own = local()
        self._all: list[list[Highest]] = []

    def add(self, samples: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        """Some more samples, in each thread in the order of the store; `[queries, samples]`."""
        if not hasattr(self._own, "ends"):
            self._own.ends = [Highest(self._queries, self._count, sign) for sign in self._signs]
            self._all.append(self._own.ends)
        for end in self._own.ends:
            end.add(samples, scores)

    @property
    def rankings(self) -> list[Ranking]:
        """The ends, as far as samples were added; of the lower one, scores times -1."""
        return [Highest.of(side).ranking for side in zip(*self._all, strict=True)]
