"""What is to be collected, read and checked before anything is made."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypedDict, Unpack

from gradstore import __version__
from gradstore.collect import checkpoints as ckpt
from gradstore.collect import devices, projectors
from gradstore.collect.budget import Budget
from gradstore.collect.engines.choice import ENGINES, Choice, choose
from gradstore.collect.events import EventPlan, PlannedEvents, ReplayedEvents
from gradstore.collect.executor import Task
from gradstore.collect.objective import Autocast, Compiled
from gradstore.collect.parameters import num_parameters
from gradstore.collect.samples import Samples
from gradstore.collect.survey import Survey, survey
from gradstore.collect.worker import LoadedCheckpoint, Worker, check_sample, trial
from gradstore.errors import ConfigError, EngineError, StoreError
from gradstore.fingerprint import COMPARED, fingerprint, require_same
from gradstore.layout import Layout
from gradstore.reader import Store, looks_like_store, open_store
from gradstore.spec import (
    EventSpec,
    GradientSpec,
    Identity,
    LayoutSpec,
    ProjectorSpec,
    StoreSpec,
)
from gradstore.writer import create, refuse_existing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from gradstore.collect.engines import EngineMaker
    from gradstore.collect.objective import Objective
    from gradstore.collect.projectors import Projector
    from gradstore.manifest import Manifest

    Projected: TypeAlias = ProjectorSpec | Projector | None

_log = logging.getLogger("gradstore")

# From so many events on, timing the engines pays.
_TIMED_EVENTS = 1000


class CollectOptions(TypedDict, total=False):
    """What `collect`, `collect_each` and `plan` can be told beside dataset, checkpoints and store.

    Attributes:
        objective: an objective, or the loss of `DiffusionLoss`: `l1` or `l2`. By default what the
            checkpoints recorded, else `l2`.
        events: which events become rows: `replayed` (as the training run recorded them, the
            default), `planned` (10 timesteps, one noise each), an `EventSpec`, or a plan of your
            own.
        gradients: which parameters are differentiated, and in what arithmetic.
        etas: weight η_k of each checkpoint; by default as recorded, else 1.
        scheduler: for checkpoints that hold none.
        dtype: dtype of the stored directions, `float16` (the default) or `float32`.
        batch_size: events (rows × draws) per gradient computation, at most; 32 by default.
        memory: GiB that collecting may take beside the model and the program itself; 4 by default.
        shard_samples: samples per shard.
        device: torch device; by default cuda if there is one.
        engine: `auto` (the default), `streaming`, `vmap`, `loop`, or what makes an engine from
            model and objective.
        like: a training store of which the new rows are queries; they must be comparable with
            its own, and are refused before any work if they would not be.
        config: the configuration to record in the store as provenance.
    """

    objective: Objective | str | None
    events: EventSpec | EventPlan | str
    gradients: GradientSpec | None
    etas: Sequence[float] | None
    scheduler: Any
    dtype: str
    batch_size: int
    memory: float
    shard_samples: int | None
    device: str | torch.device | None
    engine: str | EngineMaker
    like: Store | None
    config: dict[str, Any] | None


_DEFAULTS: Final[CollectOptions] = {
    "objective": None,
    "events": "replayed",
    "gradients": None,
    "etas": None,
    "scheduler": None,
    "dtype": "float16",
    "batch_size": 32,
    "memory": 4.0,
    "shard_samples": None,
    "device": None,
    "engine": "auto",
    "like": None,
    "config": None,
}


@dataclass(frozen=True)
class Target:
    """A store to fill.

    Attributes:
        path: where it is or will be.
        projector: makes its directions.
        spec: what it is.
    """

    path: Path
    projector: Projector
    spec: StoreSpec

    @property
    def layout(self) -> Layout:
        """Shapes and partition."""
        return self.spec.layout.layout()


@dataclass(frozen=True)
class Job:
    """Everything that collecting needs, checked.

    Attributes:
        samples: the samples, scanned.
        plan: their events.
        survey: the checkpoints.
        folders: where those are.
        targets: the stores to fill, all with the same shards.
        choice: the engine.
        budget: how much memory goes where.
        device: where gradients are computed.
        params: which parameters are differentiated.
        read_seconds: how long reading the dataset took.
        timed: whether there is so much to do that timing pays.
    """

    samples: Samples
    plan: EventPlan
    survey: Survey
    folders: Sequence[Path]
    targets: Sequence[Target]
    choice: Choice
    budget: Budget
    device: torch.device
    params: str | None
    read_seconds: float
    timed: bool

    @property
    def rows(self) -> int:
        """Rows of each store."""
        return len(self.samples) * self.plan.slots * len(self.folders)

    @property
    def num_parameters(self) -> int:
        """Length of a gradient."""
        return num_parameters(self.survey.model)

    def tasks(self) -> list[Task]:
        """Every shard of every checkpoint."""
        shards = self.targets[0].layout.shards
        return [Task(k, shard) for k in range(len(self.folders)) for shard in range(shards)]

    def load(self, number: int) -> LoadedCheckpoint:
        """A checkpoint, ready to give gradients. The first is in memory already."""
        model = self.survey.model
        if number > 0:
            model = ckpt.load(self.folders[number], params=self.params).model
        return LoadedCheckpoint(
            self.folders[number], model, self.survey.objective, self.choice.make, self.device
        )

    def open(self) -> list[Store]:
        """The stores, made where they are not there yet."""
        return [_open_or_create(target, self.samples.manifest) for target in self.targets]

    def worker(self, stores: Sequence[Store]) -> Worker:
        """Who does the tasks."""
        return Worker(
            [(s, target.projector) for s, target in zip(stores, self.targets, strict=True)],
            self.samples,
            self.plan,
            self.load,
            budget=self.budget,
            device=self.device,
        )


def prepare(
    dataset: Any,
    checkpoints: str | Path | Sequence[str | Path],
    stores: Mapping[str, Projected] | Mapping[Path, Projected],
    **options: Unpack[CollectOptions],
) -> Job:
    """Read and check everything; make nothing.

    Args:
        dataset: `Samples`, a `datasets.Dataset`, a torch dataset, or a sequence.
        checkpoints: diffusers folders in training order, or one folder that holds them.
        stores: where each store is or will be, and the projector of its directions.
        options: `CollectOptions`.

    Raises:
        GradstoreError: if anything does not fit.
    """
    given: CollectOptions = {**_DEFAULTS, **options}
    paths = [Path(path) for path in stores]
    for path in paths:
        if path.exists() and not looks_like_store(path):
            refuse_existing(path)
    samples = Samples.of(dataset)
    device = devices.choose(given["device"])
    folders = ckpt.find_checkpoints(checkpoints)
    gradients = given["gradients"] or GradientSpec()
    found = survey(
        folders,
        objective=given["objective"],
        scheduler=given["scheduler"],
        etas=given["etas"],
        params=gradients.params,
    )
    if gradients.autocast != "float32":
        found = replace(found, objective=Autocast(found.objective))
    if gradients.compile:
        found = replace(found, objective=Compiled(found.objective))
    role: Literal["train", "query"] = "train" if given["like"] is None else "query"
    plan = _event_plan(given["events"], folders, found.objective, role)
    plan.require(samples.ids)
    first = samples[0]
    start = perf_counter()
    samples.scan(lambda sample: check_sample(sample, found.model, first))
    read_seconds = perf_counter() - start
    projected = {
        path: projectors.from_spec(one or ProjectorSpec())
        if one is None or isinstance(one, ProjectorSpec)
        else one
        for path, one in zip(paths, stores.values(), strict=True)
    }
    targets = _targets(projected, samples, plan, found, given)

    memory = int(given["memory"] * 2**30)
    model = found.model.to(device)
    draws = plan.at(0, samples.ids[:1]).key.shape[2]
    events = len(samples) * plan.slots * draws * len(folders)
    timed = events >= _TIMED_EVENTS
    most, wanted = given["batch_size"], given["engine"] or "auto"
    begun = _begun(targets[0].spec)
    if begun is not None and wanted == "auto":
        wanted, most = begun
    asked = begun is None and timed
    try:
        choice = choose(
            wanted,
            model,
            found.objective,
            trial(samples, plan, model, device, most if asked else 2),
            memory=memory // 2,
            timed=asked,
        )
    except EngineError as error:
        raise EngineError(
            f"checkpoint {folders[0]}, sample {samples.ids[0]!r} and those after it: {error}"
        ) from error
    budget = Budget.spend(
        memory,
        choice,
        choice.events if asked else most,
        [(target.projector, target.layout) for target in targets],
        draws=draws,
        num_parameters=num_parameters(model),
    )
    for target in targets:
        share = budget.projection // len(targets)
        projection = target.projector.at(0, num_parameters(model), device, share)
        if not getattr(projection, "kept", True):
            _log.warning(
                "%s: the matrix of the projection does not fit in the %.2g GiB for it, so it is "
                "drawn anew for every buffer of gradients, which is slow. Give more with --memory, "
                "or use --projector sjlt or a smaller --proj-dim; `gradstore plan` tells the cost.",
                target.path,
                share / 2**30,
            )
    if begun is None:
        made_by = {"engine": choice.name, "events": budget.events}
        targets = [
            replace(
                one,
                spec=one.spec.model_copy(update={"made_by": {**one.spec.made_by, **made_by}}),
            )
            for one in targets
        ]
    return Job(
        samples=samples,
        plan=plan,
        survey=found,
        folders=folders,
        targets=targets,
        choice=choice,
        budget=budget,
        device=device,
        params=gradients.params,
        read_seconds=read_seconds,
        timed=timed,
    )


def versions() -> dict[str, str]:
    """Versions of what makes the numbers."""
    packages = ("torch", "diffusers", "traker", "numpy", "zarr")
    return {
        "gradstore": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _event_plan(
    events: EventSpec | EventPlan | str,
    folders: Sequence[Path],
    objective: Objective,
    role: Literal["train", "query"],
) -> EventPlan:
    if isinstance(events, str):
        if events not in {"replayed", "planned"}:
            raise ConfigError(f"there are no events {events!r}; use 'replayed' or 'planned'.")
        events = EventSpec.model_validate({"events": events})
    if not isinstance(events, EventSpec):
        return events
    if events.events == "replayed":
        return ReplayedEvents(folders, objective.num_train_timesteps)
    return PlannedEvents(events, objective.num_train_timesteps, role)


def _targets(
    stores: Mapping[Path, Projector],
    samples: Samples,
    plan: EventPlan,
    found: Survey,
    given: CollectOptions,
) -> list[Target]:
    like = given["like"]
    length = num_parameters(found.model)
    widest_dim = max(projector.dim(length) for projector in stores.values())
    # One partition for all, that of the longest rows: a task fills the same shard of each store.
    widest = Layout.choose(
        len(samples), plan.slots, widest_dim, given["dtype"], given["shard_samples"]
    )
    targets = []
    for path, projector in stores.items():
        identity: Identity = {
            "model": found.architecture,
            "checkpoints": [{"weights": digest} for digest in found.weights],
            "objective": found.objective.identity(),
            "projector": projector.identity(length),
            "events": plan.identity(),
            "storage": {"dtype": given["dtype"]},
        }
        if like is not None:
            require_same(
                like.spec.identity,
                identity,
                expected_name=str(like.path),
                found_name="this query",
                sections=COMPARED,
            )
        layout = Layout.choose(
            len(samples), plan.slots, projector.dim(length), given["dtype"], widest.shard_samples
        )
        spec = StoreSpec(
            fingerprint=fingerprint(identity),
            identity=identity,
            layout=LayoutSpec.of(layout),
            checkpoints=found.checkpoints,
            made_by={
                "versions": versions(),
                "device": devices.choose(given["device"]).type,
                "gradients": (given["gradients"] or GradientSpec()).model_dump(),
                "config": given["config"] or {},
            },
        )
        if path.exists():
            store = _require_it(path, spec, samples.manifest)
            if given["shard_samples"] not in {None, store.layout.shard_samples}:
                _log.warning(
                    "%s has %s samples per shard, and keeps them; shard_samples %s is not used",
                    path,
                    store.layout.shard_samples,
                    given["shard_samples"],
                )
            spec = store.spec
        targets.append(Target(path, projector, spec))
    if len({target.layout.shard_samples for target in targets}) > 1:
        sizes = ", ".join(f"{one.path}: {one.layout.shard_samples}" for one in targets)
        raise ConfigError(
            f"these stores have shards of different sizes and cannot be filled together ({sizes} "
            "samples). Collect them one by one, or anew with the same --shard-samples."
        )
    return targets


def _begun(spec: StoreSpec) -> tuple[str, int] | None:
    """Engine and events at once that a store was begun with, if it was.

    It is finished with the same, so that its rows do not depend on when collecting was cut off.
    """
    engine, events = spec.made_by.get("engine"), spec.made_by.get("events")
    known = isinstance(engine, str) and engine in ENGINES and isinstance(events, int)
    return (engine, max(1, events)) if known else None  # type: ignore[return-value,type-var]


def _open_or_create(target: Target, manifest: Manifest) -> Store:
    """The store if it is this very one, else a new one."""
    if not target.path.exists():
        try:
            return create(target.path, target.spec, manifest)
        except StoreError:
            if not looks_like_store(target.path):  # else another rank was faster: use what it made
                raise
    return _require_it(target.path, target.spec, manifest)


def _require_it(path: Path, spec: StoreSpec, manifest: Manifest) -> Store:
    """The store at `path`, which must be the one that `spec` describes."""
    store = open_store(path, writable=True)
    require_same(
        store.spec.identity,
        spec.identity,
        expected_name=str(path),
        found_name="this configuration",
        sections=tuple(spec.identity),
        mend="restore the configuration that made the store to go on with it, or collect into "
        "another --store; nothing was changed",
    )
    store.manifest.require_same(manifest, store=str(path))
    etas = [checkpoint.eta for checkpoint in spec.checkpoints]
    if store.etas != etas:
        raise ConfigError(
            f"{path} has checkpoint weights {store.etas}, not {etas}. Weigh anew when searching "
            "(indexer.build_index(etas=...)), or collect into another --store."
        )
    return store
