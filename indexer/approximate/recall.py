"""Recall of a first stage, measured against the exact engine."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Final

import numpy as np
from pydantic import Field

from gradstore.store.format.spec import Spec
from indexer.exact.highest import HighestAndLowest
from indexer.exact.products import Products
from indexer.exact.ranking import best
from indexer.exact.rescoring import rescored

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer.approximate.first_stage import FirstStage
    from indexer.feature import Features, Tile

_PROBES: Final = 32
_TRUTH: Final = 100
_MORE: Final = 32
_CANDIDATES: Final = (50, 100, 200, 400, 800, 1600)
_ENOUGH: Final = 0.995


class Measured(Spec):
    """Measured recall of an index, compared with the exact engine.

    Attributes:
        queries: number of queries used.
        origin: source of the queries: `samples` for random training samples, each excluded from its
            own results, or the location of a query store.
        samples: number of vectors in the index.
        candidates: number of candidates per query, which are rescored exactly.
        query_bits: bits per entry of a quantised query, in the measurement and in searches, if
            vectors have one bit per dimension. 4 in indexes from before this field existed.
        recall_at_10: share found of the 10 samples of highest influence.
        recall_at_100: share found of the highest 100, with at least 200 candidates.
    """

    queries: Annotated[int, Field(ge=1)]
    origin: str
    samples: Annotated[int, Field(ge=1)]
    candidates: Annotated[int, Field(ge=1)]
    query_bits: Annotated[int, Field(ge=1, le=8)] = 4
    recall_at_10: Annotated[float, Field(ge=0, le=1)]
    recall_at_100: Annotated[float, Field(ge=0, le=1)]


class Recall:
    """Measures a first stage while it is built, in the same pass over the store.

    Args:
        store: the training store.
        features: computes features from rows.
        queries: query store used to measure; by default random training samples.

    Attributes:
        vector_seconds: seconds of the first stage per query.
    """

    def __init__(self, store: Store, features: Features, queries: Store | None = None) -> None:
        self._store, self._features = store, features
        source = queries or store
        chosen = np.sort(np.random.default_rng(0).permutation(source.samples)[:_PROBES])
        self._probes = features.take(source, chosen)
        # Exclude each sample from its own results, because finding itself is trivial.
        self._own = chosen if queries is None else np.full(len(chosen), -1)
        self._origin = "samples" if queries is None else queries.location
        self._multiply = Products(store, features, self._probes)
        more = _MORE if self._multiply.rounds else 1
        self._ends = HighestAndLowest(len(chosen), min(store.samples, _TRUTH + more), signs=(1,))
        self.vector_seconds = 0.0

    def add(self, samples: NDArray[np.int64], tiles: Iterable[Tile]) -> None:
        """Score samples from their features; several threads may call this at once."""
        self._ends.add(samples, self._multiply(len(samples), tiles))

    def of(self, stage: FirstStage) -> Measured:
        """Measure recall, with the fewest candidates that reach the target recall."""
        (ranking,) = self._ends.rankings
        rows, scores = ranking.samples, ranking.scores
        if self._multiply.rounds:
            scores = rescored(self._store, self._features, self._probes, rows)
        truth = self._others(best(scores, rows, _TRUTH + 1).samples, _TRUTH)
        most = min(self._store.samples, _CANDIDATES[-1])
        start = perf_counter()
        found = self._others(stage.search(self._probes, most), most)
        self.vector_seconds = (perf_counter() - start) / len(self._probes)

        def recall(k: int, candidates: int) -> float:
            shares = [
                np.isin(wanted[:k], row[:candidates]).mean()
                for wanted, row in zip(truth, found, strict=True)
                if len(wanted)
            ]
            return float(np.mean(shares)) if shares else 1.0

        enough = (n for n in _CANDIDATES if recall(10, n) >= _ENOUGH)
        candidates = next(enough, _CANDIDATES[-1])
        return Measured(
            queries=len(self._probes),
            origin=self._origin,
            samples=len(stage),
            candidates=candidates,
            query_bits=stage.query_bits,
            recall_at_10=recall(10, candidates),
            recall_at_100=recall(100, max(candidates, 2 * _TRUTH)),
        )

    def _others(self, rows: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
        return [row[row != own][:count] for row, own in zip(rows, self._own, strict=True)]
