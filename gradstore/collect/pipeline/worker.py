"""Runs tasks: computes, writes and seals the rows of a shard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradstore.collect import devices
from gradstore.collect.pipeline.batches import EventRows, event_rows, trial
from gradstore.collect.pipeline.differentiating import Differentiated
from gradstore.errors import GradientError
from gradstore.store.format.rows import Rows, given_dtype
from gradstore.store.writer import write_shard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from gradstore.collect.data.samples import Samples
    from gradstore.collect.events.protocol import EventPlan
    from gradstore.collect.pipeline.budget import Budget
    from gradstore.collect.pipeline.differentiating import LoadedCheckpoint
    from gradstore.collect.pipeline.executors import Task
    from gradstore.collect.projectors import Projection, Projector
    from gradstore.store.part import Part


class Worker:
    """Runs tasks: computes, writes and seals a shard's rows in every part that lacks them.

    Args:
        parts: parts of stores to fill, each with the projector of its directions. They share
            samples, checkpoints, events and shards.
        samples: the samples.
        plan: their events.
        load: loads a checkpoint by its index.
        numbers: the number of each checkpoint in the stores.
        sigmas: the objective's noise levels by timestep, if it has any.
        budget: the division of memory.
        device: device of the gradients.
        bar: progress bar, advanced with every row.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Part, Projector]],
        samples: Samples,
        plan: EventPlan,
        load: Callable[[int], LoadedCheckpoint],
        *,
        numbers: Sequence[int],
        sigmas: Tensor | None,
        budget: Budget,
        device: torch.device,
        bar: Any,
    ) -> None:
        self._parts = parts
        self._numbers = numbers
        self._sigmas = None if sigmas is None else sigmas.cpu().numpy().astype(np.float32)
        self._samples = samples
        self._plan = plan
        self._load = load
        self._budget = budget
        self._device = device
        self._prepared: int | None = None
        self._bar = bar

    def __call__(self, task: Task) -> None:
        """Compute, write and seal the rows of the task."""
        # Checked now: another process may have sealed the shard since.
        wanted = [
            place
            for place, (part, _) in enumerate(self._parts)
            if not part.has_seal(self._numbers[task.checkpoint], task.shard)
        ]
        if not wanted:
            return
        if task.checkpoint != self._prepared:
            self._prepare(task.checkpoint)
        start, stop = self._parts[0][0].layout.span(task.shard)
        made = self._rows(task, start, stop, wanted)
        for place, rows in zip(wanted, made, strict=True):
            number = self._numbers[task.checkpoint]
            part = self._parts[place][0]
            write_shard(part, number, task.shard, rows, metric=self._loaded.whitened)

    def _prepare(self, place: int) -> None:
        self._prepared = None
        self._projections: list[Projection] = []  # frees the previous ones, unless cached
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
        norm, raw_norm, loss = (np.empty(count, np.float32) for _ in range(3))
        timestep = np.empty(count, np.int32)
        samples = max(1, held // slots)
        for first in range(start, stop, samples):
            last = min(first + samples, stop)
            part = self._part(task.checkpoint, first, last)
            offset = (first - start) * slots
            timestep[offset + part.order] = part.timesteps
            for low in range(0, len(part), held):
                high = min(low + held, len(part))
                here = offset + part.order[low:high]
                found = self._differentiate(part, low, high, wanted)
                norms = found.norms
                norm[here], loss[here] = norms.cpu().numpy(), found.losses.cpu().numpy()
                raw_norm[here] = found.raw_norms.cpu().numpy()
                self._bar.doing("projecting")
                for direction, place in zip(directions, wanted, strict=True):
                    projection = self._projections[place]
                    sketch = projection.finish(self._buffers[place][: high - low])
                    # A zero gradient has direction zero. In float64, 1 / norm does not overflow.
                    scale = torch.where(norms > 0, projection.scale / norms, 0.0)
                    direction[here] = devices.exact(sketch).mul_(scale[:, None]).cpu().numpy()
        shape = (stop - start, slots)
        return [
            Rows(
                direction=direction.reshape(*shape, -1),
                norm=norm.reshape(shape),
                loss=loss.reshape(shape),
                timestep=timestep.reshape(shape),
                raw_norm=raw_norm.reshape(shape) if self._loaded.whitened is not None else None,
                sigma=None if self._sigmas is None else self._sigmas[timestep].reshape(shape),
            )
            for direction in directions
        ]

    def _part(self, checkpoint: int, first: int, last: int) -> EventRows:
        return event_rows(
            self._samples,
            range(first, last),
            self._loaded.model,
            self._plan,
            number=self._numbers[checkpoint],
            device=self._device,
        )

    def _differentiate(
        self, part: EventRows, low: int, high: int, wanted: Sequence[int]
    ) -> Differentiated:
        """Fill the buffers with rows `low` to `high`; return their norms and losses."""
        loaded, events = self._loaded, self._budget.events
        self._bar.doing("")
        norms = devices.exact(torch.zeros(high - low, device=self._device))
        losses, raw_norms = torch.empty_like(norms), torch.empty_like(norms)
        targets = [(self._projections[place], self._buffers[place]) for place in wanted]
        for _, buffer in targets:
            buffer[: high - low].zero_()
        for first, last in part.cuts(low, high, max(1, events // part.draws)):
            here = slice(first - low, last - low)

            def receive(start: int, piece: Tensor, here: slice = here) -> None:
                for projection, buffer in targets:
                    projection.add(buffer[here], start, piece)

            one = loaded.differentiate(part.batch(slice(first, last)), events, receive)
            losses[here], norms[here], raw_norms[here] = one.losses, one.norms, one.raw_norms
            # Checked in the stored dtype.
            numbers = torch.stack([one.losses, one.norms, one.raw_norms]).float()
            good = torch.isfinite(numbers).all(0)
            if not bool(good.all()):
                row = first + int(torch.argmin(good.to(torch.int8)))
                raise GradientError(
                    f"the gradient of {part.name(row)} at checkpoint {loaded.folder} is not "
                    f"finite: norm {norms[row - low].item()}, loss {losses[row - low].item()}. "
                    "Inspect the sample, and exclude it or the checkpoint if it is broken; sealed "
                    "shards are safe."
                )
            self._bar.update(last - first)
        return Differentiated(losses, norms, raw_norms)
