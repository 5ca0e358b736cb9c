"""Collecting into a store that stands: more samples, another checkpoint, damaged shards again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from pydantic import ValidationError

from gradstore.changes import (
    add_parts,
    begin_checkpoint,
    commit_checkpoint,
    next_number,
)
from gradstore.collect import checkpoints as ckpt
from gradstore.collect.executor import InProcess, Task
from gradstore.collect.job import CollectOptions, Into, Job, prepare
from gradstore.collect.run import prepare_config, run
from gradstore.collect.samples import Samples
from gradstore.config import CollectConfig
from gradstore.errors import ConfigError, StoreError
from gradstore.reader import Store, open_store
from gradstore.recorded import require_recorded
from gradstore.spec import EventSpec, GradientSpec, ProjectorSpec
from gradstore.verify import unseal_unfit
from gradstore.writer import unseal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gradstore.collect.executor import Executor
    from gradstore.collect.projectors import Projector
    from gradstore.config import DatasetSpec
    from gradstore.spec import Identity, PartSpec
    from gradstore.verify import ShardReport


def append(
    dataset: Any,
    store: Store,
    *,
    checkpoints: Sequence[str | Path] | None = None,
    projector: Projector | None = None,
    executor: Executor | None = None,
    **options: Unpack[CollectOptions],
) -> Store:
    """Collect further samples into a store, just as those that it holds were collected.

    The new samples belong to the store when the last of them is sealed; killed before, run again,
    it goes on.

    Args:
        dataset: the new samples; anything that `collect` takes.
        store: a complete store.
        checkpoints: the store's checkpoints, if they moved.
        projector: the store's projector, if it was not one of gradstore's own.
        executor: as in `collect`.
        options: see `CollectOptions`; what identifies rows is as in the store.

    Returns:
        The store as it is now.

    Raises:
        GradstoreError: if anything does not fit, or the store has one of the samples already.
    """
    store = open_store(store.objects)
    store.require_complete()
    made_alike = like(store)
    job = prepare(
        dataset,
        checkpoints or _folders(store),
        {store.location: projector or made_alike.pop("projector")},
        into=Into(append=True),
        **{**made_alike, **options},
    )
    return _append(store, job, executor)[0]


def append_config(
    store: Store, dataset: DatasetSpec, executor: Executor | None = None, **given: Any
) -> tuple[Store, bool]:
    """`append` of a dataset that a specification names, by the configuration that made the store.

    Args:
        store: the store.
        dataset: the new samples.
        executor: as in `collect`.
        given: further settings of `CollectConfig`.

    Returns:
        The store as it is now, and whether the samples belong to it. They do when all are done,
        some of which other ranks may hold.
    """
    config = recorded(store, store.spec.parts[0], dataset=dataset, **given)
    return _append(store, prepare_config(config, into=Into(append=True)), executor)


def _append(store: Store, job: Job, executor: Executor | None) -> tuple[Store, bool]:
    part = run(job, executor)[0]
    if any(part.missing(number) for number in store.numbers):
        return open_store(store.objects), False  # the rank that does the last of it adds it
    return add_parts(store, [part]), True


def add_checkpoint(
    store: Store,
    checkpoint: str | Path,
    *,
    eta: float | None = None,
    datasets: Sequence[Any] | None = None,
    projector: Projector | None = None,
    **options: Unpack[CollectOptions],
) -> Store:
    """Collect every sample of a store at one checkpoint more, the latest of them.

    It belongs to the store when its last row is sealed.

    Args:
        store: a complete store.
        checkpoint: the checkpoint, trained further than those that the store has.
        eta: its weight η; by default as recorded, else 1.
        datasets: the dataset of each part of the store; by default as the store records.
        projector: the store's projector, if it was not one of gradstore's own.
        options: see `CollectOptions`.

    Returns:
        The store as it is now, with another fingerprint.

    Raises:
        GradstoreError: if anything does not fit.
    """
    store = open_store(store.objects)
    store.require_complete()
    (folder,) = ckpt.find_checkpoints([checkpoint])
    weights = ckpt.load(folder).weights_digest()
    if weights in [one["weights"] for one in store.spec.identity["checkpoints"]]:  # type: ignore[index,call-overload,union-attr]
        raise StoreError(f"{store.location} has checkpoint {checkpoint} already")
    number = next_number(store, weights)
    made_alike: dict[str, Any] = {**like(store), "etas": None, **options}
    own = made_alike.pop("projector")
    jobs = [
        prepare(
            _restricted(given, part.spec, store),
            [checkpoint],
            {store.location: projector or own},
            into=Into(part=part.spec, number=number),
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
                f"checkpoint {checkpoint} was not trained further than those that "
                f"{store.location} has. Give its weight with --eta."
            )
        spec = spec.model_copy(update={"eta": spec.learning_rate_sum - last})
    elif spec.learning_rate_sum is not None or last is not None:
        raise ConfigError(
            f"the weight of {checkpoint} cannot be told, for not all checkpoints record their "
            "learning rates. Give it with --eta."
        )
    begin_checkpoint(store, number, weights)
    parts = []
    for job in jobs:
        for part in job.open():
            unseal_unfit(part, number)
        parts += run(job, InProcess())
    identity = _with_checkpoint(store.spec.identity, found.identity)
    return commit_checkpoint(store, parts, spec, identity)


def _with_checkpoint(old: Identity, new: Identity) -> Identity:
    """The identity of a store of `old`'s checkpoints and then `new`'s only one."""
    identity: dict[str, Any] = dict(old)
    more: dict[str, Any] = dict(new)
    identity["checkpoints"] = [*identity["checkpoints"], *more["checkpoints"]]
    if "recorded" in identity["events"]:
        both = [*identity["events"]["recorded"], *more["events"]["recorded"]]
        identity["events"] = {**identity["events"], "recorded": both}
    return identity


def repair(
    store: Store,
    reports: Sequence[ShardReport],
    *,
    datasets: Sequence[Any] | None = None,
    projector: Projector | None = None,
    **options: Unpack[CollectOptions],
) -> None:
    """Collect damaged shards of a store again, and no others.

    Args:
        store: the store.
        reports: the shards; their seals are removed when everything is ready to begin.
        datasets: the dataset of each part of the store; by default as the store records.
        projector: the store's projector, if it was not one of gradstore's own.
        options: see `CollectOptions`; only where `datasets` are given.

    Raises:
        ConfigError: if no datasets are given and the store records none, for Python made it.
        GradstoreError: what `collect` raises.
    """
    given = datasets or [None] * len(store.parts)
    for part, dataset in zip(store.parts, given, strict=True):
        mine = [report for report in reports if report.part.spec.path == part.spec.path]
        if not mine:
            continue
        samples, into = _restricted(dataset, part.spec, store), Into(part=part.spec)
        if dataset is None:
            job = prepare_config(recorded(store, part.spec), samples=samples, into=into)
        else:
            made_alike = like(store)
            own = made_alike.pop("projector")
            job = prepare(
                samples,
                _folders(store),
                {store.location: projector or own},
                into=into,
                **{**made_alike, **options},
            )
        for report in mine:
            unseal(part, report.checkpoint, report.shard)
        run(job, _Only([(store.numbers.index(one.checkpoint), one.shard) for one in mine]))


class _Only(InProcess):
    """Some tasks, here."""

    def __init__(self, tasks: Sequence[tuple[int, int]]) -> None:
        self._tasks = set(tasks)

    def share(self, tasks: Sequence[Task]) -> Sequence[Task]:
        return [task for task in tasks if task in self._tasks]


def recorded(store: Store, part: PartSpec, **changes: Any) -> CollectConfig:
    """The configuration that made a part, with the store's own place and checkpoints.

    Args:
        store: the store.
        part: the part.
        changes: settings to take instead; `dataset` may be a whole `DatasetSpec`.

    Raises:
        ConfigError: if the store does not record one, for Python made it.
    """
    require_recorded(store, [part])
    found: Any = part.made_by["config"]
    dataset = changes.pop("dataset", None)
    given = {name: value for name, value in changes.items() if value is not None}
    if dataset is not None:
        given |= {name: getattr(dataset, name) for name in type(dataset).model_fields}
    try:
        return CollectConfig.model_validate(
            {
                **found,
                "precision": "auto",  # arithmetic is chosen by what is fast here
                "autocast": "auto",
                "store": store.location,
                "checkpoints": _folders(store),
                "etas": store.etas,
                **given,
            }
        )
    except ValidationError as error:
        raise ConfigError(
            f"{store.location}: made_by.config is not what `gradstore collect` takes: "
            f"{error.errors()[0]['msg']}. Collect anew into another store."
        ) from error


def _folders(store: Store) -> list[str]:
    return [checkpoint.path for checkpoint in store.spec.checkpoints]


def _restricted(dataset: Any, part: PartSpec, store: Store) -> Samples:
    """The samples of a part out of its dataset, which may have had more before a vacuum."""
    samples = Samples.from_spec(recorded(store, part)) if dataset is None else Samples.of(dataset)
    own = next(one for one in store.parts if one.spec.path == part.path)
    return samples.only(own.manifest.ids)


def like(store: Store) -> dict[str, Any]:
    """Options of `collect` that make rows as a store's, where gradstore's own classes made it.

    Arithmetic is left to what is fast here.

    Raises:
        ConfigError: if it has a projector or events of somebody's own.
    """
    identity: dict[str, Any] = store.spec.identity
    return {
        "objective": identity["objective"].get("loss"),
        "projector": projector_spec(identity["projector"]),
        "events": _events(identity["events"]),
        "gradients": gradient_spec(store),
        "etas": store.etas,
        "dtype": store.dtype,
    }


def gradient_spec(store: Store) -> GradientSpec:
    """Which parameters a store's gradients are of. The fingerprint tells if it is not so.

    Arithmetic is not the store's: what is fast here is chosen here.
    """
    try:
        found = GradientSpec.model_validate(store.spec.parts[0].made_by.get("gradients", {}))
        return found.model_copy(update={"autocast": "auto"})
    except ValidationError as error:
        raise StoreError(
            f"{store.location}: made_by.gradients is not what `gradstore collect` writes: "
            f"{error.errors()[0]['msg']}. Pass gradients="
        ) from error


def _events(identity: dict[str, Any]) -> EventSpec | str:
    if identity["kind"] == "planned":
        return EventSpec(
            events="planned",
            timesteps=len(identity["timesteps"]),
            draws=identity["draws"],
            event_seed=identity["seed"],
        )
    if identity["kind"] == "replayed":
        return "replayed"
    raise ConfigError(f"the store's events are {identity['kind']!r}: pass them as events=")


def projector_spec(identity: dict[str, Any]) -> ProjectorSpec:
    """The specification of a projector by its identity in a store.

    Raises:
        ConfigError: if it is not gradstore's own.
    """
    if identity["name"] == "identity":
        return ProjectorSpec(projector="identity")
    if identity["name"] == "sjlt":
        return ProjectorSpec(
            projector="sjlt", proj_dim=identity["proj_dim"], proj_seed=identity["seed"]
        )
    if identity["name"] != "trak":
        raise ConfigError(
            f"the store was made with projector {identity['name']!r}, which is not gradstore's "
            "own. Pass it as projector=."
        )
    return ProjectorSpec(
        projector="trak",
        proj_dim=identity["proj_dim"],
        proj_type=identity["proj_type"],
        proj_seed=identity["seed"],
        block_size=identity["block_size"],
    )
