"""Estimates the time, bytes and memory of collecting from one measured batch."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import torch

from gradstore.arithmetic import precision_of, seconds_each
from gradstore.collect.engines.choice import batch_of, forget
from gradstore.collect.pipeline.batches import trial
from gradstore.collect.projectors import from_spec
from gradstore.store.format.layout import row_columns
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.rows import Rows, given_dtype
from gradstore.store.format.spec import LayoutSpec, ProjectorSpec
from gradstore.store.objects.local import LocalObjects
from gradstore.store.objects.location import objects_at
from gradstore.store.writer import create, write_shard

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from gradstore.collect.pipeline.executors import Task
    from gradstore.collect.pipeline.job import Job
    from gradstore.collect.pipeline.targets import StoreTarget
    from gradstore.collect.projectors import Projector
    from gradstore.store.objects.protocol import Objects

_log = logging.getLogger("gradstore")

# An alternative is shown if it saves a quarter of the time or of the bytes.
_WORTH = 0.75
# Its memory is held before rows are.
_FITTING = "fitting the metric, before"
# Minimum seconds of a trial. Products need fewer, because their time hardly varies.
_ENOUGH = 0.3
_ENOUGH_OF_PRODUCT = 0.1
# Rows of a dense matrix that are drawn for timing, and that are multiplied in the first trial.
_DRAWN_PARAMETERS = 1 << 18
_FIRST_PARAMETERS = 1 << 12
# Numbers passed to a projection to time how it takes gradients.
_TIMED_NUMBERS = 1 << 23
# Checking an engine against one backward pass per row costs about this many events.
_CHECKED = 8


@dataclass(frozen=True)
class Alternative:
    """Other settings and their cost.

    Attributes:
        flags: the settings.
        seconds: total time.
        nbytes: bytes of the store.
    """

    flags: str
    seconds: float
    nbytes: int


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of collecting.

    Attributes:
        samples: number of samples.
        checkpoints: number of checkpoints.
        rows: rows to collect.
        nbytes: bytes of the stores' rows.
        dim: length of a direction; of the longest, if there are several stores.
        engine: name of the gradient engine.
        stages: seconds of each stage; None if the work is too small to be timed.
        memory: bytes of each component that collecting holds at once.
        budget: bytes that it may hold, without the model.
        alternatives: other settings that change the cost a lot.
    """

    samples: int
    checkpoints: int
    rows: int
    nbytes: int
    dim: int
    engine: str
    stages: dict[str, float] | None
    memory: dict[str, int]
    budget: int
    alternatives: list[Alternative]

    @property
    def seconds(self) -> float:
        """Total time; 0 if nothing was timed."""
        return sum((self.stages or {}).values())

    @property
    def held(self) -> int:
        """Bytes held at most, without the model: while a metric is fitted, or while rows are."""
        later = {name: value for name, value in self.memory.items() if name != _FITTING}
        return max(self.memory.get(_FITTING, 0), sum(later.values()) - self.memory["model"])

    def line(self) -> str:
        """The estimate on one line."""
        time = f", about {_time(self.seconds)}" if self.stages else ""
        return (
            f"{self.rows:,} rows, {_bytes(self.nbytes)}{time}, {_bytes(self.held)} of memory, "
            f"engine {self.engine}"
        )

    def __str__(self) -> str:
        lines = [
            (
                f"{self.samples:,} samples × {self.checkpoints} checkpoints: {self.rows:,} rows, "
                f"{_bytes(self.nbytes)}"
            ),
            f"engine: {self.engine}",
            "",
            *[f"  {name:<38} {_time(value):>10}" for name, value in (self.stages or {}).items()],
            f"  {'in all':<38} {_time(self.seconds):>10}",
            "",
            *[f"  memory: {name:<30} {_bytes(value):>10}" for name, value in self.memory.items()],
            f"  {'--memory, without the model':<38} {_bytes(self.budget):>10}",
            *[
                f"\nWith {one.flags}: {_time(one.seconds)}, {_bytes(one.nbytes)}"
                for one in self.alternatives
            ],
        ]
        return "\n".join(lines)


