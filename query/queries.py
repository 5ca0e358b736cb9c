"""Queries: the samples of a query store, or weighted sums of them.

Influence and projection are linear in the query. A weighted sum of queries is therefore an ordinary
query: the same index searches it, and the standard error of its scores follows from its norm in the
same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gradstore.errors import QueryError
from indexer.deviations import deviations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer import Features

_BLOCK_BYTES: Final = 64 * 2**20


@dataclass(frozen=True)
class Queries:
    """Named weighted sums of a query store's samples; usually single samples.

    Query `i` is the sum over `j` from `starts[i]` to `starts[i + 1]` of `weights[j]` times sample
    `samples[j]`.

    Attributes:
        store: the query store.
        ids: name of each query.
        labels: label of each query, None for a query without one; None if no query has one.
        samples: sample numbers in the store, int64 `[terms]`.
        weights: float64 `[terms]`.
        starts: int64 `[queries + 1]`.

    Examples:
        >>> import gradstore as gs
        >>> means = gs.Queries.means(gs.open_store("asked.gradstore"), "label")
        >>> means.ids, means.minus("label=dog").ids
        (['label=cat', 'label=dog'], ['label=cat - label=dog'])
        >>> gs.search("train.gradstore", means, 3, measure="retrac")
        Answer('retrac', queries=2, k=3, store='train.gradstore')
    """

    store: Store
    ids: Sequence[str]
    labels: Sequence[Any] | None
    samples: NDArray[np.int64]
    weights: NDArray[np.float64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, store: Store) -> Queries:
        """Use each sample of a query store as one query."""
        count = store.samples
        return cls(
            store,
            store.manifest.ids,
            store.manifest.metadata.get("label"),
            np.arange(count),
            np.ones(count),
            np.arange(count + 1),
        )

    @classmethod
    def combined(cls, store: Store, sums: Mapping[str, Mapping[str, float]]) -> Queries:
        """Use weighted sums of a query store's samples as queries.

        Args:
            store: the query store.
            sums: query name → sample id → weight. A query has a label if all its samples share that
                label.

        Raises:
            QueryError: if there is no query, a query has no sample, or the store lacks a sample.
        """
        if not sums or not all(sums.values()):
            raise QueryError("no query is given: name at least one sample for each query")
        names = [name for terms in sums.values() for name in terms]
        place = store.manifest.find(names)
        for name in names:
            if name not in place:
                raise QueryError(f"{store.location} has no sample {name!r}.")
        own = store.manifest.metadata.get("label")
        labels = None
        if own is not None:
            found = [{own[place[name]] for name in terms} for terms in sums.values()]
            labels = [one.pop() if len(one) == 1 else None for one in found]
        return cls(
            store,
            list(sums),
            labels,
            np.array([place[name] for terms in sums.values() for name in terms]),
            np.array([weight for terms in sums.values() for weight in terms.values()], np.float64),
            np.cumsum([0, *map(len, sums.values())]),
        )

    @classmethod
    def means(cls, store: Store, column: str) -> Queries:
        """Use the mean of the samples of each value of a manifest column, named `column=value`.

        Samples without a value are omitted.

        Raises:
            QueryError: if the column does not exist or is empty.
        """
        metadata = store.manifest.metadata
        if column not in metadata:
            known = ", ".join(sorted(metadata)) or "none"
            raise QueryError(f"{store.location} has no column {column!r}; it has {known}.")
        members: dict[str, list[str]] = {}
        for name, value in zip(store.manifest.ids, metadata[column], strict=True):
            if value is not None:
                members.setdefault(f"{column}={value}", []).append(name)
        return cls.combined(
            store,
            {group: dict.fromkeys(own, 1 / len(own)) for group, own in sorted(members.items())},
        )

    def minus(self, name: str) -> Queries:
        """Subtract the named query from every other: finds what favours one over the other.

        A difference is named `a - b` and has no label.

        Raises:
            QueryError: if there is no such query, or no other query.
        """
        if name not in self.ids:
            shown = ", ".join(map(repr, list(self.ids)[:5]))
            raise QueryError(f"there is no query {name!r} to subtract; there are {shown}, ….")
        if len(self) == 1:
            raise QueryError(f"{name!r} is the only query: there is no other to subtract it from.")
        less = list(self.ids).index(name)
        taken, taken_weights = self._terms(less)
        pairs = [self._terms(query) for query in range(len(self)) if query != less]
        return Queries(
            self.store,
            [f"{other} - {name}" for other in self.ids if other != name],
            None,
            np.concatenate([part for own, _ in pairs for part in (own, taken)]),
            np.concatenate([part for _, own in pairs for part in (own, -taken_weights)]),
            np.cumsum([0, *(len(own) + len(taken) for own, _ in pairs)]),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def _single(self) -> bool:
        """Whether every query is one sample."""
        return len(self.samples) == len(self) and bool((self.weights == 1).all())

    def _terms(self, query: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        here = slice(self.starts[query], self.starts[query + 1])
        return self.samples[here], self.weights[here]

    def part(self, start: int, stop: int) -> Queries:
        """Queries `start` to `stop` (exclusive; it may exceed the number of queries)."""
        starts = self.starts[start : stop + 1]
        here = slice(starts[0], starts[-1])
        return Queries(
            self.store,
            self.ids[start:stop],
            None if self.labels is None else self.labels[start:stop],
            self.samples[here],
            self.weights[here],
            starts - starts[0],
        )

    def sample(self, query: int) -> int | None:
        """Sample number of a query, or None if the query is a sum."""
        samples, weights = self._terms(query)
        return int(samples[0]) if len(samples) == 1 and weights[0] == 1 else None

    def features(self, features: Features) -> NDArray[np.float32]:
        """Features of the queries, float32 `[queries, dim]`; sums are computed in float64.

        At most one block of samples' features is held in addition to the result.
        """
        store = self.store
        first, count = int(self.samples[0]), len(self)
        if self._single and np.array_equal(self.samples, np.arange(first, first + count)):
            return features.range(store, first, first + count)
        return self._summed(lambda some: features.take(store, some), (features.dim(store),))

    def deviations(self, features: Features) -> NDArray[np.float32] | None:
        """Noise of the queries' features: see `indexer.deviations`.

        Returns:
            float32 `[queries, slots − 2, dim]`; None if it is unknown, because queries have fewer
            than three slots, or slots are matched.
        """
        store, width = self.store, features.width(self.store)
        if features.slots is not None or store.slots < 3:
            return None
        shape = (store.slots - 2, features.dim(store))

        def of(some: NDArray[np.int64]) -> NDArray[np.float32]:
            found = np.zeros((len(some), *shape), np.float32)
            for place in features.checkpoints:
                here = slice(place * width, (place + 1) * width)
                found[:, :, here] = deviations(features, store, place, store.take(place, some))
            return found

        return self._summed(of, shape)

    def _summed(
        self, take: Callable[[NDArray[np.int64]], NDArray[np.float32]], shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """Weighted sums of what `take` returns of samples, float32 `[queries, *shape]`."""
        if self._single:
            return take(self.samples)
        out = np.zeros((len(self), *shape))
        owner = np.repeat(np.arange(len(self)), np.diff(self.starts))
        order = np.argsort(self.samples, kind="stable")
        wanted = np.unique(self.samples)
        step = max(1, _BLOCK_BYTES // (4 * int(np.prod(shape))))
        for start in range(0, len(wanted), step):
            some = wanted[start : start + step]
            vectors = take(some)
            first, last = np.searchsorted(self.samples[order], (some[0], some[-1] + 1))
            for term in order[first:last].tolist():
                vector = vectors[np.searchsorted(some, self.samples[term])]
                out[owner[term]] += self.weights[term] * vector
        return out.astype(np.float32)
