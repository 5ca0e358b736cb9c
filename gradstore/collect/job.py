"""What is to be collected, read and checked before anything is made."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypedDict, Unpack

import torch

from gradstore import __version__
from gradstore.arithmetic import precision_of, product_rates
from gradstore.changes import begun_part, open_part, part_path, require_new
from gradstore.collect import checkpoints as ckpt
from gradstore.collect import devices, projectors
from gradstore.collect.budget import Budget
from gradstore.collect.engines.choice import ENGINES, Choice, choose, choose_arithmetic
from gradstore.collect.events import EventPlan, PlannedEvents, ReplayedEvents, noise_identity
from gradstore.collect.executor import Task
from gradstore.collect.objective import Autocast, Compiled, DiffusionLoss, precision
from gradstore.collect.parameters import num_parameters
from gradstore.collect.projectors.held import HeldProjector
from gradstore.collect.projectors.sjlt import SjltProjector
from gradstore.collect.projectors.trak import TrakProjection
from gradstore.collect.samples import Samples
from gradstore.collect.survey import Survey, survey
from gradstore.collect.worker import LoadedCheckpoint, Worker, check_sample, trial
from gradstore.errors import ConfigError, EngineError, StoreError
from gradstore.fingerprint import (
    COMPARED,
    fingerprint,
    only_checkpoints,
    require_same,
    row_fingerprint,
)
from gradstore.layout import Layout
from gradstore.objects import objects_at
from gradstore.part import Part
from gradstore.reader import Store, looks_like_store, open_store
from gradstore.spec import (
    EventSpec,
    GradientSpec,
    Identity,
    LayoutSpec,
    PartSpec,
    ProjectorSpec,
    StoreSpec,
)
from gradstore.writer import create, refuse_existing

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence
    from pathlib import Path

    from gradstore.collect.engines import EngineMaker
    from gradstore.collect.objective import Batch, Objective
    from gradstore.collect.projectors import Projector
    from gradstore.manifest import Manifest
    from gradstore.objects import Objects

    Projected: TypeAlias = ProjectorSpec | Projector | None

_log = logging.getLogger("gradstore")

# Up to so many rows of each checkpoint they are differentiated side by side.
_FEW_ROWS = 256
# Arithmetic that a store was begun with is changed where it is slower by this factor.
_SLOW = 4
# From so many events on, timing the engines pays.
_TIMED_EVENTS = 1000


class CollectOptions(TypedDict, total=False):
    """What `collect`, `collect_each` and `plan` can be told beside dataset, checkpoints and store.

    Attributes:
        objective: an objective, or the loss of `DiffusionLoss`: `l1`, `l2` or `square`. By default
            what the checkpoints recorded, else `l2`.
        events: which events become rows: `replayed` (as the training run recorded them, the
            default), `planned` (10 timesteps, one noise each), an `EventSpec`, or a plan of your
            own.
        gradients: which parameters are differentiated, and in what arithmetic.
        etas: weight η_k of each checkpoint; by default as recorded, else 1.
        scheduler: for checkpoints that hold none.
        dtype: dtype of the stored directions, `float16` (the default), `float32` or `int8`.
        batch_size: events (rows × draws) per gradient computation, at most; 32 by default.
        memory: GiB that collecting may take beside the model and the program itself; 4 by default.
        shard_samples: samples per shard.
        device: torch device; by default cuda if there is one.
        engine: `auto` (the default), `streaming`, `vmap`, `loop`, or what makes an engine from
            model and objective.
        like: a training store of which the new rows are queries; they must be comparable with
            its own, and are refused before any work if they would not be.
        only: places of the checkpoints whose rows are collected now; by default all. The store is
            the same, and the others' rows can follow: the same call without it collects the rest.
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
    only: Sequence[int] | None
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
    "only": None,
    "config": None,
}


@dataclass(frozen=True)
class Into:
    """What of a store is to be filled, if not the part that a new store begins with.

    Attributes:
        append: a new part.
        part: this part.
        number: number of the only checkpoint that is collected, where a store gets one more.
    """

    append: bool = False
    part: PartSpec | None = None
    number: int | None = None


