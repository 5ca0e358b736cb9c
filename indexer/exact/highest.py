"""Highest and lowest scores of a stream of samples."""

from __future__ import annotations

from threading import local
from typing import TYPE_CHECKING

import numpy as np

from indexer.exact.ranking import Ranking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Highest:
    """Highest scores of a stream of samples that arrives in store order.

    Possible members are collected and sorted in batches. After the first blocks, sorts are rare.

    Args:
        queries: number of queries.
        count: number of scores kept per query.
        sign: -1 for the lowest scores, which are then stored negated.
    """

    def __init__(self, queries: int, count: int, sign: int = 1) -> None:
        self._queries, self._count, self._sign = queries, count, sign
        self._least = np.full(queries, -np.inf, np.float32)
        nothing = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
        self._found = [nothing]  # queries, samples, scores
        self._waiting = 0

    @classmethod
    def of(cls, several: Sequence[Highest]) -> Highest:
        """Merge several collections into one."""
        one = cls(several[0]._queries, several[0]._count)
        one._found = [found for other in several for found in other._found]
        return one

    def add(self, samples: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        """Add samples and their scores `[queries, samples]`."""
        # After the first blocks, most queries find nothing new; each block's extreme shows it.
        # `~(<=)` rather than `>`, so that a block with NaN is examined in full.
        high = self._sign > 0
        end = scores.max(axis=1) if high else -scores.min(axis=1)
        some = np.flatnonzero(~(end <= self._least))
        if not len(some):
            return
        if 2 * len(some) > self._queries:  # otherwise copying a few queries is cheaper
            some = np.arange(self._queries)
        else:
            scores = scores[some]
        least = self._sign * self._least[some, None]
        above = scores > least if high else scores < least  # among equal scores the earlier is kept
        if np.count_nonzero(above) > 2 * len(some) * self._count:
            signed = np.where(above, self._sign * scores, -np.inf)
            place = signed.shape[1] - self._count
            above &= signed >= np.partition(signed, place, axis=1)[:, place, None]
        # Flattened to one axis because flatnonzero is then much faster.
        query, place = np.divmod(np.flatnonzero(above), scores.shape[1])
        self._found.append((some[query], samples[place], self._sign * scores[query, place]))
        self._waiting += len(query)
        if self._waiting > self._queries * self._count:
            self._sort()

    def _sort(self, *, in_order: bool = True) -> None:
        """Keep the highest scores of each query.

        Args:
            in_order: whether the samples of each query are in store order. A stable sort then needs
                no third key, which would take 50% longer.
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
        """Ranking of the samples added so far."""
        self._sort(in_order=False)
        _, rows, scores = self._found[0]
        shape = (self._queries, len(rows) // self._queries)
        return Ranking(rows.reshape(shape), scores.reshape(shape))


class HighestAndLowest:
    """Highest and lowest scores of blocks that arrive in several threads.

    Args:
        queries: number of queries.
        count: number of scores kept per query at each end.
        signs: which ends: 1 for the highest scores, -1 for the lowest.
    """

    def __init__(self, queries: int, count: int, signs: Sequence[int] = (1, -1)) -> None:
        self._queries, self._count, self._signs = queries, count, signs
        self._own = local()
        self._all: list[list[Highest]] = []

    def add(self, samples: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        """Add samples, in store order within each thread, with scores `[queries, samples]`."""
        if not hasattr(self._own, "ends"):
            self._own.ends = [Highest(self._queries, self._count, sign) for sign in self._signs]
            self._all.append(self._own.ends)
        for end in self._own.ends:
            end.add(samples, scores)

    @property
    def rankings(self) -> list[Ranking]:
        """Rankings of the samples added so far; scores of the lowest end are negated."""
        return [Highest.of(side).ranking for side in zip(*self._all, strict=True)]
