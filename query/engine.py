"""Asking: query rows, search, and what came out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gradstore.errors import QueryError
from gradstore.fingerprint import COMPARED, require_same
from gradstore.spec import EventSpec
from indexer import Ranking, measure_of
from indexer.explanation import Explanation, explain
from indexer.feature import checked_etas
from indexer.precondition import QuerySide
from query.queries import Queries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gradstore.collect import Checkpoints, Objective, Projector
    from gradstore.reader import Store
    from indexer import ExactEngine, Features, Measure, SearchIndex


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


def collect_queries(
    store: Store,
    dataset: Any,
    path: str | Path,
    *,
    events: EventSpec | None = None,
    etas: Sequence[float] | None = None,
    checkpoints: Sequence[str | Path] | Checkpoints | None = None,
    objective: Objective | None = None,
    projector: Projector | None = None,
    **options: Any,
) -> Store:
    """Compute the rows of queries: a store like the training one, with planned events.

    Args:
        store: the training store that will be searched.
        dataset: the queries; anything that `gradstore.collect.collect` takes.
        path: the query store to make.
        events: timesteps and noises; by default 10 timesteps with one noise each.
        etas: the checkpoint weights that will be asked with; by default the store's. Where one is
            0, no gradient is computed: the query store has no rows of that checkpoint until the
            same call with other weights collects them.
        checkpoints: the store's checkpoints, if they moved; or `gradstore.collect.Checkpoints`,
            whose models stay in memory for the next question.
        objective: the store's objective, if it was not `DiffusionLoss`.
        projector: the store's projector, if it was not one of gradstore's own; or the very
            object that made the store, which may still hold its matrices.
        options: further options of `gradstore.collect.collect`.

    Raises:
        GradstoreError: if anything does not fit; a fingerprint that differs, before any work.
    """
    from gradstore.collect import Checkpoints, InProcess, SideBySide, collect
    from gradstore.collect.grow import gradient_spec, projector_spec

    # A question is asked and answered here, whatever RANK says of collecting; side by side only
    # where all models are in memory anyway.
    held = isinstance(checkpoints, Checkpoints)
    options.setdefault("executor", SideBySide() if held else InProcess())
    options.setdefault("gradients", gradient_spec(store))
    identity: dict[str, Any] = store.spec.identity
    loss = identity["objective"].get("loss") if objective is None else None
    weights = checked_etas(store, etas)
    return collect(
        dataset,
        checkpoints or [checkpoint.path for checkpoint in store.spec.checkpoints],
        path,
        objective=objective or loss,
        events=events or EventSpec(events="planned"),
        projector=projector or projector_spec(identity["projector"]),
        etas=store.etas,
        like=store,
        only=[place for place, weight in enumerate(weights) if weight > 0],
        **options,
    )


def search(
    engine: SearchIndex | ExactEngine,
    queries: Store | Queries,
    k: int = 10,
    *,
    measure: Measure | str | None = None,
    keep: NDArray[np.int64] | None = None,
) -> Answer:
    """The training samples of highest and of lowest influence on each query.

    Args:
        engine: an index of the training store, or the exact engine.
        queries: a complete query store, or sums of its samples.
        k: how many of each.
        measure: a measure that the engine serves though it was made for another, such as `trak`,
            which changes the queries alone; by default the engine's.
        keep: numbers of the training samples to search, rising; by default all.

    Raises:
        FingerprintError: if the two stores' rows cannot be compared.
        QueryError: if `k` is larger than the store, or the engine does not serve the measure.
    """
    store, features = engine.store, engine.features
    queries = queries if isinstance(queries, Queries) else Queries.of(queries)
    asked, chosen = prepared(engine, queries, measure)
    proponents, opponents = engine.search(asked, k, keep=keep)
    both = np.concatenate([proponents.rows, opponents.rows], axis=1)
    explained = explain(store, features, asked, both)
    if isinstance(chosen, QuerySide):  # whose queries depend on the projection themselves
        unknown = np.full_like(explained.z, np.nan)
        explained = replace(explained, standard_error=unknown, z=unknown)
    return Answer(
        measure=chosen.name,
        queries=queries,
        store=store,
        proponents=proponents,
        opponents=opponents,
        explained=explained,
    )


def prepared(
    engine: SearchIndex | ExactEngine, queries: Queries, measure: Measure | str | None = None
) -> tuple[NDArray[np.float32], Measure]:
    """What an engine is asked under a measure, and the measure, fitted to its store.

    Returns:
        float32 `[queries, dim]`, and the measure.

    Raises:
        FingerprintError: if the two stores' rows cannot be compared.
        QueryError: if the engine does not serve the measure.
    """
    store, features = engine.store, engine.features
    require_comparable(store, queries.store)
    chosen = features.measure if measure is None else measure_of(measure)
    served = chosen.indexed if isinstance(chosen, QuerySide) else chosen
    if served.name != features.measure.name:
        raise QueryError(
            f"{engine!r} is of {features.measure.name} and does not serve {chosen.name}. Build "
            f"its own: gradstore index --store {store.location} --measures {served.name}"
        )
    require_collected(queries.store, features)
    features.require_matching(store, queries.store)
    asked = queries.features(features)
    if isinstance(chosen, QuerySide):
        require_averaged(chosen, matched=features.slots is not None)
        chosen = chosen.fitted(store)
        asked = chosen.prepared(asked)
    return asked, chosen


def require_comparable(store: Store, queries: Store) -> None:
    """Raise `FingerprintError` unless the rows of two stores can be compared."""
    require_same(
        store.spec.identity,
        queries.spec.identity,
        expected_name=store.location,
        found_name=queries.location,
        sections=COMPARED,
        mend=f"collect the queries anew: gradstore query --store {store.location}",
    )


def require_averaged(measure: QuerySide, *, matched: bool) -> None:
    """Raise `QueryError` if a measure that changes averages of slots is to match them."""
    if matched:
        raise QueryError(
            f"{measure.name} preconditions the average of a query's slots, and there is none where "
            "slots are matched. Average them, or use a measure of rows."
        )


def require_collected(queries: Store, features: Features) -> None:
    """Raise `QueryError` unless a query store has rows of every checkpoint that weighs something.

    Queries that were asked with other weights may have been collected at some checkpoints alone.
    """
    whole = [not any(part.missing(number) for part in queries.parts) for number in queries.numbers]
    lacking = [queries.numbers[place] for place in features.checkpoints if not whole[place]]
    if lacking:
        left = [eta if there else 0 for eta, there in zip(features.etas, whole, strict=True)]
        names = ", ".join(map(str, lacking))
        raise QueryError(
            f"{queries.location} lacks rows of checkpoint {names}. Leave it out with --etas "
            f"{','.join(f'{eta:g}' for eta in left)}, or collect the queries again with the "
            "weights that are asked with."
        )


def timesteps(answers: Sequence[Answer]) -> dict[int, list[int]]:
    """Timesteps of each sample that answers of one store found, at all checkpoints, by its number.

    Of those only: a store under a URL may have thousands of shards.
    """
    found = np.unique([side.rows for answer in answers for side in answer.sides.values()])
    store = answers[0].store
    columns = [store.column("timestep", k, found) for k in range(store.checkpoints)]
    return dict(zip(found.tolist(), np.concatenate(columns, axis=1).tolist(), strict=True))