@dataclass(frozen=True)
class Target:
    """A part of a store to fill.

    Attributes:
        objects: where the store is or will be.
        projector: makes its directions.
        spec: what the store is.
        part: which part of it.
        fingerprints: of the rows at each checkpoint, by its number.
    """

    objects: Objects
    projector: Projector
    spec: StoreSpec
    part: PartSpec
    fingerprints: Mapping[int, str]

    @property
    def location(self) -> str:
        """Path or URL of the store."""
        return self.objects.location

    @property
    def layout(self) -> Layout:
        """Shapes and partition."""
        return self.part.layout.layout()

    def open(self, manifest: Manifest) -> Part:
        """The part, made where it is not there yet, with its store."""
        if not looks_like_store(self.objects):
            try:
                create(self.objects, self.spec, manifest)
            except StoreError:
                if not looks_like_store(self.objects):  # else another rank was faster
                    raise
            require_it(open_store(self.objects), self.spec)
        part = open_part(open_store(self.objects), self.part, manifest)
        # Between looking and filling, somebody else may have made another store here.
        part.manifest.require_same(manifest, store=self.location)
        known = {
            number: part.fingerprints.get(number, own) for number, own in self.fingerprints.items()
        }
        if part.layout != self.layout or known != self.fingerprints:
            raise StoreError(
                f"{self.location} was made by another configuration meanwhile; nothing was "
                "changed. Choose another --store."
            )
        return Part(self.objects, part.spec, self.fingerprints)


@dataclass(frozen=True)
class Job:
    """Everything that collecting needs, checked.

    Attributes:
        samples: the samples, scanned.
        plan: their events.
        survey: the checkpoints.
        folders: where those are.
        numbers: the numbers that they have in the stores.
        places: places of those that are collected now, rising.
        targets: the stores to fill, all with the same shards.
        choice: the engine.
        budget: how much memory goes where.
        device: where gradients are computed.
        params: which parameters are differentiated.
        read_seconds: how long reading the dataset took.
        load_seconds: how long loading a checkpoint took.
        timed: whether there is so much to do that timing pays.
        kept: the checkpoints, if they stay in memory.
        kept_as: what is loaded depends on this.
    """

    samples: Samples
    plan: EventPlan
    survey: Survey
    folders: Sequence[Path]
    numbers: Sequence[int]
    places: Sequence[int]
    targets: Sequence[Target]
    choice: Choice
    budget: Budget
    device: torch.device
    params: str | None
    read_seconds: float
    load_seconds: float
    timed: bool
    kept: ckpt.Checkpoints | None = None
    kept_as: Hashable = None

    @property
    def rows(self) -> int:
        """Rows of each store."""
        return len(self.samples) * self.plan.slots * len(self.places)

    @property
    def num_parameters(self) -> int:
        """Length of a gradient."""
        return num_parameters(self.survey.model)

    def tasks(self) -> list[Task]:
        """Every shard of every checkpoint that is collected now."""
        shards = self.targets[0].layout.shards
        return [Task(k, shard) for k in self.places for shard in range(shards)]

    def load(self, number: int) -> LoadedCheckpoint:
        """A checkpoint, ready to give gradients. The first is in memory already."""

        def loaded() -> LoadedCheckpoint:
            model = self.survey.model
            if number > 0:
                model = ckpt.load(self.folders[number], params=self.params).model
            return LoadedCheckpoint(
                self.folders[number], model, self.survey.objective, self.choice.make, self.device
            )

        if self.kept is None:
            return loaded()
        return self.kept.held((self.kept_as, number, self.choice.make), loaded)

    def open(self) -> list[Part]:
        """The parts to fill, made where they are not there yet, with their stores."""
        return [target.open(self.samples.manifest) for target in self.targets]

    def side_by_side(self) -> Job | None:
        """The job, ready for its checkpoints to be differentiated in several threads.

        None where they had better follow one another: of many rows each keeps all cores busy, a
        GPU has one queue, and other objectives, engines, plans and projectors than these, which
        share nothing, may hold something that is meant for one thread.
        """
        rows = len(self.samples) * self.plan.slots
        own = (
            type(self.survey.objective) is DiffusionLoss
            and type(self.plan) is PlannedEvents
            and self.choice.make is ENGINES["streaming"]
            and all(type(target.projector) is SjltProjector for target in self.targets)
        )
        if self.device.type != "cpu" or len(self.places) < 2 or rows > _FEW_ROWS or not own:
            return None
        buckets = len(self.targets) * 8 * self.num_parameters
        budget = self.budget
        one = budget.shard + budget.engine + buckets + rows * budget.per_row
        if one * len(self.places) > budget.total:
            return None
        for place in self.places:  # loading sets what all threads share
            self.load(place)
        return replace(self, samples=self.samples.in_memory())

    def worker(self, parts: Sequence[Part], bar: Any) -> Worker:
        """Who does the tasks, and tells the bar of every row."""
        projectors: list[Projector] = [target.projector for target in self.targets]
        if self.kept is not None:
            projectors = [
                HeldProjector(one, self.kept) if type(one) is SjltProjector else one
                for one in projectors
            ]
        return Worker(
            list(zip(parts, projectors, strict=True)),
            self.samples,
            self.plan,
            self.load,
            numbers=self.numbers,
            budget=self.budget,
            device=self.device,
            bar=bar,
        )


