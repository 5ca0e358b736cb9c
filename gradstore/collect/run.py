"""Collecting: from samples and checkpoints to stores of rows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from pydantic import ValidationError

from gradstore.collect.claims import Claims
from gradstore.collect.estimate import Estimate, estimate
from gradstore.collect.executor import Executor, InProcess, Task, from_environment
from gradstore.collect.job import CollectOptions, Job, prepare
from gradstore.collect.samples import Samples
from gradstore.config import CollectConfig
from gradstore.errors import ConfigError
from gradstore.progress import progress
from gradstore.reader import Store, open_store
from gradstore.spec import EventSpec, GradientSpec, ProjectorSpec
from gradstore.writer import unseal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gradstore.collect.job import Projected
    from gradstore.collect.projectors import Projector

_log = logging.getLogger("gradstore")


def collect(
    dataset: Any,
    checkpoints: str | Path | Sequence[str | Path],
    store: str | Path,
    *,
    projector: ProjectorSpec | Projector | None = None,
    executor: Executor | None = None,
    **options: Unpack[CollectOptions],
) -> Store:
    """Compute, project and store the gradient of every sample at every checkpoint.

    Run again with the same arguments, it goes on from the shards that are sealed.

    Args:
        dataset: `Samples`, a `datasets.Dataset`, a torch dataset, or a sequence.
        checkpoints: diffusers folders in training order, or one folder that holds them.
        store: the store to make, or to go on with.
        projector: how gradients become directions; by default TRAK's, to 4,096 dimensions.
        executor: who does which task; by default what RANK and WORLD_SIZE say, else `Claims`: any
            number of processes may collect one store at once.
        options: see `CollectOptions`.

    Returns:
        The store. It is complete unless other ranks still work on it.

    Raises:
        GradstoreError: if anything does not fit; what was sealed before stays.
    """
    return collect_each(
        dataset, checkpoints, {Path(store): projector}, executor=executor, **options
    )[0]


def collect_each(
    dataset: Any,
    checkpoints: str | Path | Sequence[str | Path],
    stores: Mapping[str, Projected] | Mapping[Path, Projected],
    *,
    executor: Executor | None = None,
    **options: Unpack[CollectOptions],
) -> list[Store]:
    """`collect` into several stores, each with its own projector, by one pass over the gradients.

    Args:
        dataset: as in `collect`.
        checkpoints: as in `collect`.
        stores: where each store is or will be, and the projector of its directions.
        executor: as in `collect`.
        options: see `CollectOptions`.

    Returns:
        The stores, in the order given.
    """
    return _run(prepare(dataset, checkpoints, stores, **options), executor)


def plan(
    dataset: Any,
    checkpoints: str | Path | Sequence[str | Path],
    store: str | Path,
    *,
    projector: ProjectorSpec | Projector | None = None,
    **options: Unpack[CollectOptions],
) -> Estimate:
    """What `collect` with the same arguments would take, measured on one batch.

    Raises:
        GradstoreError: what `collect` would raise before it makes anything.
    """
    job = prepare(dataset, checkpoints, {Path(store): projector}, **options)
    return estimate(job, alternatives=True)


def collect_config(config: CollectConfig, *, executor: Executor | None = None) -> Store:
    """`collect` as a `CollectConfig` says; the configuration is recorded in the store."""
    return _run(_prepare_config(config), executor)[0]


def plan_config(config: CollectConfig) -> Estimate:
    """`plan` as a `CollectConfig` says."""
    return estimate(_prepare_config(config), alternatives=True)


def repair(store: Store, shards: Sequence[tuple[int, int]]) -> None:
    """Collect shards of a store again, as the configuration that it records says.

    Args:
        store: the store.
        shards: (checkpoint, shard) of each; their seals are removed first.

    Raises:
        ConfigError: if the store does not record a configuration, for Python made it.
        GradstoreError: what `collect` raises; seals are removed only when it could begin.
    """
    recorded = store.spec.made_by.get("config")
    if not recorded:
        raise ConfigError(
            f"{store.path} was collected from Python and does not know its dataset. Remove the "
            "damaged shards' seals with gradstore.writer.unseal(store, checkpoint, shard), and "
            "call collect() again with the arguments that made it."
        )
    try:
        folders = [checkpoint.path for checkpoint in store.spec.checkpoints]
        config = CollectConfig.model_validate(
            {**recorded, "store": str(store.path), "checkpoints": folders}
        )
    except ValidationError as error:
        raise ConfigError(
            f"{store.path}: made_by.config is not what `gradstore collect` takes: "
            f"{error.errors()[0]['msg']}. Collect anew into another store."
        ) from error
    job = _prepare_config(config)
    for checkpoint, shard in shards:
        unseal(store, checkpoint, shard)
    _run(job, _Only(shards))


class _Only(InProcess):
    """Some tasks, here."""

    def __init__(self, tasks: Sequence[tuple[int, int]]) -> None:
        self._tasks = set(tasks)

    def share(self, tasks: Sequence[Task]) -> Sequence[Task]:
        return [task for task in tasks if task in self._tasks]


def _prepare_config(config: CollectConfig) -> Job:
    unused = {"timesteps", "draws", "event_seed"} & config.model_fields_set
    if config.events == "replayed" and unused:
        _log.warning("replayed events are as recorded: %s not used", ", ".join(sorted(unused)))

    def part(spec: Any) -> Any:
        return spec.model_validate(config.model_dump(include=set(spec.model_fields)))

    return prepare(
        Samples.from_spec(config),
        config.checkpoints,
        {Path(config.store): part(ProjectorSpec)},
        objective=config.loss,
        events=part(EventSpec),
        gradients=part(GradientSpec),
        etas=config.etas,
        dtype=config.dtype,
        batch_size=config.batch_size,
        memory=config.memory,
        shard_samples=config.shard_samples,
        device=config.device,
        engine=config.engine,
        config=config.recorded(),
    )


def _run(job: Job, executor: Executor | None) -> list[Store]:
    stores = job.open()

    def done(task: Task) -> bool:
        return all(task.shard in store.sealed(task.checkpoint) for store in stores)

    executor = executor or from_environment() or Claims(stores[0].path, done)
    missing = {task for store in stores for task in store.missing()}
    tasks = [task for task in executor.share(job.tasks()) if task in missing]
    if tasks:
        _log.info("%s", estimate(job, tasks=tasks).line())
    spans = [job.targets[0].layout.span(task.shard) for task in tasks]
    total = sum(stop - start for start, stop in spans) * job.plan.slots
    worker = job.worker(stores)
    with progress(total, f"collecting {stores[0].path.name}", "rows") as worker.bar:
        executor.run(tasks, worker)
    return [open_store(store.path) for store in stores]
