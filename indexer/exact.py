"""The exact engine: one pass over the store for any number of queries, no index, bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from threading import local
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from gradstore.errors import QueryError
from gradstore.progress import progress
from gradstore.workers import in_order
from indexer.feature import RowWeights
from indexer.product import Products

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from gradstore.reader import Store
    from indexer.feature import Features, Tile

T = TypeVar("T")

# Beside k: enough that what two bytes put in another order is among the candidates.
_MORE: Final = 32
# Of the scores of a block, which every core has several copies of.
_SCORE_BYTES: Final = 8 * 2**20
# Of rows that are scored again at once: they stay near the processor.
_ROW_BYTES: Final = 2 * 2**20
_ROW_THREADS: Final = 8
# A gap of so many root mean square errors is taken for certain.
_CERTAIN: Final = 8.0
# Candidates at each end, at least, whose exact scores tell what the error is.
_TELLING: Final = 16


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

    def _sort(self) -> None:
        query, rows, scores = (np.concatenate(column) for column in zip(*self._found, strict=True))
        order = np.lexsort((rows, -scores, query))
        query, rows, scores = query[order], rows[order], scores[order]
        rank = np.arange(len(query)) - np.searchsorted(query, query)
        last = rank == self._count - 1
        self._least[query[last]] = scores[last]
        kept = rank < self._count
        self._found, self._waiting = [(query[kept], rows[kept], scores[kept])], 0

    @property
    def ranking(self) -> Ranking:
        """The highest, as far as samples were added."""
        self._sort()
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


class ExactEngine:
    """Scores of every training sample, in one pass over the store.

    Args:
        store: a complete training store.
        features: how its rows become features.
        weights: of the store's rows, if they are at hand.

    Attributes:
        weights: of the store's rows, kept once they were read.
    """

    def __init__(self, store: Store, features: Features, weights: RowWeights | None = None) -> None:
        self.store = store
        self.features = features
        self.weights = RowWeights(store, features) if weights is None else weights

    def __repr__(self) -> str:
        return f"ExactEngine({self.store.location!r}, measure={self.features.measure.name!r})"

    def scores(
        self,
        queries: NDArray[np.float32],
        *,
        keep: NDArray[np.int64] | None = None,
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Influence of every sample on every query, a block of samples at a time.

        Args:
            queries: features of the queries, float32 `[queries, dim]`.
            keep: numbers of the samples to score, rising; by default all.

        Yields:
            Numbers of samples, and scores, float32 `[queries, samples]`.
        """
        multiply = self._products(queries, exact=True)
        yield from self._pass(
            lambda samples, tiles: multiply(len(samples), tiles).copy(), keep, len(queries)
        )

    def _products(self, queries: NDArray[np.float32], *, exact: bool) -> Products:
        features, store = self.features, self.store
        if queries.ndim != 2 or queries.shape[1] != features.dim(store):
            raise QueryError(
                f"the queries have shape {queries.shape}, but features of {store.location} have "
                f"length {features.dim(store)}. Make them with indexer.Features."
            )
        if not np.isfinite(queries).all():
            raise QueryError("a query's features are not finite: its gradients are damaged")
        return Products(store, features, queries, exact=exact)

    def _pass(
        self,
        work: Callable[[NDArray[np.int64], Iterator[Tile]], T],
        keep: NDArray[np.int64] | None,
        queries: int,
    ) -> Iterator[tuple[NDArray[np.int64], T]]:
        """One pass over the store, as `Features.each`, for so many queries."""
        total = self.store.samples if keep is None else len(keep)
        with progress(total, "searching", "samples") as bar:
            for samples, made in self.features.each(
                self.store,
                work,
                keep=keep,
                weights=self.weights,
                most=max(1, _SCORE_BYTES // (4 * queries)),
            ):
                yield samples, made
                bar.update(len(samples))

    def search(
        self, queries: NDArray[np.float32], k: int, *, keep: NDArray[np.int64] | None = None
    ) -> tuple[Ranking, Ranking]:
        """The `k` samples of highest and of lowest influence on each query.

        Candidates are found in the arithmetic that is fastest on this machine, and scored again in
        float32. Where that arithmetic rounds, and scores lie too close together for it to be
        certain, the query is searched once more in float32 throughout.

        Returns:
            Proponents and opponents. Scores are float32 sums; where two are equal, the sample that
            comes first in the store is ranked first.

        Raises:
            QueryError: if there are fewer than `k` samples, or the queries have another length.
        """
        require_k(k, self.store, keep)
        sides, certain = self._search(queries, k, keep, exact=False)
        if not certain.all():
            slow, _ = self._search(queries[~certain], k, keep, exact=True)
            for side, again in zip(sides, slow, strict=True):
                side.rows[~certain], side.scores[~certain] = again.rows, again.scores
        return sides

    def _search(
        self,
        queries: NDArray[np.float32],
        k: int,
        keep: NDArray[np.int64] | None,
        *,
        exact: bool,
    ) -> tuple[tuple[Ranking, Ranking], NDArray[np.bool_]]:
        """Proponents and opponents, and of which queries they are certain."""
        left = self.store.samples if keep is None else len(keep)
        multiply = self._products(queries, exact=exact)
        count = min(left, 2 * k + _MORE if multiply.rounds else k)
        ends = Ends(len(queries), count)
        for _ in self._pass(
            lambda samples, tiles: ends.add(samples, multiply(len(samples), tiles)),
            keep,
            len(queries),
        ):
            pass
        found = ends.rankings
        rows = np.stack([side.rows for side in found])
        rough = np.stack([side.scores for side in found])
        telling = max(k, _TELLING) if count < left else count
        scores, error = self._exactly(queries, rows, rough, k, telling)
        certain = np.ones(len(queries), bool)
        sides = []
        for sign, side, score, last in zip((1, -1), rows, scores, rough[:, :, -1], strict=True):
            final = best(score, side, k)
            if count < left and multiply.rounds:
                certain &= final.scores[:, -1] - last > _CERTAIN * error
            sides.append(Ranking(final.rows, sign * final.scores))
        return (sides[0], sides[1]), certain

    def _exactly(
        self,
        queries: NDArray[np.float32],
        rows: NDArray[np.int64],
        rough: NDArray[np.float32],
        k: int,
        telling: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Exact scores of those candidates that may be among the first `k`.

        The first ones tell how far rough scores are off; of the others, only those are scored that
        may come before one of the first `k`.

        Args:
            queries: features, float32 `[queries, dim]`.
            rows: candidates of both ends, `[2, queries, candidates]`.
            rough: their scores, of the lower end with the opposite sign.
            k: how many are wanted.
            telling: how many are scored in any case.

        Returns:
            Scores, as `rough` has them, -inf where they were not needed, and the root mean square
            error of rough ones, float32 `[queries]`.
        """
        signs = np.array([1, -1], np.float32)[:, None, None]

        def scored(candidates: NDArray[np.int64]) -> NDArray[np.float32]:
            flat = np.concatenate([candidates[0], candidates[1]], axis=1)
            found = rescored(self.store, self.features, queries, flat, self.weights)
            return signs * np.stack(np.split(found, 2, axis=1))

        exact = np.full(rough.shape, -np.inf, np.float32)
        first = min(telling, rough.shape[2])
        exact[:, :, :first] = scored(rows[:, :, :first])
        off = exact[:, :, :first] - rough[:, :, :first]
        error = np.sqrt(np.mean(off**2, axis=(0, 2)))
        lowest = exact[:, :, :k].min(axis=2) - _CERTAIN * error
        near = rough[:, :, first:] >= lowest[:, :, None]
        if near.any():
            others = scored(np.where(near, rows[:, :, first:], -1))
            exact[:, :, first:] = np.where(near, others, -np.inf)
        return exact, error
