"""Prepares a job from a dataset, checkpoints and options; writes nothing."""

from __future__ import annotations

import logging
from dataclasses import replace
from math import prod
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Unpack

import torch

from gradstore.arithmetic import precision_of, product_rates
from gradstore.collect import devices, projectors
from gradstore.collect.data.samples import Samples
from gradstore.collect.engines.choice import ENGINES, EngineChoice, choose, choose_arithmetic
from gradstore.collect.events.planned import PlannedEvents
from gradstore.collect.events.replayed import ReplayedEvents
from gradstore.collect.models.cache import CheckpointCache, found_loader
from gradstore.collect.models.parameters import num_parameters
from gradstore.collect.named import follow
from gradstore.collect.objectives.wrappers import Autocast, Compiled, precision
from gradstore.collect.pipeline.batches import trial
from gradstore.collect.pipeline.budget import Budget
from gradstore.collect.pipeline.job import Job
from gradstore.collect.pipeline.metric import job_metric, with_metric
from gradstore.collect.pipeline.options import (
    DEFAULTS,
    CollectOptions,
    Destination,
    projector_of,
    require_known,
)
from gradstore.collect.pipeline.reading import as_collected_before, encoded, scanned
from gradstore.collect.pipeline.survey import Survey, survey
from gradstore.collect.pipeline.targets import StoreTarget, noting, targets_of
from gradstore.collect.provenance import Provenance
from gradstore.collect.recorded import Recorded
from gradstore.errors import ConfigError, EngineError
from gradstore.progress import quietly
from gradstore.store.format.fingerprint import fingerprint
from gradstore.store.format.spec import (
    EventSpec,
    GradientSpec,
    ObjectiveSpec,
    PartSpec,
    ProjectorSpec,
)
from gradstore.store.objects.location import objects_at
from gradstore.store.opening import looks_like_store, open_store
from gradstore.store.reader import Store
from gradstore.store.writer import refuse_existing

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence
    from pathlib import Path

    from gradstore.collect.events.protocol import EventPlan
    from gradstore.collect.models.protocol import Loader
    from gradstore.collect.objectives.protocol import Batch, Objective
    from gradstore.collect.pipeline.options import Checkpoints, Projected
    from gradstore.collect.projectors import Projector
    from gradstore.store.objects.protocol import Objects


_log = logging.getLogger("gradstore")

# Rows are projected as others before them unless that is slower by this factor.
_SLOW = 4

# Engines are timed from this many events on.
_TIMED_EVENTS = 1000


@torch.inference_mode(mode=False)  # the caller may be in inference mode
@torch.enable_grad()
def prepare(
    dataset: Any,
    checkpoints: Checkpoints,
    stores: Mapping[str, Projected] | Mapping[Path, Projected],
    *,
    into: Destination | None = None,
    **options: Unpack[CollectOptions],
) -> Job:
    """Read and check everything; write nothing.

    Args:
        dataset: `Samples`, a `datasets.Dataset`, a torch dataset, or a sequence.
        checkpoints: diffusers folders in training order, or one folder that contains them; a
            loader; or `CheckpointCache`, whose models stay in memory.
        stores: location of each store, and the projector of its directions.
        into: the part to fill; by default the first part of a new store.
        options: `CollectOptions`.

    Raises:
        GradstoreError: if anything does not fit.
    """
    require_known(options)
    given: CollectOptions = {**DEFAULTS, **options}
    with quietly(given["quiet"]):
        job = _prepared(dataset, checkpoints, stores, into or Destination.new_store(), given)
    named = (given["config"] or {}).get("dataset")
    models = job.loader.spec()
    bases = [models.base] if models is not None and models.base is not None else []
    # Which the user gave, or follows.
    follow([*job.loader.folders, *bases, *([named] if named else [])])
    return job


