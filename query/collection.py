"""Collection of the rows of queries."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gradstore.collect.provenance import recorded_gradients
from gradstore.collect.recorded import Recorded
from gradstore.flags.dataset import DatasetSpec
from gradstore.flags.question import QueryEvents
from gradstore.store.opening import as_store
from indexer.feature import checked_etas
from query.question import PROMPTED
from query.results.pictures import pictures_of
from query.results.writing import written

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gradstore.collect import CheckpointCache, Loader, Objective, Projector
    from gradstore.flags.query import QueryConfig
    from gradstore.store.format.spec import EventSpec, ProjectorSpec
    from gradstore.store.opening import StoreLike
    from gradstore.store.reader import Store
    from query.question import Question
    from query.results.pictures import Pictures


def collect_queries(
    store: StoreLike,
    dataset: Any,
    path: str | Path,
    *,
    events: EventSpec | None = None,
    etas: Sequence[float] | None = None,
    checkpoints: Sequence[str | Path] | Loader | CheckpointCache | None = None,
    base: str | None = None,
    objective: Objective | None = None,
    projector: ProjectorSpec | Projector | str | None = None,
    **options: Any,
) -> Store:
    """Compute the rows of queries: a store like the training store, with planned events.

    Args:
        store: the training store that will be searched.
        dataset: the queries; anything that `gradstore.collect.collect` accepts.
        path: path of the new query store.
        events: timesteps and noises; by default those of `gradstore query`, 6 timesteps below 0.6
            of the scheduler's with 2 noises each.
        etas: checkpoint weights of the search; by default the store's. At a checkpoint of weight 0,
            no gradient is computed: the query store has no rows of it until the same call with
            other weights collects them.
        checkpoints: the store's checkpoints, if they moved; their loader; or
            `gradstore.collect.CheckpointCache`, which keeps the models in memory between calls.
        base: the base of the store's checkpoints, if it moved.
        objective: the store's objective, if it was not built into gradstore.
        projector: the store's projector, if it was not built into gradstore; or the object that
            made the store, which may still hold its matrices.
        options: further options of `gradstore.collect.collect`.

    Raises:
        GradstoreError: if the inputs do not match. A different fingerprint raises before any work.

    Examples:
        >>> import gradstore as gs
        >>> gs.collect_queries("train.gradstore", "asked_images", "queries.gradstore")
        Store('queries.gradstore', checkpoints=2, samples=3, slots=6, dim=64)
    """
    store = as_store(store)
    from gradstore.collect import CheckpointCache, InProcess, SideBySide, collect, recorded_loader

    # Queries are collected in this process, even if RANK is set for collecting. Threads are used
    # only if all models are in memory anyway.
    kept = checkpoints if isinstance(checkpoints, CheckpointCache) else None
    options.setdefault("executor", SideBySide() if kept else InProcess())
    options.setdefault("gradients", recorded_gradients(store))
    recorded = Recorded.of(store)
    weights = checked_etas(store, etas)
    return collect(
        dataset,
        kept or recorded_loader(store, checkpoints, base),
        path,
        objective=objective or recorded.objective.spec(),
        events=events or QueryEvents().events(),
        projector=projector or recorded.projector_spec(),
        etas=store.etas,
        like=store,
        only=[place for place, weight in enumerate(weights) if weight > 0],
        **options,
    )


def collected(question: Question, out: Path) -> tuple[Store, Pictures | None]:
    """Return the query store of a question, collected if missing, and the queries' images.

    Args:
        question: the question.
        out: the results folder.

    Raises:
        GradstoreError: if the inputs do not match.
    """
    from gradstore.collect import Samples
    from gradstore.collect.data.encoding import as_collected

    config = question.config
    if question.asked is not None:
        return question.asked, pictures_of(question.asked, config.images)
    spec: DatasetSpec = config
    if not config.dataset:
        spec = _generated(config, question.store, out / "generated")
    images = Samples.from_spec(spec)
    rows = collect_queries(
        question.store,
        images,
        out / "queries.gradstore",
        events=config.events(),
        etas=question.etas,
        checkpoints=config.checkpoints,
        base=config.base,
        batch_size=config.batch_size,
        memory=config.memory,
        device=config.device,
        config=spec.recorded(),
    )
    return rows, as_collected(images, rows.spec.identity)


def _generated(config: QueryConfig, store: Store, folder: Path) -> DatasetSpec:
    """Generate images into a folder, so that the query store's images can be shown later."""
    from gradstore.collect import generate, recorded_loader

    if not folder.exists():
        loader = recorded_loader(store, config.checkpoints, config.base)
        count = config.generate or 1
        prompts: list[str | None] = [*config.prompt] or [None]
        made = [
            (prompt, config.seed + number, image)
            for prompt in prompts
            for number, image in enumerate(
                generate(loader, count, prompt=prompt, seed=config.seed, device=config.device)
            )
        ]
        with written(folder) as writing:
            writing.mkdir()
            lines = []
            for number, (prompt, seed, image) in enumerate(made):
                name = f"generated-{number:04d}.png"
                image.save(writing / name)
                lines.append(json.dumps({"file_name": name, "text": prompt, "seed": seed}) + "\n")
            if config.prompt:
                (writing / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    kept = list(PROMPTED) if config.prompt else []
    return DatasetSpec(dataset=str(folder.resolve()), metadata_columns=kept)
