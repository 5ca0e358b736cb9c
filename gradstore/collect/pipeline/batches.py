"""Builds batches for the engines from samples and events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradstore.collect.events.noise import noise
from gradstore.collect.objectives.diffusion import check_fits, class_count
from gradstore.collect.objectives.protocol import Batch
from gradstore.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from gradstore.collect.data.samples import Sample, Samples
    from gradstore.collect.events.protocol import EventPlan, Events


def read(
    samples: Samples, start: int, stop: int, model: Any, device: torch.device
) -> tuple[Tensor, dict[str, Tensor]]:
    """Read and check samples `start` to `stop` (exclusive); return inputs and conditions.

    Raises:
        DatasetError: if one does not fit, or has changed since the dataset was scanned.
    """
    taken = [samples[row] for row in range(start, stop)]
    for sample, digest in zip(taken, samples.manifest.digests[start:stop], strict=True):
        check_sample(sample, model, taken[0])
        if sample.digest() != digest:
            raise DatasetError(
                f"the dataset returns different data at each read of sample {sample.name!r} "
                "(random augmentation?). Remove the randomness."
            )
    given = [conditions(sample, model) for sample in taken]
    stacked = {name: torch.stack([one[name] for one in given]) for name in given[0]}
    return (
        torch.stack([sample.tensor for sample in taken]).to(device),
        {name: value.to(device) for name, value in stacked.items()},
    )


def check_sample(sample: Sample, model: Any, first: Sample) -> None:
    """Raise `DatasetError` unless a sample fits the model and matches the first sample."""
    shape = tuple(sample.tensor.shape)
    check_fits(model, shape, sample.name, encoded=bool(sample.content))
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
    """A sample's conditions for the model, with its class if the model needs one."""
    classes = class_count(model)
    if classes is None or "class_labels" in sample.conditions:
        return sample.conditions
    return {**sample.conditions, "class_labels": sample.class_label(classes)}


class EventRows:
    """Rows of some samples, flattened over samples and slots."""

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
        """Name of a row in error messages."""
        return f"sample {self._ids[self._sample[row]]!r}, timestep {self.timesteps[row]},"

    def batch(self, rows: slice | NDArray[np.int64]) -> Batch:
        """A batch of some of the rows, for the engine."""
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
    """Some rows with one noise each, from as many samples as possible, to try an engine."""
    count = min(rows, len(samples))
    ids = samples.ids[:count]
    events = plan.at(number, ids)
    draws = events.key.shape[2]
    single = type(events)(
        np.repeat(events.timestep, draws, axis=1), events.key.reshape(count, -1, 1)
    )
    part = EventRows(ids, *read(samples, 0, count, model, device), single)
    # The first sample's first event, the next one's second, …: neighbours differ in timestep.
    each = len(part) // count
    order = [
        sample * each + (sample + shift) % each for shift in range(each) for sample in range(count)
    ]
    return part.batch(np.array(order[:rows]))
