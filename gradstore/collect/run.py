"""Collecting: from samples and checkpoints to a store of rows."""

from __future__ import annotations

import logging
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gradstore import __version__
from gradstore.collect import checkpoints as ckpt
from gradstore.collect import projectors
from gradstore.collect.events import EventPlan, PlannedEvents, ReplayedEvents
from gradstore.collect.executor import Executor, Task, from_environment
from gradstore.collect.gradients import GradientEngine, VmapEngine
from gradstore.collect.samples import Samples
from gradstore.collect.survey import survey
from gradstore.collect.worker import Worker
from gradstore.errors import StoreError
from gradstore.fingerprint import COMPARED, fingerprint, require_same
from gradstore.layout import Layout
from gradstore.progress import progress
from gradstore.reader import Store, looks_like_store, open_store
from gradstore.spec import EventSpec, Identity, LayoutSpec, ProjectorSpec, StoreSpec
from gradstore.writer import create, refuse_existing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gradstore.collect.objective import Objective
    from gradstore.collect.projectors import Projector
    from gradstore.config import CollectConfig
    from gradstore.manifest import Manifest

_log = logging.getLogger("gradstore")


def collect(
    dataset: Any,
    checkpoints: Sequence[str | Path],
    store: str | Path,
    *,
    objective: Objective | str | None = None,
    events: EventSpec | EventPlan | None = None,
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
        events: which events become rows; by default those that the training run recorded.
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
        like: a store whose rows the new ones must be comparable with; refused before any work
            if they would not be.
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
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    folders = ckpt.find_checkpoints(checkpoints)
    found = survey(folders, samples, objective=objective, scheduler=scheduler, etas=etas)
    plan = _event_plan(events or EventSpec(), folders, found.objective)
    projector = projector or ProjectorSpec()
    chosen = projectors.from_spec(projector) if isinstance(projector, ProjectorSpec) else projector
    identity: Identity = {
        "model": found.architecture,
        "checkpoints": [{"weights": digest} for digest in found.weights],
        "objective": found.objective.identity(),
        "projector": chosen.identity(found.num_parameters),
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
        len(samples), plan.slots, chosen.dim(found.num_parameters), dtype, shard_samples
    )
    spec = StoreSpec(
        fingerprint=fingerprint(identity),
        identity=identity,
        layout=LayoutSpec.of(layout),
        checkpoints=found.checkpoints,
        made_by={"versions": versions(), "device": device.type, "config": config or {}},
    )
    target = _open_or_create(path, spec, samples.manifest)
    tasks = [Task(*pair) for pair in target.missing()]
    if not tasks:
        _log.info("%s is complete: nothing to do", path)
        return open_store(path)
    worker = Worker(
        store=target,
        samples=samples,
        folders=folders,
        objective=found.objective,
        plan=plan,
        projector=chosen,
        scheduler=scheduler,
        batch_size=batch_size,
        memory=int(memory * 2**30),
        device=device,
        engine=engine,
    )
    spans = [target.layout.span(task.shard) for task in tasks]
    total = sum(stop - start for start, stop in spans) * layout.slots
    with progress(total, f"collecting {path.name}", "rows") as worker.bar:
        (executor or from_environment()).run(tasks, worker)
    return open_store(path)


def collect_config(config: CollectConfig, *, executor: Executor | None = None) -> Store:
    """`collect` as a `CollectConfig` says; the configuration is recorded in the store."""
    path = Path(config.store)
    if path.exists() and not looks_like_store(path):
        refuse_existing(path)
    return collect(
        Samples.from_spec(config),
        config.checkpoints,
        path,
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
        config=config.model_dump(mode="json"),
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
    events: EventSpec | EventPlan, folders: Sequence[Path], objective: Objective
) -> EventPlan:
    if not isinstance(events, EventSpec):
        return events
    if events.events == "replayed":
        return ReplayedEvents(folders)
    return PlannedEvents(events, objective.num_train_timesteps)


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
    return store
