"""Last step of a search: true influence of the best candidates, from full gradients.

Projection adds an error to every score, and the order of close scores is noise. The candidates are
rescored with full gradients, recomputed from samples and checkpoints. The result is exact
influence, as the identity projector gives it for all samples, at the cost of a few hundred samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Unpack

import numpy as np

from gradstore.collect.provenance import recorded_dataset
from gradstore.collect.recorded import Recorded
from gradstore.errors import ConfigError, QueryError
from gradstore.store.format.rows import Rows
from indexer import Ranking, measure_of
from indexer.exact.ranking import best
from indexer.measure import is_of_rows
from indexer.studies.explanation import Explanation

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gradstore.collect import CollectOptions
    from gradstore.store.reader import Store
    from indexer import Features
    from query.queries import Queries
    from query.results.answer import Answer

_FLOAT: Final = 4
# Share of the memory that queries may take.
_HELD: Final = 0.5


@dataclass(frozen=True)
class Sources:
    """Sources for recomputing gradients, if the stores do not record them or they moved.

    Attributes:
        train: the training store's dataset, or a superset.
        queries: the query store's dataset, or a superset.
        checkpoints: checkpoints of both stores.
    """

    train: Any = None
    queries: Any = None
    checkpoints: Sequence[str | Path] | None = None


def rerank(
    answer: Answer,
    features: Features,
    k: int,
    sources: Sources | None = None,
    **options: Unpack[CollectOptions],
) -> Answer:
    """Find the `k` candidates of highest and of lowest *true* influence on each query.

    Gradients are unprojected, so standard errors are 0 and z is infinite. The queries' gradient
    sums at one checkpoint are held for as many queries as fit in half the memory. The number of
    candidates' gradients held at once never exceeds what their engine computes at once.

    Args:
        answer: the candidates: all samples of `answer` are rescored.
        features: features of the measure, from the engine that made the answer.
        k: number of samples kept per side.
        sources: datasets and checkpoints; by default as the stores record them.
        options: options of `gradstore.collect.collect`; memory, device and batch_size have effect.

    Raises:
        QueryError: if the answer has fewer than `k` candidates per side.
        ConfigError: if the measure transforms queries instead of weighting rows.
        GradstoreError: if samples, checkpoints or events cannot be reproduced.

    Examples:
        >>> import gradstore as gs
        >>> answer = gs.search("train.gradstore", "asked.gradstore", 3, measure="retrac")
        >>> features = gs.Features.of("train.gradstore", "retrac")
        >>> sources = gs.Sources(train="my_images", queries="asked_images")
        >>> gs.rerank(answer, features, 1, sources)
        Answer('retrac', queries=3, k=1, store='train.gradstore')
    """
    from gradstore.collect.unprojected import Unprojected

    sources = sources or Sources()
    found = answer.proponents.samples.shape[1]
    if not 1 <= k <= found:
        raise QueryError(f"k is {k}, but {found} candidates of each side were found.")
    _require_rows(answer.measure)
    rows = np.concatenate([side.samples for side in answer.sides.values()], axis=1)
    candidates = np.unique(rows)
    queries, slots = answer.queries, features.slots or 1
    memory = options.setdefault("memory", 4.0)
    trained = Unprojected(
        answer.store, candidates, sources.train, checkpoints=sources.checkpoints, **options
    )
    options.setdefault("metric", answer.store)  # which holds the fits, also for the queries
    place = np.searchsorted(candidates, rows)
    parts = np.zeros((*rows.shape, len(features.etas)), np.float32)
    length = max(1, Recorded.of(answer.store).model.num_parameters)
    step = max(1, int(_HELD * memory * 2**30) // (_FLOAT * length * slots))
    for start in range(0, len(queries), step):
        own = queries.part(start, start + step)
        used = np.unique(own.samples)
        asked = Unprojected(
            queries.store, used, sources.queries, checkpoints=sources.checkpoints, **options
        )
        for checkpoint in features.checkpoints:
            shares = _shares(queries.store, features, checkpoint, used)
            sums = asked.sums(checkpoint, _coefficients(own, used, shares, features.slots))
            products = trained.products(checkpoint, sums)
            weights = _shares(answer.store, features, checkpoint, candidates)
            scores = products.reshape(len(own), slots, *weights.shape) * weights
            if features.slots is None:
                total = scores.sum(axis=(1, 3))
            else:  # each slot is matched with the same slot of the query
                total = np.einsum("qtnt->qn", scores)
            here = slice(start, start + len(own))
            parts[here, :, checkpoint] = np.take_along_axis(total, place[here], axis=1)
    return _ranked(answer, rows, parts, k)


def require_rankable(measures: Sequence[str], store: Store) -> None:
    """Raise `ConfigError` unless the store records its dataset and all measures weight rows."""
    for name in measures:
        _require_rows(name)
    for part in store.parts:
        recorded_dataset(store, part.spec)


def _require_rows(measure: str) -> None:
    if not is_of_rows(measure_of(measure)):
        raise ConfigError(
            f"{measure} transforms samples in the projected space and has no true influence to "
            "rank by. Use a measure of rows, such as tracin or retrac."
        )


def _shares(
    store: Store, features: Features, checkpoint: int, samples: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Factor of each full gradient in a feature, `[samples, slots]`: its row's weight / norm."""
    columns = store.columns(("norm", "loss", "timestep"), checkpoint, samples)
    norm = columns["norm"].astype(np.float64)
    weights = features.weights(
        store, checkpoint, Rows(np.empty((*norm.shape, 0), np.float32), **columns)
    )
    return np.divide(weights, norm, out=np.zeros(norm.shape), where=norm > 0)


