"""Doing a task: a shard's gradients computed, projected, written and sealed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradstore.collect import devices
from gradstore.collect.engines import LoopEngine
from gradstore.collect.engines.choice import require_agreement, tolerance_of
from gradstore.collect.events import noise
from gradstore.collect.objective import Batch, check_fits, class_count
from gradstore.collect.parameters import num_parameters
from gradstore.errors import DatasetError, EngineError, GradientError
from gradstore.rows import Rows, given_dtype
from gradstore.writer import write_shard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from gradstore.collect.budget import Budget
    from gradstore.collect.engines import EngineMaker, GradientEngine, Receive
    from gradstore.collect.events import EventPlan, Events
    from gradstore.collect.executor import Task
    from gradstore.collect.objective import Objective
    from gradstore.collect.projectors import Projection, Projector
    from gradstore.collect.samples import Sample, Samples
    from gradstore.part import Part


_SEGMENT = 1 << 14


class LoadedCheckpoint:
    """A checkpoint ready to give gradients.

    Attributes:
        folder: where it was read from.
        model: its model, on the device.
        num_parameters: length of a gradient.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        objective: Objective,
        engine: EngineMaker,
        device: torch.device,
    ) -> None:
        self.folder = folder
        self.model = model.to(device)
        self.num_parameters = num_parameters(model)
        self._device = device
        self._objective = objective
        self._engine: GradientEngine = engine(self.model, objective)
        self._checked = False

    @property
    def checked(self) -> bool:
        """Whether there is nothing left to `check`."""
        return self._checked or isinstance(self._engine, LoopEngine)

    def check(self, batch: Batch) -> None:
        """Hold the engine to one backward pass per row, with these weights.

        At another checkpoint it may have been right because a layer behind had no gradient.

        Raises:
            EngineError: if they differ.
        """
        try:
            require_agreement(
                type(self._engine).__name__,
                self._engine,
                LoopEngine(self.model, self._objective),
                batch,
                tolerance_of(self._objective),
            )
        except EngineError as error:
            raise EngineError(f"checkpoint {self.folder}: {error}") from error
        self._checked = True  # it stays the same where it stays in memory

    def differentiate(self, batch: Batch, events: int, receive: Receive) -> tuple[Tensor, Tensor]:
        """Compute a batch's gradients and hand them over in pieces.

        Args:
            batch: rows and their noises.
            events: how many events (rows × noises) to compute at once; a row's noises are cut
                into parts if they are more.
            receive: where the gradients go; see `GradientEngine`.

        Returns:
            Losses and norms, both `[rows]`, as `devices.exact` has them.
        """
        squared = devices.exact(torch.zeros(len(batch), device=self._device))

        def whole(start: int, piece: Tensor) -> None:
            squared.add_(_norms(piece).square())
            receive(start, piece)

        draws = batch.noise.shape[1]
        parts = torch.split(batch.noise, max(1, min(draws, events)), dim=1)
        if len(parts) == 1:
            losses = devices.exact(self._engine(batch, whole))
            return losses, squared.sqrt()
        losses = torch.zeros_like(squared)
        total = torch.zeros(len(batch), self.num_parameters, device=self._device)
        for noises in parts:
            share = noises.shape[1] / draws

            def part(start: int, piece: Tensor, share: float = share) -> None:
                total[:, start : start + piece.shape[1]].add_(piece, alpha=share)

            own = Batch(batch.inputs, batch.timesteps, noises, batch.conditions)
            losses += devices.exact(share * self._engine(own, part))
        whole(0, total)
        return losses, squared.sqrt()