@torch.inference_mode(mode=False)  # the caller may be in inference mode
@torch.enable_grad()
def estimate(
    job: Job, *, tasks: Sequence[Task] | None = None, alternatives: bool = False
) -> Estimate:
    """Time one batch, a projection and a write, and extrapolate.

    Args:
        job: the job to estimate.
        tasks: the tasks to estimate; by default all. Small amounts of work are not timed.
        alternatives: whether to try other projectors and dimensions; then all is timed.
    """
    chosen = job.tasks() if tasks is None else tasks
    layout = job.targets[0].layout
    spans = [layout.span(task.shard) for task in chosen]
    rows = sum(stop - start for start, stop in spans) * layout.slots
    checkpoints = len({task.checkpoint for task in chosen})
    work = _Work(job, rows, checkpoints)
    memory = work.memory()  # before a metric is fitted on trial
    projectors = [target.projector for target in job.targets]
    stages, gradients, trying = None, 0.0, 0.0
    if alternatives or job.timed:
        start = perf_counter()
        gradients = work.gradient_seconds()
        stages = work.stages(projectors, gradients)
        trying = job.choice_seconds + perf_counter() - start if job.timed else 0.0
    common: dict[str, float] = {}
    if alternatives and stages is not None:  # a killed collect must leave no trial files
        dims = [target.layout.dim for target in job.targets]
        common["writing"] = work.nbytes(dims) * _write_seconds(job.targets[0])
        common["choosing an engine, and this estimate"] = trying  # which collect repeats
        stages |= {name: seconds for name, seconds in common.items() if seconds > 0}
    found = []
    if alternatives and stages is not None:
        for flags, projector in _others(job.targets[0], job.device):
            seconds = sum([*work.stages([projector], gradients).values(), *common.values()])
            nbytes = work.nbytes([projector.dim(job.num_parameters)])
            saved = seconds < _WORTH * sum(stages.values())
            if saved or nbytes < _WORTH * work.nbytes([job.targets[0].layout.dim]):
                found.append(Alternative(flags, seconds, nbytes))
    dims = [target.layout.dim for target in job.targets]
    return Estimate(
        samples=layout.samples,
        checkpoints=checkpoints,
        rows=rows,
        nbytes=work.nbytes(dims),
        dim=max(dims),
        engine=job.choice.name,
        stages=stages,
        memory=memory,
        budget=job.budget.total,
        alternatives=found,
    )


