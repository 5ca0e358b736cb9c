"""Collects stores of rows from samples and checkpoints."""

from __future__ import annotations

import logging
from threading import local
from typing import TYPE_CHECKING, Any, Unpack

import torch

from gradstore.collect.data.samples import Samples
from gradstore.collect.models.loaders import loader_of
from gradstore.collect.pipeline.allocator import kept_memory
from gradstore.collect.pipeline.claims import Claims
from gradstore.collect.pipeline.estimate import Estimate, estimate
from gradstore.collect.pipeline.executors import (
    Executor,
    InProcess,
    Shuffled,
    SideBySide,
    Task,
    from_environment,
)
from gradstore.collect.pipeline.prepare import prepare
from gradstore.progress import progress, quietly
from gradstore.store.format.spec import (
    EventSpec,
    GradientSpec,
    MetricSpec,
    ModelSpec,
    ObjectiveSpec,
    ProjectorSpec,
)
from gradstore.store.objects.local import LocalObjects
from gradstore.store.opening import open_store
from gradstore.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from gradstore.collect.pipeline.job import Job
    from gradstore.collect.pipeline.options import (
        Checkpoints,
        CollectOptions,
        Destination,
        Projected,
    )
    from gradstore.collect.projectors import Projector
    from gradstore.flags.collect import CollectConfig
    from gradstore.store.part import Part
    from gradstore.store.reader import Store

_log = logging.getLogger("gradstore")


def collect(
    dataset: Any,
    checkpoints: Checkpoints,
    store: str | Path,
    *,
    projector: ProjectorSpec | Projector | str | None = None,
    executor: Executor | None = None,
    **options: Unpack[CollectOptions],
) -> Store:
    """Compute, project and store the gradient of every sample at every checkpoint.

    If interrupted, it resumes after the sealed shards when run again with the same arguments.

    Args:
        dataset: `Samples`, a `datasets.Dataset`, a torch dataset, or a sequence.
        checkpoints: diffusers folders in training order, or one folder that contains them; a
            loader, `DiffusersFolders`, `Adapters` or `Module`; or `CheckpointCache`, whose models
            stay in memory for the next call.
        store: the store to make or resume: a folder, or a URL such as `s3://…`.
        projector: maps gradients to directions; by default TRAK's, with proj_dim 4,096.
        executor: assigns tasks to processes; by default `Claims`, or `Shuffled` under a URL: any
            number of processes may collect one store at once. Ranks (see `from_environment`)
            run their own share first.
        options: see `CollectOptions`.

    Returns:
        The store. It is complete unless other ranks still work on it; a warning then says so.

    Raises:
        GradstoreError: if anything does not fit; sealed shards stay.

    Examples:
        >>> import gradstore as gs
        >>> gs.collect("my_images", "run/checkpoints", "mine.gradstore", projector="sjlt")
        Store('mine.gradstore', checkpoints=2, samples=7, slots=10, dim=4096)
    """
    return collect_each(
        dataset, checkpoints, {str(store): projector}, executor=executor, **options
    )[0]


def collect_each(
    dataset: Any,
    checkpoints: Checkpoints,
    stores: Mapping[str, Projected] | Mapping[Path, Projected],
    *,
    executor: Executor | None = None,
    **options: Unpack[CollectOptions],
) -> list[Store]:
    """`collect` into several stores, each with its own projector, in one pass over the gradients.

    Args:
        dataset: as in `collect`.
        checkpoints: as in `collect`.
        stores: location of each store, and the projector of its directions.
        executor: as in `collect`.
        options: see `CollectOptions`.

    Returns:
        The stores, in the order given.
    """
    job = prepare(dataset, checkpoints, stores, **options)
    return [open_store(part.objects) for part in run(job, executor)]


def plan(
    dataset: Any,
    checkpoints: Checkpoints,
    store: str | Path,
    *,
    projector: ProjectorSpec | Projector | str | None = None,
    **options: Unpack[CollectOptions],
) -> Estimate:
    """Estimate the cost of `collect` with the same arguments from one measured batch.

    Raises:
        GradstoreError: as raised by `collect` before it writes anything.

    Examples:
        >>> import gradstore as gs
        >>> cost = gs.plan("my_images", "run/checkpoints", "mine.gradstore", projector="sjlt")
        >>> cost.samples, cost.checkpoints, cost.rows
        (7, 2, 140)
    """
    job = prepare(dataset, checkpoints, {str(store): projector}, **options)
    return _foretold(job)


