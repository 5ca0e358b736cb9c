"""Collects into an existing store: more samples, another checkpoint, damaged shards."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any, Unpack

from gradstore.collect.data.samples import Samples
from gradstore.collect.models.cache import recorded_loader
from gradstore.collect.models.loaders import loader_of
from gradstore.collect.models.protocol import Loader
from gradstore.collect.pipeline.executors import InProcess, Task
from gradstore.collect.pipeline.options import CollectOptions, Destination
from gradstore.collect.pipeline.prepare import prepare
from gradstore.collect.pipeline.run import prepare_config, run
from gradstore.collect.provenance import (
    Provenance,
    followed_models,
    recorded_config,
    recorded_options,
)
from gradstore.collect.recorded import Recorded
from gradstore.errors import ConfigError, StoreError
from gradstore.store.changes.append import add_parts
from gradstore.store.changes.checkpoints import begin_checkpoint, commit_checkpoint, next_number
from gradstore.store.format.fingerprint import with_checkpoint
from gradstore.store.opening import as_store, open_store
from gradstore.store.verify import unseal_unfit
from gradstore.store.writer import unseal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gradstore.collect.pipeline.executors import Executor
    from gradstore.collect.pipeline.job import Job
    from gradstore.collect.projectors import Projector
    from gradstore.flags.dataset import DatasetSpec
    from gradstore.store.format.spec import PartSpec, ProjectorSpec
    from gradstore.store.opening import StoreLike
    from gradstore.store.reader import Store
    from gradstore.store.verify import ShardReport


def append(
    dataset: Any,
    store: StoreLike,
    *,
    checkpoints: Sequence[str | Path] | Loader | None = None,
    projector: ProjectorSpec | Projector | str | None = None,
    executor: Executor | None = None,
    **options: Unpack[CollectOptions],
) -> Store:
    """Collect further samples into a store, with the settings of its existing samples.

    The new samples belong to the store once the last of them is sealed. An interrupted call
    resumes when it is run again.

    Args:
        dataset: the new samples; anything that `collect` accepts.
        store: a complete store.
        checkpoints: the store's checkpoints, if they moved, or their loader.
        projector: the store's projector, if it is not one of gradstore's own.
        executor: as in `collect`.
        options: see `CollectOptions`; settings that identify rows must match the store.

    Returns:
        The updated store.

    Raises:
        GradstoreError: if anything does not fit, or the store already has one of the samples.

    Examples:
        >>> import gradstore as gs
        >>> store = gs.append("more_images", "train.gradstore")
        >>> len(store), store.manifest.ids[7:]
        (9, ['cat/8.png', 'dog/7.png'])
    """
    store = as_store(store)
    store = open_store(store.objects)
    store.require_complete()
    made_alike = recorded_options(store)
    own = made_alike.pop("projector")
    job = prepare(
        dataset,
        recorded_loader(store, checkpoints),
        {store.location: projector or own},
        into=Destination.new_part(),
        **{**made_alike, **options},
    )
    return _append(store, job, executor)[0]


def append_config(
    store: Store, dataset: DatasetSpec, executor: Executor | None = None, **given: Any
) -> tuple[Store, bool]:
    """`append` the dataset of a specification, with the configuration that made the store.

    Args:
        store: the store.
        dataset: the new samples.
        executor: as in `collect`.
        given: further settings of `CollectConfig`.

    Returns:
        The updated store, and whether the samples belong to it. They do once all are sealed;
        other ranks may still hold some.
    """
    config = recorded_config(store, store.spec.parts[0], dataset=dataset, **given)
    return _append(store, prepare_config(config, into=Destination.new_part()), executor)


def _append(store: Store, job: Job, executor: Executor | None) -> tuple[Store, bool]:
    part = run(job, executor)[0]
    if any(part.missing(number) for number in store.numbers):
        return open_store(store.objects), False  # the rank that seals the last shard adds it
    return add_parts(store, [part]), True


def add_checkpoint(
    store: StoreLike,
    checkpoint: str | Path | Loader,
    *,
    eta: float | None = None,
    datasets: Sequence[Any] | None = None,
    projector: ProjectorSpec | Projector | str | None = None,
    **options: Unpack[CollectOptions],
) -> Store:
    """Collect every sample of a store at one more, later checkpoint.

    The checkpoint belongs to the store once its last row is sealed.

    Args:
        store: a complete store.
        checkpoint: the checkpoint, trained further than those of the store; or a loader of it.
        eta: its weight η; by default as recorded, else 1.
        datasets: the dataset of each part of the store; by default as recorded in the store.
        projector: the store's projector, if it is not one of gradstore's own.
        options: see `CollectOptions`.

    Returns:
        The updated store, with a new fingerprint.

    Raises:
        GradstoreError: if anything does not fit.

    Examples:
        >>> import gradstore as gs
        >>> gs.add_checkpoint("train.gradstore", "run/later/epoch-03", datasets=["my_images"])
        Store('train.gradstore', checkpoints=3, samples=7, slots=10, dim=64)
    """
    if eta is not None and not 0 <= eta < inf:
        raise ConfigError(f"--eta is {eta:g}; a weight is a number from 0 on.")
    store = as_store(store)
    store = open_store(store.objects)
    store.require_complete()
    if isinstance(checkpoint, Loader):
        loader = checkpoint
    else:
        loader = loader_of([checkpoint], followed_models(store), exact=True)
    (folder,) = loader.folders
    weights = loader.load(folder).weights_digest()
    if weights in [one.weights for one in Recorded.of(store).checkpoints]:
        raise StoreError(f"{store.location} already has checkpoint {folder}")
    number = next_number(store, weights)
    made_alike: dict[str, Any] = {**recorded_options(store), "etas": None, **options}
    own = made_alike.pop("projector")
    jobs = [
        prepare(
            _restricted(given, part.spec, store),
            loader,
            {store.location: projector or own},
            into=Destination.existing_part(part.spec, number),
            **made_alike,
        )
        for part, given in zip(store.parts, datasets or [None] * len(store.parts), strict=True)
    ]
    found = jobs[0].targets[0].spec
    spec = found.checkpoints[0]
    last = store.spec.checkpoints[-1].learning_rate_sum
    if eta is not None:
        spec = spec.model_copy(update={"eta": eta, "learning_rate_sum": None})
    elif spec.learning_rate_sum is not None and last is not None:
        if spec.learning_rate_sum <= last:
            raise ConfigError(
                f"checkpoint {folder} was not trained further than those of "
                f"{store.location}. Give its weight with --eta."
            )
        spec = spec.model_copy(update={"eta": spec.learning_rate_sum - last})
    elif spec.learning_rate_sum is not None or last is not None:
        raise ConfigError(
            f"the weight of {folder} is unknown, because not all checkpoints record their "
            "learning rates. Give it with --eta."
        )
    begin_checkpoint(store, number, weights)
    metric = jobs[0].metric  # fitted to samples of the first part
    if metric is not None:
        jobs = [replace(job, metric=metric) for job in jobs]
        jobs[0].load(0)
        spec = spec.model_copy(update={"metric": metric.name(number)})
    parts = []
    fits = {number: metric.fits[number]} if metric is not None else {}
    for job in jobs:
        for part in job.open():
            part.fits |= fits
            unseal_unfit(part, number)
        parts += run(job, InProcess())
    identity = with_checkpoint(store.spec.identity, found.identity)
    return commit_checkpoint(store, parts, spec, identity)


def repair(
    store: StoreLike,
    reports: Sequence[ShardReport],
    *,
    datasets: Sequence[Any] | None = None,
    projector: ProjectorSpec | Projector | str | None = None,
    **options: Unpack[CollectOptions],
) -> None:
    """Collect only the damaged shards of a store again.

    Args:
        store: the store.
        reports: the shards; their seals are removed once everything is ready.
        datasets: the dataset of each part of the store; by default as recorded in the store.
        projector: the store's projector, if it is not one of gradstore's own.
        options: see `CollectOptions`; used only if `datasets` is given.

    Raises:
        ConfigError: if no datasets are given and the store, made from Python, records none.
        GradstoreError: as raised by `collect`.

    Examples:
        >>> import gradstore as gs
        >>> store = gs.open_store("damaged.gradstore")
        >>> damaged = [report for report in gs.verify(store) if report.problem]
        >>> gs.repair(store, damaged, datasets=["my_images"])
        >>> len(damaged), any(report.problem for report in gs.verify(store))
        (1, False)
    """
    store = as_store(store)
    given = datasets or [None] * len(store.parts)
    for part, dataset in zip(store.parts, given, strict=True):
        mine = [report for report in reports if report.part.spec.path == part.spec.path]
        if not mine:
            continue
        samples, into = _restricted(dataset, part.spec, store), Destination.existing_part(part.spec)
        if dataset is None:
            job = prepare_config(recorded_config(store, part.spec), samples=samples, into=into)
        else:
            made_alike = recorded_options(store)
            own = made_alike.pop("projector")
            job = prepare(
                samples,
                recorded_loader(store),
                {store.location: projector or own},
                into=into,
                **{**made_alike, **options},
            )
        for report in mine:
            unseal(part, report.checkpoint, report.shard)
        run(job, _Only([(store.numbers.index(one.checkpoint), one.shard) for one in mine]))


class _Only(InProcess):
    """Runs only some tasks, in this process."""

    def __init__(self, tasks: Sequence[tuple[int, int]]) -> None:
        self._tasks = set(tasks)

    def share(self, tasks: Sequence[Task]) -> Sequence[Task]:
        return [task for task in tasks if task in self._tasks]


def _restricted(dataset: Any, part: PartSpec, store: Store) -> Samples:
    """Select a part's samples from its dataset; vacuum may have removed others."""
    if dataset is None:
        samples = Samples.from_spec(recorded_config(store, part))
    else:
        samples = Samples.of(dataset).read_as(Provenance.of(part).reading)
    own = next(one for one in store.parts if one.spec.path == part.path)
    return samples.only(own.manifest.ids)
