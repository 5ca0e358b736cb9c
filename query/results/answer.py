"""Answers: results of a search under one measure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

import query
from gradstore.errors import QueryError
from gradstore.store.format.columns import at, counted
from gradstore.tabular import Tabular
from indexer import Ranking

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa

    from gradstore.store.reader import Store
    from indexer.studies.explanation import Explanation
    from query.queries import Queries


@dataclass(frozen=True, repr=False)
class Answer(Tabular):
    """Results of a search under one measure.

    Attributes:
        measure: name of the measure.
        queries: the queries.
        store: the training store.
        proponents: training samples that pushed the model towards each query.
        opponents: samples of lowest influence. Those with negative scores pushed against the query;
            those with positive scores pushed least.
        explained: scores of proponents, then opponents, by checkpoint, with their standard errors.
            The projection's is NaN under a preconditioned measure, for which none is known.

    Examples:
        >>> import gradstore as gs
        >>> answer = gs.search("train.gradstore", "asked.gradstore", 3, measure="retrac")
        >>> [len(ids) for ids in answer.proponent_ids]
        [3, 3, 3]
        >>> [one.queries.ids for one in answer]
        [['cat/0.png'], ['cat/2.png'], ['dog/1.png']]
    """

    measure: str
    queries: Queries
    store: Store
    proponents: Ranking
    opponents: Ranking
    explained: Explanation

    def __len__(self) -> int:
        return len(self.queries)

    def __iter__(self) -> Iterator[Answer]:
        """Yield the answer to each query."""
        for number in range(len(self)):
            yield self._part(number, number + 1, self.proponents.samples.shape[1])

    def __repr__(self) -> str:
        return (
            f"Answer({self.measure!r}, queries={len(self)}, k={self.proponents.samples.shape[1]}, "
            f"store={self.store.location!r})"
        )

    def to_table(self) -> pa.Table:
        """One row per query, side and rank; see `query.to_table` for the columns."""
        return query.to_table([self])

    def _repr_html_(self) -> str:
        """The gallery of the first queries, for notebooks."""
        found = query.gallery(self)
        return super()._repr_html_() if found is None else found

    @property
    def proponent_ids(self) -> list[list[str]]:
        """Ids of the proponents of each query, strongest first."""
        return self._ids(self.proponents)

    @property
    def opponent_ids(self) -> list[list[str]]:
        """Ids of the opponents of each query, strongest first."""
        return self._ids(self.opponents)

    def _ids(self, ranking: Ranking) -> list[list[str]]:
        names = at(self.store.manifest.ids, ranking.samples.ravel())
        width = ranking.samples.shape[1]
        return [names[start : start + width] for start in range(0, len(names), width)]

    @property
    def sides(self) -> Mapping[str, Ranking]:
        """Both rankings by name of the side."""
        return {"proponent": self.proponents, "opponent": self.opponents}

    def first(self, queries: int, k: int) -> Answer:
        """Answer to the first queries, with at most `k` samples on each side."""
        return self._part(0, queries, k)

    def _part(self, start: int, stop: int, k: int) -> Answer:
        """Answer to queries `start` to `stop`, with at most `k` samples on each side."""
        count = self.proponents.samples.shape[1]
        ranks = np.arange(min(k, count))
        both = np.concatenate([ranks, count + ranks])
        here = slice(start, stop)
        proponents, opponents = (
            Ranking(side.samples[here, :k], side.scores[here, :k]) for side in self.sides.values()
        )
        return replace(
            self,
            queries=self.queries.part(start, stop),
            proponents=proponents,
            opponents=opponents,
            explained=self.explained.only(here, both),
        )

    def distinctness(self) -> float:
        """Share of distinct proponents: |∪ top-k| / (queries · k); 1 if none recurs."""
        return len(np.unique(self.proponents.samples)) / self.proponents.samples.size

    @property
    def labels_comparable(self) -> bool:
        """Whether any query shares a label with any training sample."""
        asked = self.queries.labels
        return bool(asked and counted(labels(self.store) or []).keys() & set(asked))

    def label_share(self) -> tuple[float, float]:
        """Share of proponents with their query's label, and the share expected by chance.

        Raises:
            QueryError: if there are no labels to compare.
        """
        query_labels, train_labels = self.queries.labels, labels(self.store)
        if not self.labels_comparable or query_labels is None or train_labels is None:
            raise QueryError("there are no labels to compare: queries and training set share none")
        asked, found = list(query_labels), counted(train_labels)
        width = self.proponents.samples.shape[1]
        theirs = at(train_labels, self.proponents.samples.ravel())
        same = [asked[place // width] == label for place, label in enumerate(theirs)]
        found[None] = self.store.samples - found.total()
        chance = np.mean([found[label] for label in asked]) / self.store.samples
        return float(np.mean(same)), float(chance)


def labels(store: Store) -> Sequence[Any] | None:
    """Labels of a store's samples; None if it has none."""
    return store.manifest.metadata.get("label")


def timesteps(answers: Sequence[Answer]) -> dict[int, list[int]]:
    """Timesteps at all checkpoints of each sample found in answers of one store, by sample number.

    Other samples are not read, because a store under a URL may have thousands of shards.
    """
    found = np.unique([side.samples for answer in answers for side in answer.sides.values()])
    store = answers[0].store
    columns = [store.column("timestep", k, found) for k in range(store.checkpoints)]
    return dict(zip(found.tolist(), np.concatenate(columns, axis=1).tolist(), strict=True))