def _coefficients(
    queries: Queries, used: NDArray[np.int64], shares: NDArray[np.float64], matched: int | None
) -> NDArray[np.float32]:
    """Factor of each gradient in each vector, `[vectors, samples, slots]`."""
    mixed = np.zeros((len(queries), len(used)))
    owner = np.repeat(np.arange(len(queries)), np.diff(queries.starts))
    np.add.at(mixed, (owner, np.searchsorted(used, queries.samples)), queries.weights)
    if matched is None:
        return np.asarray(mixed[:, :, None] * shares, np.float32)
    each = np.eye(matched)[None, :, None, :] * (mixed[:, None, :, None] * shares)
    return np.asarray(each.reshape(len(queries) * matched, *shares.shape), np.float32)


def _ranked(answer: Answer, rows: NDArray[np.int64], parts: NDArray[np.float32], k: int) -> Answer:
    """Replace the sides of an answer by the best candidates by the sums of their parts."""
    scores = parts.sum(axis=2)
    sides, kept = [], []
    for sign in (1, -1):
        ranked = []
        for query in range(len(rows)):  # a sample that is on both sides is ranked once
            own, first = np.unique(rows[query], return_index=True)
            found = best(sign * scores[query, first][None], own[None], k)
            ranked.append(found)
            kept.append(first[np.searchsorted(own, found.samples[0])])
        sides.append(
            Ranking(
                np.concatenate([one.samples for one in ranked]),
                sign * np.concatenate([one.scores for one in ranked]),
            )
        )
    chosen = np.concatenate(np.split(np.array(kept), 2), axis=1)
    left = np.take_along_axis(parts, chosen[:, :, None], axis=1)
    total = left.sum(axis=2)
    return replace(
        answer,
        proponents=sides[0],
        opponents=sides[1],
        explained=Explanation(
            parts=left,
            projection_error=np.zeros_like(total),
            # Other noises would move a true score as they move its projection.
            query_error=np.take_along_axis(answer.explained.query_error, chosen, axis=1),
            training_error=np.take_along_axis(answer.explained.training_error, chosen, axis=1),
            z=np.where(total == 0, 0, np.copysign(np.inf, total)).astype(np.float32),
            swings=np.take_along_axis(answer.explained.swings, chosen[:, :, None, None], axis=1),
        ),
    )
