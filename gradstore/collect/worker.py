"""Doing a task: a shard's gradients computed, projected, written and sealed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradstore.collect import checkpoints as ckpt
from gradstore.collect.events import Events, noise
from gradstore.collect.objective import Batch, check_fits, class_count
from gradstore.errors import CheckpointError, DatasetError, GradientError, GradstoreError
from gradstore.rows import Rows
from gradstore.writer import write_shard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from gradstore.collect.events import EventPlan
    from gradstore.collect.executor import Task
    from gradstore.collect.gradients import GradientEngine
    from gradstore.collect.objective import Objective
    from gradstore.collect.projectors import Projector
    from gradstore.collect.samples import Sample, Samples
    from gradstore.reader import Store


class LoadedCheckpoint:
    """A checkpoint ready to give gradients.

    Attributes:
        folder: where it was read from.
        num_parameters: length of a gradient.
    """

    def __init__(
        self,
        folder: Path,
        objective: Objective,
        engine: Callable[[Any, Objective], GradientEngine],
        device: torch.device,
    ) -> None:
        loaded = ckpt.load(folder)
        self.folder = folder
        self.num_parameters = loaded.num_parameters
        self._device = device
        self._model = loaded.model.to(device)
        self._engine = engine(self._model, objective)

    def read(self, samples: Samples, start: int, stop: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Samples `start` to `stop` (one past the last), checked, as inputs and conditions.

        Raises:
            DatasetError: if one does not fit, or is not what it was when the dataset was scanned.
        """
        read = [samples[row] for row in range(start, stop)]
        for sample, digest in zip(read, samples.manifest.digests[start:stop], strict=True):
            check_sample(sample, self._model, read[0])
            if sample.digest() != digest:
                raise DatasetError(
                    f"the dataset gives something else each time it is asked for sample "
                    f"{sample.name!r} (random augmentation?). Give it without randomness."
                )
        given = [conditions(sample, self._model) for sample in read]
        stacked = {name: torch.stack([one[name] for one in given]) for name in given[0]}
        return (
            torch.stack([sample.tensor for sample in read]).to(self._device),
            {name: value.to(self._device) for name, value in stacked.items()},
        )

    def differentiate(self, batch: Batch, events: int, buffer: Tensor) -> tuple[Tensor, Tensor]:
        """Write a batch's gradients into `buffer`, `[rows, num_parameters]`, of any float dtype.

        Args:
            batch: rows and their noises.
            events: how many events (rows × noises) to compute at once; a row's noises are cut
                into parts if they are more.
            buffer: where the gradients go.

        Returns:
            Losses and norms (float64), both `[rows]`.
        """
        draws = batch.noise.shape[1]
        losses = torch.zeros(len(batch), dtype=torch.float64, device=self._device)
        squared = torch.zeros_like(losses)
        parts = torch.split(batch.noise, max(1, min(draws, events)), dim=1)
        # Parts are summed in float32, whatever dtype the buffer has.
        total = buffer if len(parts) == 1 else torch.zeros(buffer.shape, device=self._device)
        for noises in parts:
            part, pieces = self._engine(
                Batch(batch.inputs, batch.timesteps, noises, batch.conditions)
            )
            share = noises.shape[1] / draws
            losses += share * part
            for position, piece in pieces:
                target = total[:, position : position + piece.shape[1]]
                if len(parts) == 1:
                    target.copy_(piece)
                    squared += _squared_norm(piece)
                else:
                    target.add_(piece, alpha=share)
        if len(parts) > 1:
            buffer.copy_(total)
            squared = _squared_norm(total)
        return losses, squared.sqrt()


def _squared_norm(gradients: Tensor) -> Tensor:
    # In float64: squares of small gradients vanish in float32.
    norms: Tensor = torch.linalg.vector_norm(gradients, dim=1, dtype=torch.float64)
    return norms.square()


def check_sample(sample: Sample, model: Any, first: Sample) -> None:
    """Raise `DatasetError` unless a model takes a sample, and it has the first one's shape."""
    shape = tuple(sample.tensor.shape)
    check_fits(model, shape, sample.name)
    if shape != tuple(first.tensor.shape):
        raise DatasetError(
            f"sample {sample.name!r} has shape {shape}, sample {first.name!r} has "
            f"{tuple(first.tensor.shape)}: all samples must have one shape. Resize with --size."
        )
    if conditions(sample, model).keys() != conditions(first, model).keys():
        raise DatasetError(
            f"sample {sample.name!r} has conditions {sorted(sample.conditions)}, sample "
            f"{first.name!r} has {sorted(first.conditions)}: all samples must have the same."
        )


