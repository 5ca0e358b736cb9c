"""Doing a task: a shard's gradients computed, projected, written and sealed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradstore.collect import checkpoints as ckpt
from gradstore.collect.events import noise
from gradstore.collect.objective import Batch, Objective, check_fits
from gradstore.errors import DatasetError, GradientError
from gradstore.rows import Rows
from gradstore.writer import write_shard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from gradstore.collect.events import EventPlan, Events
    from gradstore.collect.executor import Task
    from gradstore.collect.gradients import GradientEngine
    from gradstore.collect.projectors import Projection, Projector
    from gradstore.collect.samples import Samples
    from gradstore.reader import Store


class Worker:
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
        """Compute the task's rows, write them and seal them."""
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
        tensors: list[Tensor] = []
        conditions: list[dict[str, Tensor]] = []
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
        events = self._plan.at(task.checkpoint, self._samples.ids[start:stop])
        inputs, conditions = self._inputs(start, stop)
        shard = _Shard(self._samples.ids[start:stop], inputs, conditions, events)
        # A quarter of the memory holds gradients that wait to be projected together, and a
        # quarter what the engine needs for a batch: about three gradients a row.
        room = self._memory // 4 // (4 * self._num_parameters)
        batch = max(1, min(self._batch_size // events.key.shape[2], room // 3))
        held = max(batch, min(len(shard), room))
        if self._buffer is None or len(self._buffer) < held:
            self._buffer = torch.empty(held, self._num_parameters, device=self._device)
        direction = np.empty((len(shard), layout.dim), dtype=layout.dtype)
        norm, loss = np.empty(len(shard), np.float32), np.empty(len(shard), np.float32)
        for low in range(0, len(shard), held):
            high = min(low + held, len(shard))
            norms = torch.empty(high - low, dtype=torch.float64, device=self._device)
            for first in range(low, high, batch):
                last = min(first + batch, high)
                here = slice(first - low, last - low)
                losses, norms[here] = self._differentiate(
                    shard.batch(first, last, self._device), self._buffer[here]
                )
                loss[first:last] = losses.float().cpu().numpy()
                norm[first:last] = norms[here].float().cpu().numpy()
                finite = np.isfinite(norm[first:last]) & np.isfinite(loss[first:last])
                if not finite.all():
                    row = first + int(np.argmin(finite))
                    raise GradientError(
                        f"the gradient of {shard.name(row)} at checkpoint "
                        f"{self._folders[task.checkpoint]} is not finite: norm {norm[row]}, loss "
                        f"{loss[row]}. Look at the sample, and leave it or the checkpoint out if "
                        "it is broken; the shards that were sealed before are safe."
                    )
                self.bar.update(last - first)
            sketch = torch.zeros(high - low, layout.dim, device=self._device)
            self._projection.add(sketch, 0, self._buffer[: high - low])
            # A zero gradient has direction zero. In float64, lest 1 / norm overflows.
            scale = torch.where(norms > 0, self._projection.scale / norms, 0.0)
            direction[low:high] = (sketch * scale[:, None]).cpu().numpy()
        shape = (stop - start, layout.slots)
        return Rows(
            direction=direction.reshape(*shape, layout.dim),
            norm=norm.reshape(shape),
            loss=loss.reshape(shape),
            timestep=events.timestep.astype(np.int32),
        )

    def _differentiate(self, batch: Batch, buffer: Tensor) -> tuple[Tensor, Tensor]:
        """Write a batch's gradients into `buffer`; return losses, and norms in float64."""
        losses, pieces = self._engine(batch)
        squared = torch.zeros(len(batch), dtype=torch.float64, device=self._device)
        for position, piece in pieces:
            buffer[:, position : position + piece.shape[1]] = piece
            squared += torch.linalg.vector_norm(piece, dim=1).double().square()
        return losses, squared.sqrt()


class _Shard:
    """A shard's rows, flattened over samples and slots."""

    def __init__(
        self, ids: Sequence[str], inputs: Tensor, conditions: dict[str, Tensor], events: Events
    ) -> None:
        samples, slots, draws = events.key.shape
        self._ids = ids
        self._inputs = inputs
        self._conditions = conditions
        self._sample = np.repeat(np.arange(samples), slots)
        self._timesteps = events.timestep.reshape(-1)
        self._keys = events.key.reshape(-1, draws)

    def __len__(self) -> int:
        return len(self._sample)

    def name(self, row: int) -> str:
        """What to call a row in an error."""
        return f"sample {self._ids[self._sample[row]]!r}, timestep {self._timesteps[row]},"

    def batch(self, first: int, last: int, device: torch.device) -> Batch:
        """Rows `first` to `last` (one past the last), ready for the engine."""
        chosen = torch.as_tensor(self._sample[first:last], device=device)
        shape = tuple(self._inputs.shape[1:])
        keys = self._keys[first:last]
        drawn = np.stack([noise(key, shape) for key in keys.reshape(-1).tolist()])
        return Batch(
            inputs=self._inputs[chosen],
            timesteps=torch.as_tensor(self._timesteps[first:last], device=device),
            noise=torch.from_numpy(drawn).reshape(*keys.shape, *shape).to(device),
            conditions={name: value[chosen] for name, value in self._conditions.items()},
        )