def collect_config(config: CollectConfig, *, executor: Executor | None = None) -> Store:
    """`collect` with a `CollectConfig`, which the store records."""
    return open_store(run(prepare_config(config), executor)[0].objects)


def plan_config(config: CollectConfig) -> Estimate:
    """`plan` with a `CollectConfig`."""
    return _foretold(prepare_config(config))


def _foretold(job: Job) -> Estimate:
    with quietly(job.quiet), kept_memory():
        return estimate(job, alternatives=True)


def prepare_config(
    config: CollectConfig, *, samples: Samples | None = None, into: Destination | None = None
) -> Job:
    """`prepare` with a `CollectConfig`.

    Args:
        config: the configuration.
        samples: its dataset, if already loaded.
        into: the part to fill; by default the first part of a new store.
    """
    unused = {"timesteps", "draws", "timesteps_below", "event_seed"} & config.model_fields_set
    if config.events == "replayed" and unused:
        _log.warning("replayed events are as recorded: %s ignored", ", ".join(sorted(unused)))

    def part(spec: Any) -> Any:
        return spec.model_validate(config.model_dump(include=set(spec.model_fields)))

    return prepare(
        samples or Samples.from_spec(config),
        loader_of(config.checkpoints, part(ModelSpec)),
        {config.store: part(ProjectorSpec)},
        into=into,
        objective=part(ObjectiveSpec),
        events=part(EventSpec),
        gradients=part(GradientSpec),
        metric=part(MetricSpec),
        etas=config.etas,
        dtype=config.dtype,
        batch_size=config.batch_size,
        memory=config.memory,
        shard_samples=config.shard_samples,
        device=config.device,
        engine=config.engine,
        config=config.recorded(),
    )


@torch.inference_mode(mode=False)  # the caller may be in inference mode
@torch.enable_grad()
def run(job: Job, executor: Executor | None = None) -> list[Part]:
    """Run a job and return the parts of stores that it fills.

    All their shards are sealed, except those that other ranks hold; a warning then says so.
    """
    with quietly(job.quiet), kept_memory():
        return _run(job, executor)


def _run(job: Job, executor: Executor | None) -> list[Part]:
    parts = job.open()
    numbers = job.numbers

    def done(task: Task) -> bool:
        return all(part.has_seal(numbers[task.checkpoint], task.shard) for part in parts)

    executor = executor or _shared(parts, done)
    if isinstance(executor, SideBySide):
        apart = job.side_by_side()
        job, executor = (apart, executor) if apart is not None else (job, InProcess())
    missing = {
        Task(place, shard)
        for part in parts
        for place, number in enumerate(numbers)
        for shard in part.missing(number)
    }
    tasks = [task for task in executor.share(job.tasks()) if task in missing]
    if tasks:
        bill = estimate(job, tasks=tasks)
        _log.info("%s", bill.line())
        if isinstance(executor, Claims):
            executor.expect(bill.seconds / len(tasks))
    spans = [parts[0].layout.span(task.shard) for task in tasks]
    total = sum(stop - start for start, stop in spans) * job.plan.slots
    own = local()  # one worker per thread: each holds one checkpoint

    with progress(total, f"collecting {one_line(job.targets[0].location)}", "rows") as bar:

        def work(task: Task) -> None:
            # Another process may have sealed it since; writing it again would briefly unseal it.
            if not done(task):
                if not hasattr(own, "worker"):
                    own.worker = job.worker(parts, bar)
                own.worker(task)

        executor.run(tasks, work)
    if not isinstance(executor, InProcess) or len(tasks) < len(missing):  # else all are done
        for part in parts:
            left = sum(len(part.missing(numbers[place])) for place in job.places)
            if left:
                _log.warning(
                    "%s: %d of %d shards are not done. Other processes hold them, or ended early. "
                    "When all have ended, run the same command again to collect the rest.",
                    part.location,
                    left,
                    len(job.tasks()),
                )
    return parts


def _shared(parts: Sequence[Part], done: Callable[[Task], bool]) -> Executor:
    """Executor for any number of processes; if all stores are folders, no task runs twice."""
    folders, ranks = [], from_environment()
    for part in parts:
        if not isinstance(part.objects, LocalObjects):
            return Shuffled(ranks)
        root = part.objects.root
        folders.append(root.with_name(f".{root.name}{part.spec.path.replace('/', '-')}.claims"))
    return Claims(folders, done, ranks)