def conditions(sample: Sample, model: Any) -> dict[str, Tensor]:
    """What a model is given of a sample beside the noisy input; its class where it wants one."""
    classes = class_count(model)
    if classes is None or "class_labels" in sample.conditions:
        return sample.conditions
    return {**sample.conditions, "class_labels": sample.class_label(classes)}


def rehearse(loaded: LoadedCheckpoint, samples: Samples, plan: EventPlan) -> None:
    """Differentiate the first sample, so that what cannot work fails before anything is made.

    Raises:
        CheckpointError: if model, objective and sample do not work together.
    """
    events = plan.at(0, samples.ids[:1])
    one = Events(events.timestep[:, :1], events.key[:, :1, :1])
    shard = _Shard(samples.ids[:1], *loaded.read(samples, 0, 1), one)
    try:
        loaded.differentiate(shard.batch(0, 1), 1, torch.empty(1, loaded.num_parameters))
    except GradstoreError:
        raise
    except Exception as error:  # whatever a foreign model raises
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"the gradient of sample {samples.ids[0]!r} at checkpoint {loaded.folder} cannot be "
            f"computed: {type(error).__name__}: {reason}. Check that samples and conditions are "
            "what the model takes; for a model that vmap cannot run, pass engine=LoopEngine."
        ) from error


class Worker:
    """Does tasks: computes a shard's rows, writes and seals them."""

    def __init__(
        self,
        store: Store,
        samples: Samples,
        plan: EventPlan,
        projector: Projector,
        load: Callable[[int], LoadedCheckpoint],
        *,
        batch_size: int,
        memory: int,
        device: torch.device,
    ) -> None:
        self._store = store
        self._samples = samples
        self._plan = plan
        self._projector = projector
        self._load = load
        self._batch_size = batch_size
        self._memory = memory
        self._device = device
        self._number: int | None = None
        self._buffer: Tensor | None = None
        self.bar: Any = None

    def __call__(self, task: Task) -> None:
        """Compute the task's rows, write them and seal them."""
        if task.checkpoint != self._number:
            self._loaded = self._load(task.checkpoint)
            self._projection = self._projector.at(
                task.checkpoint, self._loaded.num_parameters, self._device, self._memory // 2
            )
            self._number = task.checkpoint
        start, stop = self._store.layout.span(task.shard)
        write_shard(self._store, task.checkpoint, task.shard, self._rows(task, start, stop))

    def _rows(self, task: Task, start: int, stop: int) -> Rows:
        layout, loaded = self._store.layout, self._loaded
        ids = self._samples.ids[start:stop]
        events = self._plan.at(task.checkpoint, ids)
        shard = _Shard(ids, *loaded.read(self._samples, start, stop), events)
        # A quarter of the memory holds gradients that wait to be projected together, and a
        # quarter what the engine needs for a batch: about three gradients a row.
        room = self._memory // 4 // loaded.num_parameters
        batch = max(1, min(self._batch_size // events.key.shape[2], room // (3 * 4)))
        dtype = self._projection.dtype
        held = max(batch, min(len(shard), room // dtype.itemsize))
        if self._buffer is None or len(self._buffer) < held:
            self._buffer = torch.empty(
                held, loaded.num_parameters, dtype=dtype, device=self._device
            )
        direction = np.empty((len(shard), layout.dim), dtype=layout.dtype)
        norm, loss = np.empty(len(shard), np.float32), np.empty(len(shard), np.float32)
        for low in range(0, len(shard), held):
            high = min(low + held, len(shard))
            norms = torch.empty(high - low, dtype=torch.float64, device=self._device)
            for first in range(low, high, batch):
                last = min(first + batch, high)
                here = slice(first - low, last - low)
                losses, norms[here] = loaded.differentiate(
                    shard.batch(first, last), self._batch_size, self._buffer[here]
                )
                loss[first:last] = losses.cpu().numpy()
                norm[first:last] = norms[here].cpu().numpy()
                finite = np.isfinite(norm[first:last]) & np.isfinite(loss[first:last])
                if not finite.all():
                    row = first + int(np.argmin(finite))
                    raise GradientError(
                        f"the gradient of {shard.name(row)} at checkpoint {loaded.folder} is not "
                        f"finite: norm {norm[row]}, loss {loss[row]}. Look at the sample, and "
                        "leave it or the checkpoint out if it is broken; the shards that were "
                        "sealed before are safe."
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

    def batch(self, first: int, last: int) -> Batch:
        """Rows `first` to `last` (one past the last), ready for the engine."""
        device = self._inputs.device
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
