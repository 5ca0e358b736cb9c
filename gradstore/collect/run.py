"""Collecting: from samples and checkpoints to a store of rows."""

from __future__ import annotations

import logging
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gradstore import __version__
from gradstore.collect import checkpoints as ckpt
from gradstore.collect import devices, projectors
from gradstore.collect.events import EventPlan, PlannedEvents, ReplayedEvents
from gradstore.collect.executor import Executor, Task, from_environment
from gradstore.collect.gradients import GradientEngine, VmapEngine, trainable
from gradstore.collect.samples import Samples
from gradstore.collect.survey import survey
from gradstore.collect.worker import LoadedCheckpoint, Worker, check_sample, rehearse
from gradstore.errors import ConfigError, StoreError
from gradstore.fingerprint import COMPARED, fingerprint, require_same
from gradstore.layout import Layout
from gradstore.progress import progress
from gradstore.reader import Store, looks_like_store, open_store
from gradstore.spec import EventSpec, Identity, LayoutSpec, ProjectorSpec, StoreSpec
from gradstore.writer import create, refuse_existing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from gradstore.collect.objective import Objective
    from gradstore.collect.projectors import Projector
    from gradstore.config import CollectConfig
    from gradstore.manifest import Manifest


_log = logging.getLogger("gradstore")


def collect(
    dataset: Any,
    checkpoints: str | Path | Sequence[str | Path],
    store: str | Path,
    *,
    objective: Objective | str | None = None,
    events: EventSpec | EventPlan | str = "replayed",
    projector: ProjectorSpec | Projector | None = None,
    etas: Sequence[float] | None = None,
    scheduler: Any = None,
    dtype: str = "float16",
    batch_size: int = 32,
    memory: float = 4.0,
    shard_samples: int | None = None,
    device: str | torch.device | None = None,
    executor: Executor | None = None,
    engine: Callable[[Any, Objective], GradientEngine] = VmapEngine,
    like: Store | None = None,
    config: dict[str, Any] | None = None,
) -> Store:
    """Compute, project and store the gradient of every sample at every checkpoint.

    Run again with the same arguments, it goes on from the shards that are sealed.

    Args:
        dataset: `Samples`, a `datasets.Dataset`, a torch dataset, or a sequence.
        checkpoints: diffusers folders in training order, or one folder that holds them.
        store: the store to make, or to go on with.
        objective: an objective, or the loss of `DiffusionLoss`: `l1` or `l2`. By default what the
            checkpoints recorded, else `l2`.
        events: which events become rows: `replayed` (as the training run recorded them),
            `planned` (10 timesteps, one noise each), an `EventSpec`, or a plan of your own.
        projector: how gradients become directions; by default TRAK's, to 4,096 dimensions.
        etas: weight η_k of each checkpoint; by default as recorded, else 1.
        scheduler: for checkpoints that hold none.
        dtype: dtype of the stored directions, `float16` or `float32`.
        batch_size: events (rows × draws) per gradient computation, at most.
        memory: GiB for gradients and projection matrix.
        shard_samples: samples per shard.
        device: torch device; by default cuda if there is one.
        executor: who does which task; by default what RANK and WORLD_SIZE say.
        engine: makes the per-sample gradient engine from model and objective.
        like: a training store of which the new rows are queries; they must be comparable with
            its own, and are refused before any work if they would not be.
        config: the configuration to record in the store as provenance.

    Returns:
        The store. It is complete unless other ranks still work on it.

    Raises:
        GradstoreError: if anything does not fit; what was sealed before stays.
    """
    path = Path(store)
    if path.exists() and not looks_like_store(path):
        refuse_existing(path)
    samples = Samples.of(dataset)
    device = devices.choose(device)
    folders = ckpt.find_checkpoints(checkpoints)
    found = survey(folders, objective=objective, scheduler=scheduler, etas=etas)
    plan = _event_plan(events, folders, found.objective, "train" if like is None else "query")
    plan.require(samples.ids)
    first = samples[0]
    manifest = samples.scan(lambda sample: check_sample(sample, found.model, first))
    projector = projector or ProjectorSpec()
    chosen = projectors.from_spec(projector) if isinstance(projector, ProjectorSpec) else projector
    num_parameters = sum(p.numel() for p in trainable(found.model).values())
    identity: Identity = {
        "model": found.architecture,
        "checkpoints": [{"weights": digest} for digest in found.weights],
        "objective": found.objective.identity(),
        "projector": chosen.identity(num_parameters),
        "events": plan.identity(),
        "storage": {"dtype": dtype},
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
        len(samples), plan.slots, chosen.dim(num_parameters), dtype, shard_samples
    )
    spec = StoreSpec(
        fingerprint=fingerprint(identity),
        identity=identity,
        layout=LayoutSpec.of(layout),
        checkpoints=found.checkpoints,
        made_by={"versions": versions(), "device": device.type, "config": config or {}},
    )

    def load(number: int) -> LoadedCheckpoint:
        return LoadedCheckpoint(folders[number], found.objective, engine, device)

    if not path.exists():
        rehearse(load(0), samples, plan)
    target = _open_or_create(path, spec, manifest)
    layout = target.layout
    if shard_samples not in {None, layout.shard_samples}:
        _log.warning(
            "%s has %s samples per shard, and keeps them; shard_samples %s is not used",
            path,
            layout.shard_samples,
            shard_samples,
        )
    executor = executor or from_environment()
    every = [Task(k, shard) for k in range(target.checkpoints) for shard in range(layout.shards)]
    missing = set(target.missing())
    tasks = [task for task in executor.share(every) if task in missing]
    worker = Worker(
        target,
        samples,
        plan,
        chosen,
        load,
        batch_size=batch_size,
        memory=int(memory * 2**30),
        device=device,
    )
    spans = [layout.span(task.shard) for task in tasks]
    total = sum(stop - start for start, stop in spans) * layout.slots
    with progress(total, f"collecting {path.name}", "rows") as worker.bar:
        executor.run(tasks, worker)
    return open_store(path)


def collect_config(config: CollectConfig, *, executor: Executor | None = None) -> Store:
    """`collect` as a `CollectConfig` says; the configuration is recorded in the store."""
    unused = {"timesteps", "draws", "event_seed"} & config.model_fields_set
    if config.events == "replayed" and unused:
        _log.warning("replayed events are as recorded: %s not used", ", ".join(sorted(unused)))
    return collect(
        Samples.from_spec(config),
        config.checkpoints,
        config.store,
        objective=config.loss,
        events=EventSpec.model_validate(config.model_dump(include=set(EventSpec.model_fields))),
        projector=ProjectorSpec.model_validate(
            config.model_dump(include=set(ProjectorSpec.model_fields))
        ),
        etas=config.etas,
        dtype=config.dtype,
        batch_size=config.batch_size,
        memory=config.memory,
        shard_samples=config.shard_samples,
        device=config.device,
        executor=executor,
        config=config.recorded(),
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


def _open_or_create(path: Path, spec: StoreSpec, manifest: Manifest) -> Store:
    """The store at `path` if it is this very one, else a new one."""
    if not path.exists():
        try:
            return create(path, spec, manifest)
        except StoreError:
            if not looks_like_store(path):  # else another rank was faster: use what it made
                raise
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