def _prepared(
    dataset: Any,
    checkpoints: Checkpoints,
    stores: Mapping[str, Projected] | Mapping[Path, Projected],
    into: Destination,
    given: CollectOptions,
) -> Job:
    places, standing = _standing(stores)
    device = devices.choose(given["device"])
    kept = checkpoints if isinstance(checkpoints, CheckpointCache) else None
    loader = found_loader(checkpoints)
    folders = loader.folders
    numbers = _numbers(len(folders), into, [*standing, given["like"], given["metric"]])
    now = _places(len(folders), given["only"])
    gradients = given["gradients"] or GradientSpec()
    start = perf_counter()
    key, surveyed = _surveyed(loader, kept, given, device)
    load_seconds = (perf_counter() - start) / len(folders)
    samples, found, encoders = encoded(
        as_collected_before(Samples.of(dataset), standing[0], into), loader, surveyed, device
    )
    plan = _event_plan(given["events"], folders, numbers, found.objective, like=given["like"])
    plan.require(samples.ids)
    read_seconds = scanned(
        samples, found, encoders, loader=loader, plan=plan, numbers=numbers, device=device
    )
    projected = _projectors(stores, standing, given["like"], device)
    metric = job_metric(
        given["metric"], samples, list(zip(places, standing, strict=True)), like=given["like"]
    )
    targets = targets_of(
        list(zip(places, standing, projected, strict=True)),
        loader,
        samples,
        plan,
        found,
        numbers=numbers,
        given=given,
        into=into,
        metric=metric,
    )

    memory = int(given["memory"] * 2**30)
    model = found.model.to(device)
    draws = plan.at(numbers[0], samples.ids[:1]).key.shape[2]
    timed = len(samples) * plan.slots * draws * len(now) >= _TIMED_EVENTS
    most, wanted = given["batch_size"], given["engine"] or "auto"
    begun = _begun(targets[0].part)
    if begun is not None and wanted == "auto":
        wanted, most = begun
    if metric is not None and metric.metric.layerwise and wanted == "auto":
        wanted = "streaming"
    asked = begun is None and timed

    def chosen() -> tuple[EngineChoice, Objective]:
        rows = trial(samples, plan, numbers[0], model, device, rows=most if asked else 2)
        choice = choose(wanted, model, found.objective, rows, memory=memory // 2, timed=asked)
        choice, objective = _in_arithmetic(
            choice, model, found.objective, rows, gradients, part=targets[0].part, timed=asked
        )
        if metric is not None:
            choice = with_metric(choice, metric, model, objective, rows)
        return choice, objective

    try:
        mapped = None if metric is None else metric.metric.name
        known = (key, wanted, most, memory, asked, mapped, max(samples.shapes, key=prod))
        start = perf_counter()
        choice, objective = kept.held(known, chosen) if kept else chosen()
        choice_seconds = perf_counter() - start
    except EngineError as error:
        raise EngineError(
            f"checkpoint {folders[0]}, sample {samples.ids[0]!r} and later samples: {error}"
        ) from error
    budget = Budget.spend(
        memory,
        choice,
        choice.events if asked else most,
        [(target.projector, target.layout) for target in targets],
        draws=draws,
        num_parameters=num_parameters(model),
        device=device,
        sums=1 if metric is None else 2,
    )
    if metric is not None:
        metric.require_memory(model, budget, numbers)
    _warn_of_drawing(targets, budget, num_parameters(model), device)
    if begun is None:
        made_by = {"engine": choice.name, "events": budget.events}
        targets = [
            noting(
                target, {**made_by, "arithmetic": _used(objective, target.projector, model, device)}
            )
            for target in targets
        ]
    return Job(
        samples=samples,
        plan=plan,
        survey=replace(found, objective=objective),
        loader=loader,
        numbers=numbers,
        places=now,
        targets=targets,
        choice=choice,
        budget=budget,
        device=device,
        params=gradients.params,
        read_seconds=read_seconds,
        load_seconds=load_seconds,
        choice_seconds=choice_seconds,
        timed=timed,
        quiet=given["quiet"],
        metric=metric,
        kept=kept,
        kept_as=(key, precision(objective), metric and fingerprint(metric.identity)),
    )


def _standing(
    stores: Mapping[str, Projected] | Mapping[Path, Projected],
) -> tuple[list[Objects], list[Store | None]]:
    """Location of each store, and the store that exists there; anything else is refused."""
    places = [objects_at(location) for location in stores]
    standing = [open_store(place) if looks_like_store(place) else None for place in places]
    for place, there in zip(places, standing, strict=True):
        if there is None:
            refuse_existing(place)
    return places, standing


def _projectors(
    stores: Mapping[str, Projected] | Mapping[Path, Projected],
    standing: Sequence[Store | None],
    like: Store | None,
    device: torch.device,
) -> list[Projector]:
    """The projector of each store, as the one that exists was begun.

    A new query store is made as the store that it asks was begun: the same question gets the same
    answer, however two arithmetics of about the same speed were timed.
    """
    return [
        projectors.from_spec(_as_begun(one, like if there is None else there, device))
        if isinstance(one, ProjectorSpec)
        else one
        for one, there in zip(map(projector_of, stores.values()), standing, strict=True)
    ]


def _as_begun(spec: ProjectorSpec, store: Store | None, device: torch.device) -> ProjectorSpec:
    """A projector in the arithmetic of a store, unless that is slow here."""
    if spec.projector != "trak" or spec.precision != "auto" or store is None:
        return spec
    made_by = Provenance.of(store.spec.parts[0])
    begun = made_by.arithmetic.get("projection") or Recorded.of(store).projector.precision
    rates = product_rates(device.type)
    if begun not in rates or rates[begun] < max(rates.values()) / _SLOW:
        return spec
    return spec.model_copy(update={"precision": begun})


def _in_arithmetic(
    choice: EngineChoice,
    model: Any,
    objective: Objective,
    rows: Batch,
    gradients: GradientSpec,
    *,
    part: PartSpec,
    timed: bool,
) -> tuple[EngineChoice, Objective]:
    """The engine and the objective, in the arithmetic for gradients.

    A partial part keeps its arithmetic. Otherwise timing decides, if the work is large enough.
    """
    given = gradients.autocast != "auto" or gradients.compile
    if given or precision(objective) == "bfloat16":
        return choice, objective
    cast = Provenance.of(part).arithmetic.get("gradients") == "bfloat16"
    # No probe unless the part began in bfloat16 or timing is worth it.
    if not (timed or cast) or precision_of("auto", rows.inputs.device.type) == "float32":
        return choice, objective
    if timed:
        error = part.layout.dim**-0.5
        return choose_arithmetic(choice, model, objective, rows, error=error)
    return choice, Autocast(objective)


def _used(
    objective: Objective, projector: Projector, model: Any, device: torch.device
) -> dict[str, str]:
    """The arithmetic of gradients and of the products of projections."""
    products = projector.at(0, num_parameters(model), device, 0).dtype
    return {"gradients": precision(objective), "projection": str(products).removeprefix("torch.")}


def _warn_of_drawing(
    targets: Sequence[StoreTarget], budget: Budget, length: int, device: torch.device
) -> None:
    """Warn if a dense matrix does not fit in memory and is redrawn for every buffer."""
    for target in targets:
        share = budget.projection // len(targets)
        projection = target.projector.at(0, length, device, share)
        if getattr(projection, "redrawn", False):
            _log.warning(
                "%s: the matrix of the projection does not fit in the %.2g GiB for it, so it is "
                "redrawn for every buffer of gradients, which is slow. Give more with --memory, or "
                "use --projector sjlt or a smaller --proj-dim; see `gradstore plan` for the cost.",
                target.location,
                share / 2**30,
            )


def _surveyed(
    loader: Loader,
    kept: CheckpointCache | None,
    given: CollectOptions,
    device: torch.device,
) -> tuple[Hashable, Survey]:
    """The survey of the checkpoints, and a key of its other inputs."""
    gradients = given["gradients"] or GradientSpec()

    def surveyed() -> Survey:
        found = survey(
            loader,
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

    objects = [given["objective"], given["scheduler"]]  # the survey holds them: ids stay unique
    named = [repr(one) if isinstance(one, str | ObjectiveSpec) else id(one) for one in objects]
    etas = None if given["etas"] is None else tuple(given["etas"])
    key = (*named, etas, gradients.model_dump_json(), device)
    return key, kept.held(key, surveyed) if kept else surveyed()


def _event_plan(
    events: EventSpec | EventPlan | str,
    folders: Sequence[Path],
    numbers: Sequence[int],
    objective: Objective,
    *,
    like: Store | None,
) -> EventPlan:
    if isinstance(events, str):
        if events not in {"replayed", "planned"}:
            raise ConfigError(f"there are no events {events!r}; use 'replayed' or 'planned'.")
        events = EventSpec.model_validate({"events": events})
    if not isinstance(events, EventSpec):
        return events
    if events.events == "replayed":
        return ReplayedEvents(folders, objective.num_train_timesteps, numbers)
    role: Literal["train", "query"] = "train" if like is None else "query"
    return PlannedEvents(events, objective.num_train_timesteps, role)


def _numbers(count: int, into: Destination, stores: Sequence[object]) -> list[int]:
    """The checkpoints' numbers: as in the existing or the queried store, else 0, 1, 2, …."""
    if into.number is not None:
        return [into.number]
    known = next((store.numbers for store in stores if isinstance(store, Store)), None)
    return known if known is not None and len(known) == count else list(range(count))


def _places(count: int, only: Sequence[int] | None) -> list[int]:
    """Indices of the checkpoints that are collected now, ascending."""
    if only is None:
        return list(range(count))
    if not only or not set(only) <= set(range(count)):
        raise ConfigError(
            f"only={list(only)}: of {count} checkpoints, name one or more by index, "
            f"0 … {count - 1}."
        )
    return sorted(set(only))


def _begun(part: PartSpec) -> tuple[str, int] | None:
    """Engine and events at once of a partial part, else None.

    They stay the same until the part is complete, so that rows do not depend on interruptions.
    """
    made_by = Provenance.of(part)
    if made_by.engine is None or made_by.engine not in ENGINES or made_by.events is None:
        return None
    return made_by.engine, made_by.events