@torch.inference_mode(mode=False)  # whatever the caller is in the middle of
@torch.enable_grad()
def prepare(
    dataset: Any,
    checkpoints: str | Path | Sequence[str | Path] | ckpt.Checkpoints,
    stores: Mapping[str, Projected] | Mapping[Path, Projected],
    *,
    into: Into | None = None,
    **options: Unpack[CollectOptions],
) -> Job:
    """Read and check everything; make nothing.

    Args:
        dataset: `Samples`, a `datasets.Dataset`, a torch dataset, or a sequence.
        checkpoints: diffusers folders in training order, or one folder that holds them; or
            `Checkpoints`, whose models stay in memory.
        stores: where each store is or will be, and the projector of its directions.
        into: what of the stores is to be filled, if not the part that a new store begins with.
        options: `CollectOptions`.

    Raises:
        GradstoreError: if anything does not fit.
    """
    given: CollectOptions = {**_DEFAULTS, **options}
    into = into or Into()
    places = [objects_at(location) for location in stores]
    standing = [open_store(place) if looks_like_store(place) else None for place in places]
    for place, there in zip(places, standing, strict=True):
        if there is None:
            refuse_existing(place)
    samples = Samples.of(dataset)
    device = devices.choose(given["device"])
    kept = checkpoints if isinstance(checkpoints, ckpt.Checkpoints) else None
    folders = ckpt.find_checkpoints(checkpoints)
    numbers = _numbers(len(folders), into, [*standing, given["like"]])
    now = _places(len(folders), given["only"])
    gradients = given["gradients"] or GradientSpec()
    start = perf_counter()
    key, found = _surveyed(folders, kept, given, device)
    load_seconds = (perf_counter() - start) / len(folders)
    role: Literal["train", "query"] = "train" if given["like"] is None else "query"
    plan = _event_plan(given["events"], folders, numbers, found.objective, role)
    plan.require(samples.ids)
    read_seconds = _scanned(samples, found.model)
    projected = [
        projectors.from_spec(_as_begun(one or ProjectorSpec(), there, device))
        if one is None or isinstance(one, ProjectorSpec)
        else one
        for one, there in zip(stores.values(), standing, strict=True)
    ]
    targets = _targets(
        list(zip(places, standing, projected, strict=True)),
        samples,
        plan,
        found,
        numbers=numbers,
        given=given,
        into=into,
    )

    memory = int(given["memory"] * 2**30)
    model = found.model.to(device)
    draws = plan.at(numbers[0], samples.ids[:1]).key.shape[2]
    events = len(samples) * plan.slots * draws * len(now)
    timed = events >= _TIMED_EVENTS
    most, wanted = given["batch_size"], given["engine"] or "auto"
    begun = _begun(targets[0].part)
    if begun is not None and wanted == "auto":
        wanted, most = begun
    asked = begun is None and timed

    def chosen() -> tuple[Choice, Objective]:
        rows = trial(samples, plan, numbers[0], model, device, rows=most if asked else 2)
        choice = choose(wanted, model, found.objective, rows, memory=memory // 2, timed=asked)
        return _in_arithmetic(
            choice, model, found.objective, rows, gradients, part=targets[0].part, timed=asked
        )

    try:
        known = (key, wanted, most, memory, asked, tuple(samples[0].tensor.shape))
        choice, objective = kept.held(known, chosen) if kept else chosen()
    except EngineError as error:
        raise EngineError(
            f"checkpoint {folders[0]}, sample {samples.ids[0]!r} and those after it: {error}"
        ) from error
    found = replace(found, objective=objective)
    budget = Budget.spend(
        memory,
        choice,
        choice.events if asked else most,
        [(target.projector, target.layout) for target in targets],
        draws=draws,
        num_parameters=num_parameters(model),
        device=device,
    )
    _warn_of_drawing(targets, budget, num_parameters(model), device)
    if begun is None:
        made_by = {"engine": choice.name, "events": budget.events}
        targets = [
            _noting(
                target, {**made_by, "arithmetic": _used(objective, target.projector, model, device)}
            )
            for target in targets
        ]
    return Job(
        samples=samples,
        plan=plan,
        survey=found,
        folders=folders,
        numbers=numbers,
        places=now,
        targets=targets,
        choice=choice,
        budget=budget,
        device=device,
        params=gradients.params,
        read_seconds=read_seconds,
        load_seconds=load_seconds,
        timed=timed,
        kept=kept,
        kept_as=(key, precision(objective)),
    )


def _scanned(samples: Samples, model: Any) -> float:
    """Seconds that reading and checking all samples took."""
    start, first = perf_counter(), samples[0]
    samples.scan(lambda sample: check_sample(sample, model, first))
    samples.manifest.content()  # what cannot be stored is refused now, not after the first batch
    return perf_counter() - start


def _as_begun(spec: ProjectorSpec, store: Store | None, device: torch.device) -> ProjectorSpec:
    """A projector in the arithmetic that a store was begun with, unless that is slow here."""
    if spec.projector != "trak" or spec.precision != "auto" or store is None:
        return spec
    part = store.spec.parts[0]
    projector = store.spec.identity.get("projector")
    before: Any = projector if isinstance(projector, dict) else {}
    begun = _arithmetic(part).get("projection") or before.get("precision")
    rates = product_rates(device.type)
    if begun not in rates or rates[begun] < max(rates.values()) / _SLOW:
        return spec
    return spec.model_copy(update={"precision": begun})


def _in_arithmetic(
    choice: Choice,
    model: Any,
    objective: Objective,
    rows: Batch,
    gradients: GradientSpec,
    *,
    part: PartSpec,
    timed: bool,
) -> tuple[Choice, Objective]:
    """An engine and an objective in the arithmetic to compute gradients in.

    That of the part, where it was begun; else what is found by timing, where there is so much to
    do that it pays.
    """
    if gradients.autocast != "auto" or gradients.compile:
        return choice, objective
    cast = _arithmetic(part).get("gradients") == "bfloat16"
    # What has neither been begun so nor is worth timing needs no probe.
    if not (timed or cast) or precision_of("auto", rows.inputs.device.type) == "float32":
        return choice, objective
    if timed:
        error = part.layout.dim**-0.5
        return choose_arithmetic(choice, model, objective, rows, error=error)
    return choice, Autocast(objective)


def _arithmetic(part: PartSpec) -> dict[str, str]:
    """What gradients and projections of a part were computed in, as far as it records that."""
    found = part.made_by.get("arithmetic")
    return found if isinstance(found, dict) else {}


def _used(
    objective: Objective, projector: Projector, model: Any, device: torch.device
) -> dict[str, str]:
    """What gradients and products of projections are computed in."""
    products = projector.at(0, num_parameters(model), device, 0).dtype
    return {"gradients": precision(objective), "projection": str(products).removeprefix("torch.")}


def _warn_of_drawing(
    targets: Sequence[Target], budget: Budget, length: int, device: torch.device
) -> None:
    """Warn if a dense matrix does not fit and will be drawn again and again."""
    for target in targets:
        share = budget.projection // len(targets)
        projection = target.projector.at(0, length, device, share)
        if (
            isinstance(projection, TrakProjection)
            and projection.matrix_nbytes
            and not projection.kept
        ):
            _log.warning(
                "%s: the matrix of the projection does not fit in the %.2g GiB for it, so it is "
                "drawn anew for every buffer of gradients, which is slow. Give more with --memory, "
                "or use --projector sjlt or a smaller --proj-dim; `gradstore plan` tells the cost.",
                target.location,
                share / 2**30,
            )


def _surveyed(
    folders: Sequence[Path],
    kept: ckpt.Checkpoints | None,
    given: CollectOptions,
    device: torch.device,
) -> tuple[Hashable, Survey]:
    """The survey of the checkpoints, and what it depends on beside them."""
    gradients = given["gradients"] or GradientSpec()

    def surveyed() -> Survey:
        found = survey(
            folders,
            objective=given["objective"],
            scheduler=given["scheduler"],
            etas=given["etas"],
            params=gradients.params,
        )
        if gradients.autocast == "bfloat16":
            found = replace(found, objective=Autocast(found.objective))
        if gradients.compile:
            found = replace(found, objective=Compiled(found.objective))
        return found

    objects = [given["objective"], given["scheduler"]]  # which the survey holds: ids stay theirs
    named = [one if isinstance(one, str) else id(one) for one in objects]
    etas = None if given["etas"] is None else tuple(given["etas"])
    key = (*named, etas, gradients.model_dump_json(), device)
    return key, kept.held(key, surveyed) if kept else surveyed()


def versions() -> dict[str, str]:
    """Versions of what makes the numbers."""
    packages = ("torch", "diffusers", "traker", "numpy", "zarr")
    return {
        "gradstore": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
    }


_version = cache(version)  # which reads and parses a file each time


def _event_plan(
    events: EventSpec | EventPlan | str,
    folders: Sequence[Path],
    numbers: Sequence[int],
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
        return ReplayedEvents(folders, objective.num_train_timesteps, numbers)
    return PlannedEvents(events, objective.num_train_timesteps, role)


def _numbers(count: int, into: Into, stores: Sequence[Store | None]) -> list[int]:
    """The checkpoints' numbers: as in a store that stands there or is asked, else 0, 1, 2, …."""
    if into.number is not None:
        return [into.number]
    known = next((store.numbers for store in stores if store is not None), None)
    return known if known is not None and len(known) == count else list(range(count))


def _places(count: int, only: Sequence[int] | None) -> list[int]:
    """Places of the checkpoints that are collected now, rising."""
    if only is None:
        return list(range(count))
    if not only or not set(only) <= set(range(count)):
        raise ConfigError(
            f"only={list(only)}: of {count} checkpoints, name one or more by their places, "
            f"0 … {count - 1}."
        )
    return sorted(set(only))


def _targets(
    stores: Sequence[tuple[Objects, Store | None, Projector]],
    samples: Samples,
    plan: EventPlan,
    found: Survey,
    *,
    numbers: Sequence[int],
    given: CollectOptions,
    into: Into,
) -> list[Target]:
    like = given["like"]
    length = num_parameters(found.model)
    widest_dim = max(projector.dim(length) for _, _, projector in stores)
    # One partition for all, that of the longest rows: a task fills the same shard of each store.
    widest = Layout.choose(
        len(samples), plan.slots, widest_dim, given["dtype"], given["shard_samples"]
    )
    targets = []
    for objects, standing, projector in stores:
        identity: Identity = {
            "model": found.architecture,
            "checkpoints": [
                {"weights": digest, "number": number}
                for digest, number in zip(found.weights, numbers, strict=True)
            ],
            "objective": found.objective.identity(),
            "projector": projector.identity(length),
            "events": plan.identity(),
            "noise": noise_identity(),
            "storage": {"dtype": given["dtype"]},
        }
        if like is not None:
            require_same(
                like.spec.identity,
                identity,
                expected_name=like.location,
                found_name="this query",
                sections=COMPARED,
            )
        layout = Layout.choose(
            len(samples), plan.slots, projector.dim(length), given["dtype"], widest.shard_samples
        )
        part = PartSpec(
            path=part_path(standing, samples.manifest) if into.append and standing else "",
            layout=LayoutSpec.of(layout),
            made_by={
                "versions": versions(),
                "device": devices.choose(given["device"]).type,
                "gradients": (given["gradients"] or GradientSpec()).model_dump(),
                "config": given["config"] or {},
            },
        )
        spec = StoreSpec(
            fingerprint=fingerprint(identity),
            identity=identity,
            checkpoints=[
                one.model_copy(update={"number": number})
                for one, number in zip(found.checkpoints, numbers, strict=True)
            ],
            parts=[part],
        )
        if standing is not None:
            part = _standing_part(standing, spec, samples.manifest, into)
            identity = _as_recorded(standing.spec.identity, identity, into)
            if given["shard_samples"] not in {None, part.layout.shard_samples}:
                _log.warning(
                    "%s has %s samples per shard, and keeps them; shard_samples %s is not used",
                    objects.location,
                    part.layout.shard_samples,
                    given["shard_samples"],
                )
            if into.number is None:
                spec = standing.spec
        fingerprints = {
            number: row_fingerprint(identity, place) for place, number in enumerate(numbers)
        }
        targets.append(Target(objects, projector, spec, part, fingerprints))
    if len({target.layout.shard_samples for target in targets}) > 1:
        sizes = ", ".join(f"{one.location}: {one.layout.shard_samples}" for one in targets)
        raise ConfigError(
            f"these stores have shards of different sizes and cannot be filled together ({sizes} "
            "samples). Collect them one by one, or anew with the same --shard-samples."
        )
    return targets


def _as_recorded(standing: Identity, identity: Identity, into: Into) -> Identity:
    """What identifies rows that go into a store, in the words of that store.

    It may record what is not compared, and lack what was not recorded when it was made.
    """
    if into.number is None:
        return standing
    own = {**standing, "checkpoints": identity["checkpoints"]}
    events, found = own.get("events"), identity["events"]
    if isinstance(events, dict) and isinstance(found, dict) and "recorded" in events:
        own["events"] = {**events, "recorded": found["recorded"]}
    return own


def _standing_part(store: Store, spec: StoreSpec, manifest: Manifest, into: Into) -> PartSpec:
    """Which part of a store that stands there is to be filled.

    Raises:
        GradstoreError: if the store is of another configuration, or of other samples.
    """
    require_it(store, spec, checkpoint_more=into.number is not None)
    if into.part is not None:
        own = next(part for part in store.parts if part.spec.path == into.part.path)
        own.manifest.require_same(manifest, store=store.location)
        return into.part
    if into.append:
        path = spec.parts[0].path
        known = [part.spec for part in store.parts if part.spec.path == path]
        if known:
            return known[0]
        require_new(store, manifest)
        return begun_part(store, path) or spec.parts[0]
    for part in store.parts:
        if (part.manifest.ids, part.manifest.digests) == (manifest.ids, manifest.digests):
            return part.spec
    store.parts[0].manifest.require_same(manifest, store=store.location)
    return store.parts[0].spec


def require_it(store: Store, spec: StoreSpec, *, checkpoint_more: bool = False) -> None:
    """Raise unless a store is the one that a specification describes.

    Args:
        store: the store that stands there.
        spec: what would be made.
        checkpoint_more: whether it is of a checkpoint that the store does not have yet.
    """
    mine, theirs = store.spec.identity, spec.identity
    if checkpoint_more:
        mine = {**only_checkpoints(mine, [0]), "checkpoints": []}
        theirs = {**theirs, "checkpoints": []}
        if isinstance(mine.get("events"), dict) and "recorded" in mine["events"]:  # type: ignore[operator]
            mine["events"] = theirs["events"]
    require_same(
        mine,
        theirs,
        expected_name=store.location,
        found_name="this configuration",
        sections=tuple(spec.identity),
        mend="restore the configuration that made the store to go on with it, or collect into "
        "another --store; nothing was changed",
    )
    etas = [checkpoint.eta for checkpoint in spec.checkpoints]
    if store.etas != etas and not checkpoint_more:
        raise ConfigError(
            f"{store.location} has checkpoint weights {store.etas}, not {etas}. Weigh anew when "
            "searching (indexer.build_index(etas=...)), or collect into another --store."
        )


def _begun(part: PartSpec) -> tuple[str, int] | None:
    """Engine and events at once that a part was begun with, if it was.

    It is finished with the same, so that its rows do not depend on when collecting was cut off.
    """
    engine, events = part.made_by.get("engine"), part.made_by.get("events")
    known = isinstance(engine, str) and engine in ENGINES and isinstance(events, int)
    return (engine, max(1, events)) if known else None  # type: ignore[return-value,type-var]


def _noting(target: Target, made_by: dict[str, Any]) -> Target:
    """The target with more about its making in its part, and in its store if that is new."""
    part = target.part.model_copy(update={"made_by": {**target.part.made_by, **made_by}})
    parts = [part if one.path == part.path else one for one in target.spec.parts]
    return replace(target, part=part, spec=target.spec.model_copy(update={"parts": parts}))