def _norms(piece: Tensor) -> Tensor:
    """L2 norm of each row, `[rows]`, as `devices.exact` has it."""
    if not piece.is_cuda:
        # Ten times faster on a CPU, in lengths of which a float32 sum is right to 1e-6: over 10^8
        # entries it would be short by a per cent. Squares keep their range where this holds.
        norms = _segmented(piece)
        if all(1e-12 < norm < 1e12 for norm in norms.tolist()):
            return norms
        if devices.exact_dtype(piece.device) != torch.float64:
            largest = piece.abs().amax(1)
            unit = torch.where(largest > 0, largest, 1.0)
            return devices.exact(largest) * _segmented(piece / unit[:, None])
    wide: Tensor = torch.linalg.vector_norm(piece, dim=1, dtype=torch.float64)
    return wide


def _segmented(piece: Tensor) -> Tensor:
    """L2 norm of each row, by float32 sums of some entries each."""
    norms: Tensor
    if piece.shape[1] <= _SEGMENT:
        norms = devices.exact(torch.linalg.vector_norm(piece, dim=1))
    else:
        pieces = torch.split(piece, _SEGMENT, dim=1)
        segments = [torch.linalg.vector_norm(one, dim=1) for one in pieces]
        norms = torch.linalg.vector_norm(devices.exact(torch.stack(segments, 1)), dim=1)
    return norms


def read(
    samples: Samples, start: int, stop: int, model: Any, device: torch.device
) -> tuple[Tensor, dict[str, Tensor]]:
    """Samples `start` to `stop` (one past the last), checked, as inputs and conditions.

    Raises:
        DatasetError: if one does not fit, or is not what it was when the dataset was scanned.
    """
    taken = [samples[row] for row in range(start, stop)]
    for sample, digest in zip(taken, samples.manifest.digests[start:stop], strict=True):
        check_sample(sample, model, taken[0])
        if sample.digest() != digest:
            raise DatasetError(
                f"the dataset gives something else each time it is asked for sample "
                f"{sample.name!r} (random augmentation?). Give it without randomness."
            )
    given = [conditions(sample, model) for sample in taken]
    stacked = {name: torch.stack([one[name] for one in given]) for name in given[0]}
    return (
        torch.stack([sample.tensor for sample in taken]).to(device),
        {name: value.to(device) for name, value in stacked.items()},
    )


def check_sample(sample: Sample, model: Any, first: Sample) -> None:
    """Raise `DatasetError` unless a model takes a sample, and it has the first one's shape."""
    shape = tuple(sample.tensor.shape)
    check_fits(model, shape, sample.name)
    if shape != tuple(first.tensor.shape):
        raise DatasetError(
            f"sample {sample.name!r} has shape {shape}, sample {first.name!r} has "
            f"{tuple(first.tensor.shape)}: all samples must have one shape. Resize with --size."
        )
    mine, others = (
        {name: f"{name} {value.dtype} {tuple(value.shape)}" for name, value in given.items()}
        for given in (conditions(sample, model), conditions(first, model))
    )
    if mine != others:
        raise DatasetError(
            f"sample {sample.name!r} has conditions {sorted(mine.values())}, sample "
            f"{first.name!r} has {sorted(others.values())}: all samples must have the same."
        )


def conditions(sample: Sample, model: Any) -> dict[str, Tensor]:
    """What a model is given of a sample beside the noisy input; its class where it wants one."""
    classes = class_count(model)
    if classes is None or "class_labels" in sample.conditions:
        return sample.conditions
    return {**sample.conditions, "class_labels": sample.class_label(classes)}


