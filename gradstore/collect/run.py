"""Collecting: from samples and checkpoints to a store of rows."""

from __future__ import annotations

import logging
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradstore import __version__
from gradstore.collect import checkpoints as ckpt
from gradstore.collect import projectors
from gradstore.collect.events import EventPlan, PlannedEvents, ReplayedEvents, noise
from gradstore.collect.executor import Executor, Task, from_environment
from gradstore.collect.gradients import GradientEngine, VmapEngine
from gradstore.collect.objective import Batch, DiffusionLoss, Objective, check_fits
from gradstore.collect.samples import Samples
from gradstore.errors import CheckpointError, ConfigError, DatasetError, GradientError, StoreError
from gradstore.fingerprint import COMPARED, fingerprint, require_same
from gradstore.layout import Layout
from gradstore.progress import progress
from gradstore.reader import Store, looks_like_store, open_store
from gradstore.rows import Rows
from gradstore.spec import CheckpointSpec, EventSpec, Identity, LayoutSpec, ProjectorSpec, StoreSpec
from gradstore.writer import create, refuse_existing, write_shard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from gradstore.collect.projectors import Projection, Projector
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
    survey = _survey(folders, samples, objective=objective, scheduler=scheduler, etas=etas)
    plan = _event_plan(events or EventSpec(), folders, survey.objective)
    projector = projector or ProjectorSpec()
    chosen = projectors.from_spec(projector) if isinstance(projector, ProjectorSpec) else projector
    identity: Identity = {
        "model": survey.architecture,
        "checkpoints": [{"weights": digest} for digest in survey.weights],
        "objective": survey.objective.identity(),
        "projector": chosen.identity(survey.num_parameters),
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
        len(samples), plan.slots, chosen.dim(survey.num_parameters), dtype, shard_samples
    )
    spec = StoreSpec(
        fingerprint=fingerprint(identity),
        identity=identity,
        layout=LayoutSpec.of(layout),
        checkpoints=survey.checkpoints,
        made_by={"versions": versions(), "device": device.type, "config": config or {}},
    )
    target = _open_or_create(path, spec, samples.manifest)
    tasks = [Task(*pair) for pair in target.missing()]
    if not tasks:
        _log.info("%s is complete: nothing to do", path)
        return open_store(path)
    worker = _Worker(
        store=target,
        samples=samples,
        folders=folders,
        objective=survey.objective,
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


class _Survey:
    """What the checkpoints are, read once before anything long starts."""

    def __init__(self, first: ckpt.Checkpoint, objective: Objective) -> None:
        self.objective = objective
        self.architecture = first.architecture()
        self.num_parameters = first.num_parameters
        self.weights: list[str] = []
        self.checkpoints: list[CheckpointSpec] = []


def _survey(
    folders: Sequence[Path],
    samples: Samples,
    *,
    objective: Objective | str | None,
    scheduler: Any,
    etas: Sequence[float] | None,
) -> _Survey:
    if etas is not None and len(etas) != len(folders):
        raise ConfigError(
            f"{len(etas)} etas were given for {len(folders)} checkpoints. Give one for each."
        )
    survey: _Survey | None = None
    rate_sum = 0.0
    for number, folder in enumerate(folders):
        checkpoint = ckpt.load(folder, scheduler=scheduler)
        record = checkpoint.record
        recorded_loss = record.loss if record else None
        if isinstance(objective, str) or objective is None:
            own: Objective = DiffusionLoss(
                checkpoint.scheduler, objective or recorded_loss or "l2"
            )
        else:
            own = objective
        if survey is None:
            survey = _Survey(checkpoint, own)
            check_fits(checkpoint.model, tuple(samples.tensor(0).shape), samples.ids[0])
        _require_alike(survey, checkpoint, own, first=folders[0])
        if etas is not None:
            eta = float(etas[number])
        elif record is not None:
            # Weight of the steps since the checkpoint used before this one.
            eta = record.learning_rate_sum - rate_sum
            rate_sum = record.learning_rate_sum
            if eta < 0:
                raise CheckpointError(
                    f"checkpoint {folder} comes after {folders[number - 1]} but was saved before "
                    "it. Give --checkpoints in training order."
                )
        else:
            eta = 1.0
        epoch = record.epoch if record else None
        survey.weights.append(checkpoint.weights_digest())
        survey.checkpoints.append(CheckpointSpec(path=str(folder.resolve()), eta=eta, epoch=epoch))
        if etas is None and record is None and number == 0:
            _log.warning(
                "%s records no learning rate: every checkpoint weighs 1. Use --etas to say "
                "otherwise.",
                folder,
            )
    if survey is None:
        raise CheckpointError("no checkpoint was given. Name at least one with --checkpoints.")
    return survey


def _require_alike(
    survey: _Survey, checkpoint: ckpt.Checkpoint, objective: Objective, *, first: Path
) -> None:
    for section, mine, theirs, what in (
        ("model", survey.architecture, checkpoint.architecture(), "architecture"),
        ("objective", survey.objective.identity(), objective.identity(), "scheduler or loss"),
    ):
        if mine != theirs:
            raise CheckpointError(
                f"checkpoint {checkpoint.path} has another {what} than {first}: "
                + "; ".join(
                    f"{key} is {theirs.get(key)!r}, not {mine.get(key)!r}"
                    for key in mine
                    if mine.get(key) != theirs.get(key)
                )
                + f". A store holds one {section} only: leave it out of --checkpoints."
            )


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


class _Worker:
    """Does a task: computes a shard's rows, writes and seals them."""

    def __init__(
        self,
        *,
        store: Store,
        samples: Samples,
        folders: Sequence[Path],
        objective: Objective,
        plan: EventPlan,
        projector: Projector,
        scheduler: Any,
        batch_size: int,
        memory: int,
        device: torch.device,
        engine: Callable[[Any, Objective], GradientEngine],
    ) -> None:
        self._store = store
        self._samples = samples
        self._folders = folders
        self._objective = objective
        self._plan = plan
        self._projector = projector
        self._scheduler = scheduler
        self._batch_size = batch_size
        self._memory = memory
        self._device = device
        self._make_engine = engine
        self._loaded: int | None = None
        self._buffer: Tensor | None = None
        self.bar: Any = None

    def __call__(self, task: Task) -> None:
        if task.checkpoint != self._loaded:
            self._load(task.checkpoint)
        start, stop = self._store.layout.span(task.shard)
        write_shard(self._store, task.checkpoint, task.shard, self._rows(task, start, stop))

    def _load(self, number: int) -> None:
        checkpoint = ckpt.load(self._folders[number], scheduler=self._scheduler)
        model = checkpoint.model.to(self._device)
        self._class_conditional = getattr(model.config, "num_class_embeds", None) is not None
        self._model = model
        self._num_parameters = checkpoint.num_parameters
        self._engine = self._make_engine(model, self._objective)
        self._projection: Projection = self._projector.at(
            number, checkpoint.num_parameters, self._device, self._memory // 2
        )
        self._loaded = number

    def _inputs(self, start: int, stop: int) -> tuple[Tensor, dict[str, Tensor]]:
        tensors, conditions = [], []
        for row in range(start, stop):
            tensor = self._samples.tensor(row)
            check_fits(self._model, tuple(tensor.shape), self._samples.ids[row])
            if tensors and tensor.shape != tensors[0].shape:
                raise DatasetError(
                    f"sample {self._samples.ids[row]!r} has shape {tuple(tensor.shape)}, sample "
                    f"{self._samples.ids[start]!r} has {tuple(tensors[0].shape)}: all samples "
                    "must have one shape. Resize with --size."
                )
            tensors.append(tensor)
            condition = self._samples.conditions(row)
            if self._class_conditional and "class_labels" not in condition:
                condition["class_labels"] = self._samples.class_label(row)
            conditions.append(condition)
        stacked = {
            name: torch.stack([condition[name] for condition in conditions]).to(self._device)
            for name in conditions[0]
        }
        return torch.stack(tensors).to(self._device), stacked

    def _rows(self, task: Task, start: int, stop: int) -> Rows:
        layout = self._store.layout
        ids = self._samples.ids[start:stop]
        events = self._plan.at(task.checkpoint, ids)
        inputs, conditions = self._inputs(start, stop)
        count, draws = events.timestep.size, events.key.shape[2]
        sample_of = np.repeat(np.arange(stop - start), layout.slots)
        timesteps = events.timestep.reshape(-1)
        keys = events.key.reshape(count, draws)

        # A quarter of the memory holds gradients that wait to be projected together, and a
        # quarter what the engine needs for a batch: about three gradients a row.
        gradient_bytes = 4 * self._num_parameters
        batch = max(1, min(self._batch_size // draws, self._memory // 4 // (3 * gradient_bytes)))
        held = max(batch, min(count, self._memory // 4 // gradient_bytes))
        if self._buffer is None or len(self._buffer) < held:
            self._buffer = torch.empty(held, self._num_parameters, device=self._device)
        buffer = self._buffer
        direction = np.empty((count, layout.dim), dtype=layout.dtype)
        norm, loss = np.empty(count, np.float32), np.empty(count, np.float32)
        for low in range(0, count, held):
            high = min(low + held, count)
            squared = torch.zeros(high - low, dtype=torch.float64, device=self._device)
            for first in range(low, high, batch):
                last = min(first + batch, high)
                rows = slice(first - low, last - low)
                chosen = torch.as_tensor(sample_of[first:last], device=self._device)
                losses, pieces = self._engine(
                    Batch(
                        inputs=inputs[chosen],
                        timesteps=torch.as_tensor(timesteps[first:last], device=self._device),
                        noise=self._noise(keys[first:last], inputs.shape[1:]),
                        conditions={name: value[chosen] for name, value in conditions.items()},
                    )
                )
                for position, piece in pieces:
                    buffer[rows, position : position + piece.shape[1]] = piece
                    squared[rows] += torch.linalg.vector_norm(piece, dim=1).double().square()
                loss[first:last] = losses.float().cpu().numpy()
                norm[first:last] = squared[rows].sqrt().float().cpu().numpy()
                self._require_finite(task, norm, loss, first, last, ids, timesteps)
                self.bar.update(last - first)
            sketch = torch.zeros(high - low, layout.dim, device=self._device)
            self._projection.add(sketch, 0, buffer[: high - low])
            # A zero gradient has direction zero.
            scale = torch.where(squared > 0, self._projection.scale / squared.sqrt(), 0.0)
            direction[low:high] = (sketch * scale[:, None].float()).cpu().numpy()
        shape = (stop - start, layout.slots)
        return Rows(
            direction=direction.reshape(*shape, layout.dim),
            norm=norm.reshape(shape),
            loss=loss.reshape(shape),
            timestep=timesteps.reshape(shape).astype(np.int32),
        )

    def _noise(self, keys: np.ndarray[Any, Any], shape: Sequence[int]) -> Tensor:
        drawn = np.stack([noise(key, shape) for key in keys.reshape(-1).tolist()])
        return torch.from_numpy(drawn).reshape(*keys.shape, *shape).to(self._device)

    def _require_finite(
        self,
        task: Task,
        norm: np.ndarray[Any, Any],
        loss: np.ndarray[Any, Any],
        first: int,
        last: int,
        ids: Sequence[str],
        timesteps: np.ndarray[Any, Any],
    ) -> None:
        finite = np.isfinite(norm[first:last]) & np.isfinite(loss[first:last])
        if finite.all():
            return
        row = first + int(np.argmin(finite))
        raise GradientError(
            f"the gradient of sample {ids[row // self._store.layout.slots]!r} at checkpoint "
            f"{self._folders[task.checkpoint]}, timestep {timesteps[row]}, is not finite: norm "
            f"{norm[row]}, loss {loss[row]}. Look at the sample, and leave it or the checkpoint "
            "out if it is broken; the shards that were sealed before are safe."
        )
