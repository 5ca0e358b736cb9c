"""What collecting will take, measured on one batch: time, bytes and memory."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import torch

from gradstore.collect.projectors import SjltProjector, TrakProjector
from gradstore.collect.worker import trial
from gradstore.layout import Layout
from gradstore.manifest import Manifest
from gradstore.objects import LocalObjects, objects_at
from gradstore.rows import Rows, given_dtype
from gradstore.rows import columns as row_columns
from gradstore.spec import LayoutSpec
from gradstore.writer import create, write_shard

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from gradstore.collect.executor import Task
    from gradstore.collect.job import Job, Target
    from gradstore.collect.projectors import Projector
    from gradstore.objects import Objects

# An alternative is worth a line if it saves a quarter of the time or of the bytes.
_WORTH = 0.75
# Of a dense matrix no more rows are timed.
_TIMED_PARAMETERS = 1 << 21
# The smaller projection dimension that is looked at.
_FEWER = 4


@dataclass(frozen=True)
class Alternative:
    """Other settings, and what they would take.

    Attributes:
        flags: the settings.
        seconds: in all.
        nbytes: of the store.
    """

    flags: str
    seconds: float
    nbytes: int


@dataclass(frozen=True)
class Estimate:
    """The bill of collecting, before it.

    Attributes:
        samples: number of samples.
        checkpoints: number of checkpoints.
        rows: rows to collect.
        nbytes: bytes of the stores' rows.
        dim: length of a direction; of the longest, where there are several stores.
        engine: name of the gradient engine.
        stages: seconds of each stage; None if so little is to be done that nothing was timed.
        memory: bytes of each part that collecting holds at once.
        budget: bytes that it may hold, the model not counted.
        alternatives: other settings that would change the bill a lot.
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
        """Time in all; 0 if nothing was timed."""
        return sum((self.stages or {}).values())

    def line(self) -> str:
        """The bill on one line."""
        time = f", about {_time(self.seconds)}" if self.stages else ""
        held = sum(value for name, value in self.memory.items() if name != "model")
        return (
            f"{self.rows:,} rows, {_bytes(self.nbytes)}{time}, {_bytes(held)} of memory, "
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
            f"  {'--memory, the model not counted':<38} {_bytes(self.budget):>10}",
            *[
                f"\nWith {one.flags}: {_time(one.seconds)}, {_bytes(one.nbytes)}"
                for one in self.alternatives
            ],
        ]
        return "\n".join(lines)


@torch.inference_mode(mode=False)  # whatever the caller is in the middle of
@torch.enable_grad()
def estimate(
    job: Job, *, tasks: Sequence[Task] | None = None, alternatives: bool = False
) -> Estimate:
    """Time one batch, a projection and a write, and multiply.

    Args:
        job: what is to be collected.
        tasks: which part of it; by default all. Little work is not timed.
        alternatives: whether to look at other projectors and dimensions; then all is timed.
    """
    chosen = job.tasks() if tasks is None else tasks
    layout = job.targets[0].layout
    spans = [layout.span(task.shard) for task in chosen]
    rows = sum(stop - start for start, stop in spans) * layout.slots
    checkpoints = len({task.checkpoint for task in chosen})
    work = _Work(job, rows, checkpoints)
    projectors = [target.projector for target in job.targets]
    stages = work.stages(projectors) if alternatives or job.timed else None
    if alternatives and stages is not None:  # collect itself leaves no trial files, if it is killed
        dims = [target.layout.dim for target in job.targets]
        stages["writing"] = work.nbytes(dims) * _write_seconds(job.targets[0])
    found = []
    if alternatives and stages is not None:
        for flags, projector in _others(job.targets[0]):
            seconds = sum(work.stages([projector]).values())
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
        memory=work.memory(),
        budget=job.budget.total,
        alternatives=found,
    )


