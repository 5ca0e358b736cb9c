"""Collecting the rows of queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradstore.collect.recorded import Recorded, recorded_gradients
from gradstore.store.format.spec import EventSpec
from indexer.feature import checked_etas

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gradstore.collect import Checkpoints, Objective, Projector
    from gradstore.store.reader import Store


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

    # A question is asked and answered here, whatever RANK says of collecting; side by side only
    # where all models are in memory anyway.
    held = isinstance(checkpoints, Checkpoints)
    options.setdefault("executor", SideBySide() if held else InProcess())
    options.setdefault("gradients", recorded_gradients(store))
    recorded = Recorded.of(store)
    weights = checked_etas(store, etas)
    return collect(
        dataset,
        checkpoints or [checkpoint.path for checkpoint in store.spec.checkpoints],
        path,
        objective=objective or recorded.objective.loss,
        events=events or EventSpec(events="planned"),
        projector=projector or recorded.projector_spec(),
        etas=store.etas,
        like=store,
        only=[place for place, weight in enumerate(weights) if weight > 0],
        **options,
    )
