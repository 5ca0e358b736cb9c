"""Exact engine: one pass over the store for any number of queries, no index, bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from gradstore.errors import QueryError
from gradstore.progress import progress
from gradstore.store.opening import as_store
from indexer.exact.highest import HighestAndLowest
from indexer.exact.products import Products
from indexer.exact.ranking import Ranking, best, require_k
from indexer.exact.rescoring import rescored
from indexer.feature import Features, RowWeights
from indexer.measures.registry import indexed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from gradstore.store.opening import StoreLike
    from indexer.feature import Tile
    from indexer.measure import Measure


T = TypeVar("T")


# Candidates beyond k: enough to cover samples that two-byte rounding moves in the order.
_MORE: Final = 32

# Bytes of the scores of a block; each core holds several copies.
_SCORE_BYTES: Final = 8 * 2**20

# Score gaps above this number of root mean square errors count as certain.
_CERTAIN: Final = 8.0

# Minimum number of candidates at each end whose exact scores estimate the rounding error.
_TELLING: Final = 8


class ExactEngine:
    """Scores every training sample in one pass over the store.

    Args:
        store: a complete training store, or its path or URL.
        features: computes features from rows; or a measure, or its name.
        weights: the store's row weights, if already read.

    Attributes:
        weights: the store's row weights, kept after the first read.

    Examples:
        >>> import gradstore as gs
        >>> engine = gs.ExactEngine("train.gradstore", "retrac")
        >>> queries = engine.features.range(gs.open_store("asked.gradstore"))
        >>> proponents, opponents = engine.search(queries, 3)
        >>> proponents.samples.shape, proponents.scores.shape
        ((3, 3), (3, 3))
    """

    def __init__(
        self,
        store: StoreLike,
        features: Features | Measure | str,
        weights: RowWeights | None = None,
    ) -> None:
        store = as_store(store)
        self.store = store
        if not isinstance(features, Features):
            features = Features.of(store, indexed(features))
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
        """Yield the influence of every sample on every query, one block of samples at a time.

        Args:
            queries: features of the queries, float32 `[queries, dim]`.
            keep: ascending numbers of the samples to score; by default all.

        Yields:
            Sample numbers and scores, float32 `[queries, samples]`.
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
            raise QueryError(
                "a query's features are not finite: its gradients are damaged. Collect it again."
            )
        return Products(store, features, queries, exact=exact)

    def _pass(
        self,
        work: Callable[[NDArray[np.int64], Iterator[Tile]], T],
        keep: NDArray[np.int64] | None,
        queries: int,
    ) -> Iterator[tuple[NDArray[np.int64], T]]:
        """Run `Features.each` over the store, with blocks sized for `queries` queries."""
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
        """Find the `k` samples of highest and of lowest influence on each query.

        Rank in bfloat16 or float16 where faster, rescore in float32, rerun ambiguous queries in
        float32. A query is ambiguous if the rounding error could change its `k` samples.

        Returns:
            Proponents and opponents. Scores are float32 sums; among equal scores, samples rank in
            store order.

        Raises:
            QueryError: if there are fewer than `k` samples, or features have the wrong length.
        """
        require_k(k, self.store, keep)
        sides, certain = self._search(queries, k, keep, exact=False)
        if not certain.all():
            slow, _ = self._search(queries[~certain], k, keep, exact=True)
            for side, again in zip(sides, slow, strict=True):
                side.samples[~certain], side.scores[~certain] = again.samples, again.scores
        return sides

    def _search(
        self,
        queries: NDArray[np.float32],
        k: int,
        keep: NDArray[np.int64] | None,
        *,
        exact: bool,
    ) -> tuple[tuple[Ranking, Ranking], NDArray[np.bool_]]:
        """Find proponents and opponents, and which queries are unambiguous."""
        left = self.store.samples if keep is None else len(keep)
        multiply = self._products(queries, exact=exact)
        count = min(left, 2 * k + _MORE if multiply.rounds else k)
        ends = HighestAndLowest(len(queries), count)
        for _ in self._pass(
            lambda samples, tiles: ends.add(samples, multiply(len(samples), tiles)),
            keep,
            len(queries),
        ):
            pass
        found = ends.rankings
        rows = np.stack([side.samples for side in found])
        rough = np.stack([side.scores for side in found])
        telling = max(k, _TELLING) if count < left else count
        scores, error = self._exactly(queries, rows, rough, k, telling)
        certain = np.ones(len(queries), bool)
        sides = []
        for sign, side, score, last in zip((1, -1), rows, scores, rough[:, :, -1], strict=True):
            final = best(score, side, k)
            if count < left and multiply.rounds:
                certain &= final.scores[:, -1] - last > _CERTAIN * error
            sides.append(Ranking(final.samples, sign * final.scores))
        return (sides[0], sides[1]), certain

    def _exactly(
        self,
        queries: NDArray[np.float32],
        rows: NDArray[np.int64],
        rough: NDArray[np.float32],
        k: int,
        telling: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Exact scores of the candidates that may rank among the first `k`.

        The first candidates show the error of rough scores. Of the others, only those are rescored
        that may rank above one of the first `k`.

        Args:
            queries: features, float32 `[queries, dim]`.
            rows: candidates of both ends, `[2, queries, candidates]`.
            rough: their rough scores, negated for the lower end.
            k: number of samples wanted.
            telling: number of candidates that are always rescored.

        Returns:
            Scores with the sign of `rough`, -inf where not needed; and the root mean square error
            of rough scores, float32 `[queries]`.
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
