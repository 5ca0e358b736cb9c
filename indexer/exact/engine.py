"""The exact engine: one pass over the store for any number of queries, no index, bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from gradstore.errors import QueryError
from gradstore.progress import progress
from indexer.exact.ends import Ends
from indexer.exact.products import Products
from indexer.exact.ranking import Ranking, best, require_k
from indexer.exact.rescoring import rescored
from indexer.feature import RowWeights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer.feature import Features, Tile


T = TypeVar("T")


# Beside k: enough that what two bytes put in another order is among the candidates.
_MORE: Final = 32

# Of the scores of a block, which every core has several copies of.
_SCORE_BYTES: Final = 8 * 2**20

# A gap of so many root mean square errors is taken for certain.
_CERTAIN: Final = 8.0

# Candidates at each end, at least, whose exact scores tell what the error is.
_TELLING: Final = 8


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
