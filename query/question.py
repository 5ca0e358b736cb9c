"""A question: a configuration with its stores opened and all cheap checks done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gradstore.collect.models.folders import checkpoint_folders
from gradstore.collect.recorded import followed_models, recorded_folders
from gradstore.errors import QueryError
from gradstore.flags.dataset import DatasetSpec
from gradstore.flags.fast import FAST
from gradstore.store.opening import open_store
from indexer import measure_of
from indexer.exact.ranking import require_k
from indexer.feature import checked_etas
from indexer.measure import QuerySide
from query.checks import require_averaged, require_comparable
from query.filters import matching_samples
from query.queries import Queries
from query.results.folder import require_free
from query.true_influence import require_rankable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from gradstore.flags.query import QueryConfig
    from gradstore.store.reader import Store


@dataclass(frozen=True)
class Question:
    """A configuration and its opened stores.

    Attributes:
        config: the configuration.
        store: the training store.
        keep: ascending numbers of the samples to search; None for all.
        etas: checkpoint weights η_k; None for the store's.
        asked: the query store, if it already exists.
    """

    config: QueryConfig
    store: Store
    keep: NDArray[np.int64] | None
    etas: Sequence[float] | None
    asked: Store | None


def opened(config: QueryConfig) -> Question:
    """Open the stores of a question and report every cheap mistake before heavy imports.

    Raises:
        GradstoreError: if the inputs do not match.
    """
    for name in config.measures:
        measure_of(name)
    require_free(Path(config.out), config, "query.yaml")
    store = open_store(config.store, skip_unsealed=config.skip_unsealed)
    keep = matching_samples(store, where=config.where(), ids=config.ids)
    require_k(config.k, store, keep)
    etas = FAST.etas(store.etas) if config.fast else config.etas
    checked_etas(store, etas)
    store.require_complete()
    if config.matched and config.queries is None and config.timesteps != store.slots:
        raise QueryError(
            f"{store.location} has {store.slots} timesteps per sample, and the queries would have "
            f"{config.timesteps}: they cannot be matched. Use --timesteps {store.slots}, or omit "
            "--matched."
        )
    if config.rerank:
        require_rankable(config.measures, store)
    for measure in map(measure_of, config.measures):
        if isinstance(measure, QuerySide):
            require_averaged(measure, matched=config.matched)
    if config.dataset:
        config.require_there()
    if config.images is not None:
        DatasetSpec(dataset=config.images).require_there()
    if config.queries is None:
        folders = checkpoint_folders(
            config.checkpoints or recorded_folders(store),
            followed_models(store, config.base),
            exact=not config.checkpoints,
        )
        if len(folders) != store.checkpoints:
            raise QueryError(
                f"{store.location} has {store.checkpoints} checkpoints, and --checkpoints names "
                f"{len(folders)}. Name those that the store was made from."
            )
    asked = open_store(config.queries) if config.queries else None
    if asked is not None:
        require_comparable(store, asked)
        questions(asked, config.mean_by, config.minus)
    elif config.mean_by not in {None, "label", *config.metadata_columns}:
        raise QueryError(
            f"the images would have no column {config.mean_by!r} to take means by: only label and "
            "the columns named by --metadata-columns are kept."
        )
    return Question(config, store, keep, etas, asked)


def questions(store: Store, mean_by: str | None, minus: str | None) -> Queries:
    """Queries of a query store: its samples or means of them, optionally less one of them."""
    queries = Queries.of(store) if mean_by is None else Queries.means(store, mean_by)
    return queries if minus is None else queries.minus(minus)