class _Work:
    """So many rows of a job."""

    def __init__(self, job: Job, rows: int, checkpoints: int) -> None:
        self._job = job
        self._rows = rows
        self._checkpoints = checkpoints

    def nbytes(self, dims: Sequence[int]) -> int:
        """Bytes of the rows of stores of these dimensions."""
        itemsize = np.dtype(self._job.targets[0].layout.dtype).itemsize
        columns = 4 * len(row_columns(self._job.targets[0].layout.dtype))
        return sum(self._rows * (dim * itemsize + columns) for dim in dims)

    def memory(self) -> dict[str, int]:
        """Bytes held at once, by what for."""
        job = self._job
        projections = [self._at(target.projector) for target in job.targets]
        held = self._held(projections)
        return {
            "model": sum(p.nbytes for p in job.survey.model.parameters()),
            f"{job.budget.events} events at once": job.budget.engine,
            "projection": sum(one.nbytes for one in projections),
            f"{held} rows waiting": held
            * sum(one.width * one.dtype.itemsize for one in projections),
            "a shard's rows": job.budget.shard,
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

    def stages(self, projectors: Sequence[Projector]) -> dict[str, float]:
        """Seconds of each stage with these projectors."""
        job = self._job
        full = [self._at(projector) for projector in projectors]
        held = self._held(full)
        draws = job.plan.at(0, job.samples.ids[:1]).key.shape[2]
        gradients = self._batch_seconds(full, held) * draws
        once = each = 0.0
        for projector, projection in zip(projectors, full, strict=True):
            drawn, product = self._projection_seconds(projector, held)
            if getattr(projection, "kept", True):
                once += drawn
            else:
                product += drawn
            each += product / held
        found = {
            "reading the dataset, twice": job.read_seconds * (1 + self._checkpoints),
            "gradients": self._rows * gradients,
            "drawing the projection": self._checkpoints * once,
            "projecting": self._rows * each,
        }
        return {name: seconds for name, seconds in found.items() if seconds > 0}

    def _batch_seconds(self, projections: Sequence[Any], held: int) -> float:
        """Per event, with what the projections do as gradients come."""
        job = self._job
        rows = min(job.budget.events, held)
        batch = trial(
            job.samples, job.plan, job.numbers[0], job.survey.model, job.device, rows=rows
        )
        loaded = job.load(0)
        buffers = [
            torch.zeros(len(batch), one.width, dtype=one.dtype, device=job.device)
            for one in projections
        ]

        def receive(start: int, piece: Tensor) -> None:
            for projection, buffer in zip(projections, buffers, strict=True):
                projection.add(buffer, start, piece)

        start = perf_counter()
        _, norms = loaded.differentiate(batch, len(batch), receive)
        norms.cpu()  # waits for a GPU
        return (perf_counter() - start) / len(batch)

    def _projection_seconds(self, projector: Projector, held: int) -> tuple[float, float]:
        """Of what is done once per checkpoint, and of turning a full buffer into sketches."""
        job, length, factor = self._job, self._job.num_parameters, 1.0
        if isinstance(projector, TrakProjector):
            # The cost of a dense matrix is in proportion to its rows and columns.
            projector, factor = projector.excerpt()
            length = min(length, _TIMED_PARAMETERS)
            factor *= job.num_parameters / length
        projection = projector.at(0, length, job.device, job.budget.projection)
        buffer = torch.zeros(held, projection.width, dtype=projection.dtype, device=job.device)
        seconds = []
        for _ in range(2):
            start = perf_counter()
            projection.finish(buffer).cpu()
            seconds.append(perf_counter() - start)
        return factor * max(0.0, seconds[0] - seconds[1]), factor * seconds[1]


def _others(target: Target) -> list[tuple[str, Projector]]:
    """Other settings of a store's projector that may be much cheaper."""
    found: list[tuple[str, Projector]] = []
    projector = target.projector
    if isinstance(projector, TrakProjector):
        spec = projector.spec
        sparse = spec.model_copy(update={"projector": "sjlt", "block_size": None})
        found.append(("--projector sjlt", SjltProjector(sparse)))
        if spec.precision == "float32":
            half = spec.model_copy(update={"precision": "bfloat16"})
            found.append(("--precision bfloat16", TrakProjector(half)))
    if isinstance(projector, TrakProjector | SjltProjector):
        spec = projector.spec
        if spec.proj_dim >= _FEWER * 64:
            fewer = spec.model_copy(update={"proj_dim": spec.proj_dim // _FEWER})
            flags = f"--proj-dim {fewer.proj_dim} (noisier scores)"
            found.append((flags, type(projector)(fewer)))
    return found


def _write_seconds(target: Target) -> float:
    """Per byte, from writing one shard beside where the store will be, and removing it."""
    layout = target.layout
    samples = min(layout.samples, layout.shard_samples)
    one = Layout(
        samples, layout.slots, layout.dim, layout.dtype, layout.chunk_samples, layout.shard_samples
    )
    part = target.part.model_copy(update={"path": "", "layout": LayoutSpec.of(one)})
    spec = target.spec.model_copy(update={"parts": [part], "deleted": None, "retired": []})
    names = [str(number) for number in range(samples)]
    shape = (samples, layout.slots)
    rows = Rows(
        direction=np.zeros((*shape, layout.dim), given_dtype(layout.dtype)),
        norm=np.zeros(shape, np.float32),
        loss=np.zeros(shape, np.float32),
        timestep=np.zeros(shape, np.int32),
    )
    with _trial_place(target) as place:
        store = create(place, spec, Manifest(names, names, {}))
        start = perf_counter()
        write_shard(store.parts[0], store.numbers[0], 0, rows)
        return (perf_counter() - start) / (rows.direction.size * np.dtype(layout.dtype).itemsize)


@contextmanager
def _trial_place(target: Target) -> Iterator[Objects]:
    """Where a store can be tried and is gone afterwards: beside where the target is or will be."""
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
