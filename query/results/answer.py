"""An answer: what a search under one measure found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gradstore.errors import QueryError
from indexer import Ranking
from indexer.studies.explanation import Explanation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gradstore.store.reader import Store
    from query.queries import Queries


@dataclass(frozen=True)
class Answer:
    """What a search under one measure found.

    Attributes:
        measure: name of the measure.
        queries: what was asked.
        store: the training store.
        proponents: training samples that pushed the model towards each query.
        opponents: the other end of the list. Those with negative scores pushed against the query;
            with positive ones, they pushed least.
        explained: the scores of proponents and opponents, one after the other, by checkpoint, with
            their error; that is NaN under a preconditioned measure, for which none is known.
    """

    measure: str
    queries: Queries
    store: Store
    proponents: Ranking
    opponents: Ranking
    explained: Explanation

    @property
    def sides(self) -> Mapping[str, Ranking]:
        """Both rankings by name."""
        return {"proponent": self.proponents, "opponent": self.opponents}

    def first(self, queries: int, k: int) -> Answer:
        """The answer to the first queries, of at most `k` samples on each side."""
        count = self.proponents.rows.shape[1]
        ranks = np.arange(min(k, count))
        both = np.concatenate([ranks, count + ranks])
        return replace(
            self,
            queries=self.queries.part(0, queries),
            proponents=_cut(self.proponents, queries, k),
            opponents=_cut(self.opponents, queries, k),
            explained=Explanation(
                self.explained.parts[:queries, both],
                self.explained.standard_error[:queries, both],
                self.explained.z[:queries, both],
            ),
        )

    def distinctness(self) -> float:
        """Distinct proponents over all of them: |∪ top-k| / (queries · k); 1 if none recurs."""
        return len(np.unique(self.proponents.rows)) / self.proponents.rows.size

    @property
    def labels_comparable(self) -> bool:
        """Whether some query has a label that some training sample has."""
        shared = set(self.queries.labels or []) & set(labels(self.store) or [])
        return bool(shared - {None})

    def label_share(self) -> tuple[float, float]:
        """Share of proponents that have their query's label, and the share that chance gives.

        Raises:
            QueryError: if there are no labels to compare.
        """
        query_labels, train_labels = self.queries.labels, labels(self.store)
        if not self.labels_comparable or query_labels is None or train_labels is None:
            raise QueryError("there are no labels to compare: queries and training set share none")
        asked, found = np.array(query_labels), np.array(train_labels)
        same = found[self.proponents.rows] == asked[:, None]
        chance = float(np.mean([np.mean(found == label) for label in asked]))
        return float(same.mean()), chance


def _cut(ranking: Ranking, queries: int, k: int) -> Ranking:
    return Ranking(ranking.rows[:queries, :k], ranking.scores[:queries, :k])


def labels(store: Store) -> Sequence[Any] | None:
    """Labels of a store's samples, if it has any."""
    return store.manifest.metadata.get("label")


def timesteps(answers: Sequence[Answer]) -> dict[int, list[int]]:
    """Timesteps of each sample that answers of one store found, at all checkpoints, by its number.

    Of those only: a store under a URL may have thousands of shards.
    """
    found = np.unique([side.rows for answer in answers for side in answer.sides.values()])
    store = answers[0].store
    columns = [store.column("timestep", k, found) for k in range(store.checkpoints)]
    return dict(zip(found.tolist(), np.concatenate(columns, axis=1).tolist(), strict=True))