class _Work:
    """A number of rows of a job."""

    def __init__(self, job: Job, rows: int, checkpoints: int) -> None:
        self._job = job
        self._rows = rows
        self._checkpoints = checkpoints
        self._excerpts: dict[tuple[ProjectorSpec, int], tuple[float, float]] = {}
        self._fit: float | None = None

    def nbytes(self, dims: Sequence[int]) -> int:
        """Bytes of the rows of stores with these dimensions."""
        itemsize = np.dtype(self._job.targets[0].layout.dtype).itemsize
        columns = 4 * len(self._job.targets[0].layout.columns or row_columns("float16"))
        return sum(self._rows * (dim * itemsize + columns) for dim in dims)

    def memory(self) -> dict[str, int]:
        """Bytes held at once, by purpose."""
        job = self._job
        projections = [self._at(target.projector) for target in job.targets]
        held = self._held(projections)
        metric, model = job.metric, job.survey.model
        fitting = 0 if metric is None else metric.require_memory(model, job.budget, job.numbers)
        return {
            "model": sum(p.nbytes for p in model.parameters()),
            f"{job.budget.events} events at once": job.budget.engine,
            "projection": sum(one.nbytes for one in projections),
            f"{held} rows waiting": held
            * sum(one.width * one.dtype.itemsize for one in projections),
            "a shard's rows": job.budget.shard,
            **({_FITTING: fitting + job.budget.engine} if fitting else {}),
        }

    def _at(self, projector: Projector) -> Any:
        job = self._job
        memory = job.budget.projection // len(job.targets)
        return projector.at(0, job.num_parameters, job.device, memory)

    def _held(self, projections: Sequence[Any]) -> int:
        layout = self._job.targets[0].layout
        return min(
            self._job.budget.rows(projections),
            layout.shard_samples * layout.slots,
            layout.samples * layout.slots,
        )

    def stages(self, projectors: Sequence[Projector], gradients: float) -> dict[str, float]:
        """Seconds of each stage with these projectors and these seconds per event's gradient."""
        job = self._job
        full = [self._at(projector) for projector in projectors]
        held = self._held(full)
        draws = job.plan.at(0, job.samples.ids[:1]).key.shape[2]
        once = each = 0.0
        for projector, projection in zip(projectors, full, strict=True):
            taking = self._taking_seconds(projection)
            drawn, product = self._product_seconds(projector, projection, held)
            if getattr(projection, "kept", True):
                once += drawn
            else:
                product += drawn / held
            each += taking + product
        checked = _CHECKED * gradients + job.load_seconds
        found = {
            "reading the dataset, twice": job.read_seconds * (1 + self._checkpoints),
            "loading and checking checkpoints": self._checkpoints * checked,
            "fitting the metric": self._fitting_seconds(),
            "gradients": self._rows * gradients * draws,
            "drawing the projection": self._checkpoints * once,
            "projecting": self._rows * each,
        }
        return {name: seconds for name, seconds in found.items() if seconds > 0}

    def _fitting_seconds(self) -> float:
        """Seconds of the fits of the metric that are to be made."""
        job, metric = self._job, self._job.metric
        pending = 0 if metric is None else metric.pending(job.numbers)
        if metric is None or not pending:
            return 0.0
        if self._fit is None:
            _log.info("estimate: timing a fit of metric %s", metric.metric.name)
            rows = max(2, min(job.budget.events, len(job.samples) * job.plan.slots))
            model, objective = job.survey.model, job.survey.objective
            batch = trial(job.samples, job.plan, job.numbers[0], model, job.device, rows=rows)
            self._fit = metric.fitting_seconds(job.load(0, trial=True), objective, batch)
        return pending * self._fit

    def gradient_seconds(self) -> float:
        """Seconds per event, for the gradients alone."""
        job = self._job
        rows = min(job.budget.events, len(job.samples) * job.plan.slots)
        _log.info("estimate: timing gradients, at most %s events at once", rows)
        number, model = job.numbers[0], job.survey.model
        batch = trial(job.samples, job.plan, number, model, job.device, rows=rows)
        loaded = job.load(0, trial=True)

        def differentiate(count: int) -> None:
            found = loaded.differentiate(batch_of(batch, 0, count), count, forget)
            found.norms.cpu()  # waits for a GPU

        # A trial starts at full size only if the engine was timed at that size before.
        first = 2 if job.choice.seconds is None else len(batch)
        return seconds_each(differentiate, len(batch), first=first, enough=_ENOUGH)

    def _taking_seconds(self, projection: Any) -> float:
        """Seconds per row for a projection to take incoming gradients."""
        length = self._job.num_parameters
        rows = max(1, min(8, _TIMED_NUMBERS // length))
        size = min(length, _TIMED_NUMBERS // rows)
        piece = torch.ones(rows, size, device=self._job.device)
        buffer = torch.zeros(
            rows, projection.width, dtype=projection.dtype, device=self._job.device
        )

        def take(count: int) -> None:
            projection.add(buffer, 0, piece[:, :count])
            buffer[:, :1].cpu()  # waits for a GPU

        return seconds_each(take, size, first=1 << 12) * length / rows

    def _product_seconds(
        self, projector: Projector, projection: Any, held: int
    ) -> tuple[float, float]:
        """Seconds of the work once per checkpoint, and per row of turning buffers into sketches."""
        if hasattr(projector, "excerpt"):
            return self._dense_seconds(projector.excerpt(), held)
        buffer = self._buffer(projection, min(held, _TIMED_NUMBERS // projection.width))

        def finish(count: int) -> None:
            projection.finish(buffer[:count]).cpu()

        return 0.0, seconds_each(finish, len(buffer), enough=_ENOUGH)

    def _dense_seconds(self, excerpt: tuple[Any, float], held: int) -> tuple[float, float]:
        """The same for a dense matrix, whose cost is proportional to its rows and columns."""
        few, factor = excerpt
        key = few.spec, held  # a matrix of fewer columns may have the same excerpt
        if key not in self._excerpts:
            self._excerpts[key] = self._excerpt_seconds(few, held)
        drawn, product = self._excerpts[key]
        return drawn * factor, product * factor / held

    def _excerpt_seconds(self, few: Any, held: int) -> tuple[float, float]:
        """Seconds to draw a few blocks of a matrix, and to multiply this many rows with them."""
        job = self._job
        _log.info("estimate: timing the product with the matrix, %s rows at once", held)

        def seconds(length: int, rows: int) -> tuple[float, float]:
            """Seconds of the first product, which draws the matrix, and of another."""
            made = few.at(0, length, job.device, job.budget.total)
            buffer = self._buffer(made, rows)
            taken = []
            for _ in range(2):
                start = perf_counter()
                made.finish(buffer).cpu()
                taken.append(perf_counter() - start)
            return taken[0], taken[1]

        length = min(job.num_parameters, _DRAWN_PARAMETERS)
        first, second = seconds(length, 1)
        drawn = max(0.0, first - second) * job.num_parameters / length
        length = min(job.num_parameters, _FIRST_PARAMETERS)
        while True:
            product = min(seconds(length, held))
            if product >= _ENOUGH_OF_PRODUCT or length == job.num_parameters:
                break
            length = min(job.num_parameters, 4 * length)
        return drawn, product * job.num_parameters / length

    def _buffer(self, projection: Any, rows: int) -> Tensor:
        shape = (max(1, rows), projection.width)
        return torch.zeros(shape, dtype=projection.dtype, device=self._job.device)


def _others(target: StoreTarget, device: torch.device) -> list[tuple[str, Projector]]:
    """Possibly much cheaper settings of a store's projector, each with its flags."""
    projector = target.projector
    found = list(getattr(projector, "alternatives", list)())
    spec = getattr(projector, "spec", None)
    if isinstance(spec, ProjectorSpec) and spec.projector == "trak":
        fast = precision_of("auto", device.type)
        if spec.precision not in {"auto", fast}:
            other = spec.model_copy(update={"precision": fast})
            found.append((f"--precision {fast}", from_spec(other)))
    return found


def _write_seconds(target: StoreTarget) -> float:
    """Seconds per byte, from writing one shard next to the store and removing it."""
    layout = target.layout
    samples = min(layout.samples, layout.shard_samples)
    one = replace(layout, samples=samples)
    part = target.part.model_copy(update={"path": "", "layout": LayoutSpec.of(one)})
    spec = target.spec.model_copy(update={"parts": [part], "deleted": None, "retired": []})
    names = [str(number) for number in range(samples)]
    shape = (samples, layout.slots)
    rows = Rows(
        direction=np.zeros((*shape, layout.dim), given_dtype(layout.dtype)),
        norm=np.zeros(shape, np.float32),
        loss=np.zeros(shape, np.float32),
        timestep=np.zeros(shape, np.int32),
        raw_norm=np.zeros(shape, np.float32),
        sigma=np.zeros(shape, np.float32),
    )
    with _trial_place(target) as place:
        store = create(place, spec, Manifest(names, names, {}))
        start = perf_counter()
        write_shard(store.parts[0], store.numbers[0], 0, rows)
        return (perf_counter() - start) / (rows.direction.size * np.dtype(layout.dtype).itemsize)


@contextmanager
def _trial_place(target: StoreTarget) -> Iterator[Objects]:
    """Yield a temporary location for a trial store next to the target; remove it afterwards."""
    name = f".gradstore-plan-{uuid4().hex}"
    if isinstance(target.objects, LocalObjects):
        parents = target.objects.root.resolve().parents
        beside = str(next(folder for folder in parents if folder.is_dir()) / name)
    else:
        beside = f"{target.location.rsplit('/', 1)[0]}/{name}"
    place = objects_at(beside)
    try:
        yield place
    finally:
        place.remove_all("")


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"
