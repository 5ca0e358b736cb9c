"""Builds batches for the engines from samples and events."""

from __future__ import annotations

import logging
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradstore.collect.events.noise import noise
from gradstore.collect.objectives.calling import FURTHER
from gradstore.collect.objectives.diffusion import check_fits, class_count, made_size
from gradstore.collect.objectives.protocol import Batch
from gradstore.errors import CheckpointError, DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from gradstore.collect.data.sample import Sample
    from gradstore.collect.data.samples import Samples
    from gradstore.collect.events.protocol import EventPlan, Events
    from gradstore.collect.objectives.protocol import Objective

_log = logging.getLogger("gradstore")


def event_rows(
    samples: Samples,
    rows: Sequence[int],
    model: Any,
    plan: EventPlan,
    *,
    number: int,
    device: torch.device,
) -> EventRows:
    """Rows of samples at the checkpoint with a number; see `EventRows` and `read`."""
    ids = [samples.ids[row] for row in rows]
    events = plan.at(number, ids)
    return EventRows(ids, *read(samples, rows, model, events), events, device)


def read(
    samples: Samples, rows: Sequence[int], model: Any, events: Events
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Read and check samples by number; return inputs, and conditions `[samples, …]`.

    Samples that an event flips are flipped.

    Raises:
        DatasetError: if one does not fit, or has changed since the dataset was scanned.
    """
    taken = [samples[row] for row in rows]
    for row, sample in zip(rows, taken, strict=True):
        check_sample(sample, model, taken[0])
        if sample.digest() != samples.manifest.digests[row]:
            raise DatasetError(
                f"the dataset returns different data at each read of sample {sample.name!r} "
                "(random augmentation?). Remove the randomness."
            )
    if events.flip is not None:
        taken = [
            samples.flipped(row) if turned else sample
            for row, sample, turned in zip(rows, taken, events.flip.tolist(), strict=True)
        ]
    given = [conditions(sample, model) for sample in taken]
    stacked = {name: torch.stack([one[name] for one in given]) for name in given[0]}
    return [sample.tensor for sample in taken], stacked


def check_sample(sample: Sample, model: Any, first: Sample) -> None:
    """Raise `DatasetError` unless a sample fits the model and goes with the first sample."""
    shape, other = tuple(sample.tensor.shape), tuple(first.tensor.shape)
    further = sample.conditions.get(FURTHER)
    check_fits(
        model,
        shape,
        sample.name,
        further=None if further is None else tuple(further.shape),
        encoded=bool(sample.content),
        sized=sample.sized,
    )
    alike = len(shape) == len(other) and shape[:1] == other[:1]
    if shape != other and not (alike and sample.sized):
        raise DatasetError(
            f"sample {sample.name!r} has shape {shape}, sample {first.name!r} has {other}. Resize "
            "with --size; or, if the model was trained on images of several sizes, take each at "
            "its own with --resize keep."
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


@torch.no_grad()
def check_sizes(
    samples: Samples, plan: EventPlan, number: int, model: Any, objective: Objective
) -> None:
    """Raise `DatasetError` unless the model takes a sample of each shape that is not its own."""
    made_for = made_size(model)
    first = {shape: row for row, shape in reversed(list(enumerate(samples.shapes)))}
    for shape, row in first.items():
        if shape[1:] == made_for or (made_for is None and len(first) == 1):
            continue
        name, device = samples.ids[row], next(iter(model.parameters())).device
        rows = event_rows(samples, [row], model, plan, number=number, device=device)
        one = rows.batch(slice(0, 1))
        told = f"sample {name!r} has shape {list(shape)}" + (
            f", and the model was made for {made_for[1]}×{made_for[0]}" if made_for else ""
        )
        try:
            objective.losses(model, one.inputs, one.timesteps, one.noise[:, 0], one.conditions)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, AssertionError, CheckpointError) as error:
            raise DatasetError(
                f"{told}. It does not take this size ({error}). Resize with --size."
            ) from error
        if not samples[row].content:
            _log.warning("%s: it is taken as it is", told)


def conditions(sample: Sample, model: Any) -> dict[str, Tensor]:
    """A sample's conditions for the model, with its class if the model needs one."""
    classes = class_count(model)
    if classes is None or "class_labels" in sample.conditions:
        return sample.conditions
    return {**sample.conditions, "class_labels": sample.class_label(classes)}


class EventRows:
    """Rows of some samples, flattened over samples and slots; those of one shape are together.

    Args:
        ids: the samples' ids.
        inputs: their inputs.
        conditions: their conditions, `[samples, …]` each.
        events: their events.
        device: device of the batches.

    Attributes:
        order: number of each row in the samples' own order, flattened over samples and slots.
        timesteps: timestep of each row.
        draws: noises of each row.
    """

    def __init__(
        self,
        ids: Sequence[str],
        inputs: Sequence[Tensor],
        conditions: Mapping[str, Tensor],
        events: Events,
        device: torch.device,
    ) -> None:
        slots, self.draws = events.key.shape[1:]
        self._ids = ids
        members: dict[tuple[int, ...], list[int]] = {}
        for number, one in enumerate(inputs):
            members.setdefault(tuple(one.shape), []).append(number)
        groups = list(members.values())
        self._inputs = [torch.stack([inputs[row] for row in own]).to(device) for own in groups]
        self._conditions = {name: value.to(device) for name, value in conditions.items()}
        sample = np.concatenate(groups)
        self._sample = np.repeat(sample, slots)
        # Of each row, the group of its shape and its sample's place in it.
        self._group = np.repeat(np.arange(len(groups)), [len(own) * slots for own in groups])
        self._place = np.repeat(np.concatenate([np.arange(len(own)) for own in groups]), slots)
        self.order = (sample[:, None] * slots + np.arange(slots)).reshape(-1)
        self.timesteps = events.timestep.reshape(-1)[self.order]
        self._keys = events.key.reshape(-1, self.draws)[self.order]

    def __len__(self) -> int:
        return len(self._sample)

    def name(self, row: int) -> str:
        """Name of a row in error messages."""
        return f"sample {self._ids[self._sample[row]]!r}, timestep {self.timesteps[row]},"

    def cuts(self, start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
        """Split rows `start` to `stop` (exclusive) into batches of one shape, at most `size`."""
        while start < stop:
            end = np.searchsorted(self._group, self._group[start], side="right")
            last = min(start + size, stop, int(end))
            yield start, last
            start = last

    def batch(self, rows: slice | NDArray[np.int64]) -> Batch:
        """A batch of some of the rows, which have one shape, for the engine."""
        inputs = self._inputs[self._group[rows][0]]
        shape, device = tuple(inputs.shape[1:]), inputs.device
        keys = self._keys[rows]
        drawn = np.stack([noise(key, shape) for key in keys.reshape(-1).tolist()])
        chosen = torch.as_tensor(self._sample[rows], device=device)
        return Batch(
            inputs=inputs[torch.as_tensor(self._place[rows], device=device)],
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
    """Some rows with one noise each, from as many samples as possible, to try an engine.

    Of several shapes it is the largest, which takes most memory.
    """
    largest = max(samples.shapes, key=prod)
    chosen = [row for row, shape in enumerate(samples.shapes) if shape == largest][:rows]
    count = len(chosen)
    ids = [samples.ids[row] for row in chosen]
    events = plan.at(number, ids)
    draws = events.key.shape[2]
    single = replace(
        events,
        timestep=np.repeat(events.timestep, draws, axis=1),
        key=events.key.reshape(count, -1, 1),
    )
    part = EventRows(ids, *read(samples, chosen, model, single), single, device)
    # The first sample's first event, the next one's second, …: neighbours differ in timestep.
    each = len(part) // count
    order = [
        sample * each + (sample + shift) % each for shift in range(each) for sample in range(count)
    ]
    return part.batch(np.array(order[:rows]))
