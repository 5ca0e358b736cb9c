"""Search index: the first stage finds candidates in memory, the store scores them exactly.

The index holds the sum of a sample's features over checkpoints. Checkpoints are projected
independently, so products between parts of different checkpoints are noise. A vector as long as one
checkpoint's part finds as good candidates as the concatenation of all parts, in fewer bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gradstore.errors import (
    QueryError,
    SearchIndexError,
)
from indexer.approximate.spec import VECTORS_NAME, IndexSpec, update
from indexer.exact.engine import ExactEngine
from indexer.exact.ranking import Ranking, best, require_k
from indexer.exact.rescoring import rescored

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer.approximate.first_stage import FirstStage
    from indexer.feature import Features, RowWeights
    from indexer.measure import Measure


class SearchIndex:
    """A search index in memory.

    Attributes:
        path: its folder.
        spec: what it was built from.
        store: the store it was built from.
        features: computes features from rows.

    Examples:
        >>> import gradstore as gs
        >>> index = gs.build_index("train.gradstore", "retrac")
        >>> index
        SearchIndex('...train.retrac.index', measure='retrac', samples=7, dim=64)
        >>> gs.search(index, "asked.gradstore", 3)
        Answer('retrac', queries=3, k=3, store='train.gradstore')
    """

    def __init__(
        self,
        path: Path,
        spec: IndexSpec,
        store: Store,
        features: Features,
        stage: FirstStage,
        *,
        weights: RowWeights | None = None,
    ) -> None:
        self.path = path
        self.spec = spec
        self.store = store
        self.features = features
        self._stage = stage
        self._exact = ExactEngine(store, features, weights)

    def __repr__(self) -> str:
        return (
            f"SearchIndex({str(self.path)!r}, measure={self.measure.name!r}, "
            f"samples={self.spec.count}, dim={self.spec.dim})"
        )

    @property
    def measure(self) -> Measure:
        """The measure it was built for, fitted to the store."""
        return self.features.measure

    @property
    def nbytes(self) -> int:
        """Bytes on disk, about the same as in memory."""
        return (self.path / VECTORS_NAME).stat().st_size

    def search(
        self, queries: NDArray[np.float32], k: int, *, keep: NDArray[np.int64] | None = None
    ) -> tuple[Ranking, Ranking]:
        """Find the `k` training samples of highest and of lowest influence on each query.

        Uses `approximate`, or the exact engine if it is faster for this number of queries.

        Args:
            queries: features, float32 `[queries, dim]`.
            k: number of samples on each side.
            keep: ascending numbers of the samples to search; by default all.

        Returns:
            Proponents and opponents.

        Raises:
            QueryError: if `k` exceeds the number of samples, or features have the wrong length.
            SearchIndexError: if the store changed since the index was opened.
        """
        share = 1.0 if keep is None else len(keep) / self.spec.count
        if self.spec.exact_from is not None and len(queries) >= share * self.spec.exact_from:
            self._require_searchable(queries, k, keep)
            return self._exact.search(queries, k, keep=keep)
        return self.approximate(queries, k, keep=keep)

    def approximate(
        self, queries: NDArray[np.float32], k: int, *, keep: NDArray[np.int64] | None = None
    ) -> tuple[Ranking, Ranking]:
        """Run `search` with the index, whatever the number of queries.

        Candidates come from the index. Scores come from the store and are exact, in float32. The
        index may miss samples; `spec.measured` records its recall.

        Args:
            queries: features, float32 `[queries, dim]`.
            k: number of samples on each side.
            keep: ascending numbers of the samples to search; by default all.

        Returns:
            Proponents and opponents.

        Raises:
            QueryError: if `k` exceeds the number of samples, or features have the wrong length.
            SearchIndexError: if the store changed since the index was opened.
        """
        self._require_searchable(queries, k, keep)
        left = self.spec.count if keep is None else len(keep)
        count = min(left, max(self.spec.measured.candidates, 2 * k))
        # Search both ends in one call: FAISS runs one thread per query, and threads share reads.
        found_twice = self._stage.search(np.concatenate([queries, -queries]), count, keep)
        high, low = np.split(found_twice, 2)
        both = np.concatenate([high, low], axis=1)
        scores = rescored(self.store, self.features, queries, both, self._exact.weights)
        sides = []
        for sign, rows, exact in zip(
            (1, -1), (high, low), np.split(scores, 2, axis=1), strict=True
        ):
            found = best(np.where(rows < 0, -np.inf, sign * exact).astype(np.float32), rows, k)
            if (found.samples < 0).any():
                raise SearchIndexError(
                    f"index {self.path} ({self.spec.factory}) searches only a part of its vectors "
                    f"and found fewer than {k} samples. Use a smaller --k, or build another kind: "
                    f"{update(self.store, self.features)}"
                )
            sides.append(Ranking(found.samples, sign * found.scores))
        return sides[0], sides[1]

    def _require_searchable(
        self, queries: NDArray[np.float32], k: int, keep: NDArray[np.int64] | None
    ) -> None:
        require_k(k, self.store, keep)
        if not self.store.is_current():
            raise SearchIndexError(
                f"{self.store.location} changed since index {self.path} was opened: samples may "
                f"have been deleted. Update the index: {update(self.store, self.features)}"
            )
        if queries.ndim != 2 or queries.shape[1] != self.features.dim(self.store):
            raise QueryError(
                f"the queries have shape {queries.shape}, but features of {self.store.location} "
                f"have length {self.features.dim(self.store)}. Make them with indexer.Features."
            )
        if not np.isfinite(queries).all():
            raise QueryError(
                "a query's features are not finite: its gradients are damaged. Collect it again."
            )