class Worker:
    """Does tasks: computes a shard's rows, writes and seals them wherever they are missing.

    Args:
        parts: parts of stores to fill, each with the projector that makes its directions. They
            have the same samples, checkpoints, events and shards.
        samples: the samples.
        plan: their events.
        load: gives a checkpoint by its place.
        numbers: the number of each checkpoint in the stores.
        budget: how much memory goes where.
        device: where gradients are computed.
        bar: is advanced with every row.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Part, Projector]],
        samples: Samples,
        plan: EventPlan,
        load: Callable[[int], LoadedCheckpoint],
        *,
        numbers: Sequence[int],
        budget: Budget,
        device: torch.device,
        bar: Any,
    ) -> None:
        self._parts = parts
        self._numbers = numbers
        self._samples = samples
        self._plan = plan
        self._load = load
        self._budget = budget
        self._device = device
        self._prepared: int | None = None
        self._bar = bar

    def __call__(self, task: Task) -> None:
        """Compute the task's rows, write them and seal them."""
        # As it is now: another process may have done it since.
        wanted = [
            place
            for place, (part, _) in enumerate(self._parts)
            if task.shard not in part.sealed(self._numbers[task.checkpoint])
        ]
        if not wanted:
            return
        if task.checkpoint != self._prepared:
            self._prepare(task.checkpoint)
        start, stop = self._parts[0][0].layout.span(task.shard)
        made = self._rows(task, start, stop, wanted)
        for place, rows in zip(wanted, made, strict=True):
            number = self._numbers[task.checkpoint]
            write_shard(self._parts[place][0], number, task.shard, rows)

    def _prepare(self, place: int) -> None:
        self._prepared = None
        self._projections: list[
            Projection
        ] = []  # the old checkpoint's go first, unless they are kept
        self._buffers: list[Tensor] = []
        self._bar.doing("loading a checkpoint")
        self._loaded = self._load(place)
        if not self._loaded.checked:
            batch = trial(
                self._samples, self._plan, self._numbers[place], self._loaded.model, self._device,
                rows=2,
            )  # fmt: skip
            self._loaded.check(batch)
        self._projections = [
            projector.at(
                self._numbers[place],
                self._loaded.num_parameters,
                self._device,
                self._budget.projection // len(self._parts),
            )
            for _, projector in self._parts
        ]
        layout = self._parts[0][0].layout
        most = min(self._budget.rows(self._projections), layout.shard_samples * layout.slots)
        self._buffers = [
            torch.empty(most, one.width, dtype=one.dtype, device=self._device)
            for one in self._projections
        ]
        self._prepared = place

    def _rows(self, task: Task, start: int, stop: int, wanted: Sequence[int]) -> list[Rows]:
        slots, held = self._parts[0][0].layout.slots, len(self._buffers[0])
        count = (stop - start) * slots
        directions = [
            np.empty((count, layout.dim), given_dtype(layout.dtype))
            for layout in (self._parts[place][0].layout for place in wanted)
        ]
        norm, loss = np.empty(count, np.float32), np.empty(count, np.float32)
        timestep = np.empty(count, np.int32)
        samples = max(1, held // slots)
        for first in range(start, stop, samples):
            last = min(first + samples, stop)
            part = self._part(task.checkpoint, first, last)
            offset = (first - start) * slots
            timestep[offset : offset + len(part)] = part.timesteps
            for low in range(0, len(part), held):
                high = min(low + held, len(part))
                here = slice(offset + low, offset + high)
                norms, loss[here] = self._differentiate(part, low, high, wanted)
                norm[here] = norms.cpu().numpy()
                self._bar.doing("projecting")
                for direction, place in zip(directions, wanted, strict=True):
                    projection = self._projections[place]
                    sketch = projection.finish(self._buffers[place][: high - low])
                    # A zero gradient has direction zero. In float64, lest 1 / norm overflows.
                    scale = torch.where(norms > 0, projection.scale / norms, 0.0)
                    direction[here] = devices.exact(sketch).mul_(scale[:, None]).cpu().numpy()
        shape = (stop - start, slots)
        return [
            Rows(
                direction=direction.reshape(*shape, -1),
                norm=norm.reshape(shape),
                loss=loss.reshape(shape),
                timestep=timestep.reshape(shape),
            )
            for direction in directions
        ]

    def _part(self, checkpoint: int, first: int, last: int) -> _Events:
        ids = self._samples.ids[first:last]
        inputs = read(self._samples, first, last, self._loaded.model, self._device)
        return _Events(ids, *inputs, self._plan.at(self._numbers[checkpoint], ids))

    def _differentiate(
        self, part: _Events, low: int, high: int, wanted: Sequence[int]
    ) -> tuple[Tensor, Any]:
        """Fill the buffers with rows `low` to `high`; their norms (`devices.exact`) and losses."""
        loaded, events = self._loaded, self._budget.events
        self._bar.doing("")
        norms = devices.exact(torch.zeros(high - low, device=self._device))
        losses = torch.empty_like(norms)
        targets = [(self._projections[place], self._buffers[place]) for place in wanted]
        for _, buffer in targets:
            buffer[: high - low].zero_()
        for first, last in _cuts(low, high, max(1, events // part.draws)):
            here = slice(first - low, last - low)

            def receive(start: int, piece: Tensor, here: slice = here) -> None:
                for projection, buffer in targets:
                    projection.add(buffer[here], start, piece)

            losses[here], norms[here] = loaded.differentiate(
                part.batch(slice(first, last)), events, receive
            )
            # As they will be stored.
            good = torch.isfinite(norms[here].float()) & torch.isfinite(losses[here].float())
            if not bool(good.all()):
                row = first + int(torch.argmin(good.to(torch.int8)))
                raise GradientError(
                    f"the gradient of {part.name(row)} at checkpoint {loaded.folder} is not "
                    f"finite: norm {norms[row - low].item()}, loss {losses[row - low].item()}. "
                    "Look at the sample, and leave it or the checkpoint out if it is broken; the "
                    "shards that were sealed before are safe."
                )
            self._bar.update(last - first)
        return norms, losses.cpu().numpy()


def _cuts(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


class _Events:
    """Some samples' rows, flattened over samples and slots."""

    def __init__(
        self, ids: Sequence[str], inputs: Tensor, conditions: dict[str, Tensor], events: Events
    ) -> None:
        samples, slots, self.draws = events.key.shape
        self._ids = ids
        self._inputs = inputs
        self._conditions = conditions
        self._sample = np.repeat(np.arange(samples), slots)
        self.timesteps = events.timestep.reshape(-1)
        self._keys = events.key.reshape(-1, self.draws)

    def __len__(self) -> int:
        return len(self._sample)

    def name(self, row: int) -> str:
        """What to call a row in an error."""
        return f"sample {self._ids[self._sample[row]]!r}, timestep {self.timesteps[row]},"

    def batch(self, rows: slice | NDArray[np.int64]) -> Batch:
        """Some of the rows, ready for the engine."""
        device = self._inputs.device
        chosen = torch.as_tensor(self._sample[rows], device=device)
        shape = tuple(self._inputs.shape[1:])
        keys = self._keys[rows]
        drawn = np.stack([noise(key, shape) for key in keys.reshape(-1).tolist()])
        return Batch(
            inputs=self._inputs[chosen],
            timesteps=torch.as_tensor(self.timesteps[rows], device=device),
            noise=torch.from_numpy(drawn).reshape(*keys.shape, *shape).to(device),
            conditions={name: value[chosen] for name, value in self._conditions.items()},
        )


def trial(
    samples: Samples,
    plan: EventPlan,
    number: int,
    model: nn.Module,
    device: torch.device,
    *,
    rows: int,
) -> Batch:
    """Some rows of one noise each, of as many samples as there are, to try an engine on."""
    count = min(rows, len(samples))
    ids = samples.ids[:count]
    events = plan.at(number, ids)
    draws = events.key.shape[2]
    single = type(events)(
        np.repeat(events.timestep, draws, axis=1), events.key.reshape(count, -1, 1)
    )
    part = _Events(ids, *read(samples, 0, count, model, device), single)
    # One sample's first event, the next one's second, and so on: neighbours have other timesteps.
    each = len(part) // count
    order = [
        sample * each + (sample + shift) % each for shift in range(each) for sample in range(count)
    ]
    return part.batch(np.array(order[:rows]))
