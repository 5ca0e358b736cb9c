"""Recomputes full gradients of stored samples: weighted sums, and inner products with them.

A store keeps projections only. This module recomputes full gradients from samples, checkpoints and
events. All three must match the store; this is checked, down to each gradient's norm.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack
from uuid import uuid4

import numpy as np
import torch

from gradstore.collect import devices
from gradstore.collect.data.samples import Samples
from gradstore.collect.engines.choice import CAST_TOLERANCE, TOLERANCE, tolerance_of
from gradstore.collect.events.planned import PlannedEvents
from gradstore.collect.events.replayed import ReplayedEvents
from gradstore.collect.models.cache import recorded_loader
from gradstore.collect.pipeline.batches import event_rows
from gradstore.collect.pipeline.prepare import prepare
from gradstore.collect.provenance import Provenance, recorded_dataset, recorded_gradients
from gradstore.collect.recorded import Recorded
from gradstore.errors import ConfigError, FingerprintError
from gradstore.progress import progress, quietly
from gradstore.store.format.columns import at
from gradstore.store.format.fingerprint import require_same
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.spec import ProjectorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from gradstore.collect.engines import Receive
    from gradstore.collect.events.protocol import EventPlan
    from gradstore.collect.models.protocol import Loader
    from gradstore.collect.objectives.protocol import Batch
    from gradstore.collect.pipeline.differentiating import LoadedCheckpoint
    from gradstore.collect.pipeline.job import Job
    from gradstore.collect.pipeline.options import CollectOptions
    from gradstore.store.reader import Store

# Stored norms are float32 and engines differ by rounding: ten times the engines' tolerance.
_SLACK: Final = 10
# The job is prepared for the smallest possible rows; none is collected.
_NO_ROWS: Final = ProjectorSpec(projector="sjlt", proj_dim=1)


class Unprojected:
    """Recomputes the full gradients of some samples of a store, a few at a time.

    Args:
        store: the store.
        samples: sample numbers, ascending.
        dataset: the store's dataset, with at least these samples; by default the one that the
            store records.
        checkpoints: the store's checkpoints, if they moved, or their loader.
        options: as in `collect`; objective, events and gradients are the store's.

    Raises:
        ConfigError: if the store records no dataset and none is given.
        DatasetError: if a sample is missing from the dataset or has changed.
        FingerprintError: if checkpoints, objective or events differ from the store's.
    """

    def __init__(
        self,
        store: Store,
        samples: NDArray[np.int64],
        dataset: Any = None,
        *,
        checkpoints: Sequence[str | Path] | Loader | None = None,
        **options: Unpack[CollectOptions],
    ) -> None:
        self._store, self._numbers = store, samples
        recorded = Recorded.of(store)
        loader = recorded_loader(store, checkpoints)
        given: dict[str, Any] = {
            "objective": recorded.objective.spec(),
            "events": _events(recorded, loader.folders, store.numbers),
            "gradients": recorded_gradients(store),
            "metric": store,
            "etas": store.etas,
            **options,
        }
        self._tolerance = max(
            _tolerance(recorded, Provenance.of(part.spec)) for part in store.parts
        )
        self._jobs: list[tuple[NDArray[np.int64], Job]] = []
        for own, found in _found(store, samples, dataset):
            # A path that does not exist and is never created.
            nowhere = Path(tempfile.gettempdir()) / f"{uuid4().hex}.gradstore"
            job = prepare(
                found.only(at(store.manifest.ids, own)),
                loader,
                {nowhere: _NO_ROWS},
                **given,
            )
            expected = store.manifest.chosen(own)
            bare = Manifest(expected.ids, expected.digests)
            bare.require_same(job.samples.manifest, store=store.location)
            require_same(
                store.spec.identity,
                job.targets[0].spec.identity,
                expected_name=store.location,
                found_name="the current input",
                sections=("model", "checkpoints", "objective", "events", "noise", "metric"),
                mend="give the checkpoints and events that the store was made from",
            )
            self._jobs.append((own, job))

    def sums(self, checkpoint: int, weights: NDArray[np.float32]) -> Tensor:
        """Compute weighted sums of the gradients at a checkpoint.

        Args:
            checkpoint: index of the checkpoint.
            weights: weight of each gradient in each sum, float32 `[sums, samples, slots]`.

        Returns:
            float32 `[sums, parameters]`, on the device. Memory also holds the gradients that the
            engine computes at once within the memory budget.
        """
        total: Tensor | None = None
        flat = weights.reshape(len(weights), -1)
        for piece in self._pieces(checkpoint):
            device = piece.batch.inputs.device
            if total is None:
                total = torch.zeros(len(weights), piece.loaded.num_parameters, device=device)
            shares = torch.from_numpy(np.ascontiguousarray(flat[:, piece.rows])).to(device)

            def add(start: int, part: Tensor, sums: Tensor = total, by: Tensor = shares) -> None:
                sums[:, start : start + part.shape[1]] += by @ part.float()

            self._differentiate(checkpoint, piece, add)
        if total is None:
            raise ConfigError("no samples were given. Name at least one.")
        return total

    def products(self, checkpoint: int, sums: Tensor) -> NDArray[np.float32]:
        """Compute inner products of the gradients at a checkpoint with given vectors.

        Args:
            checkpoint: index of the checkpoint.
            sums: the vectors, float32 `[sums, parameters]`.

        Returns:
            float32 `[sums, samples, slots]`.
        """
        out = np.empty((len(sums), len(self._numbers) * self._store.slots), np.float32)
        for piece in self._pieces(checkpoint):
            shape = (len(sums), len(piece.rows))
            found = devices.exact(torch.zeros(shape, device=sums.device))

            def add(start: int, part: Tensor, found: Tensor = found) -> None:
                found.add_(devices.exact(sums[:, start : start + part.shape[1]] @ part.float().T))

            self._differentiate(checkpoint, piece, add)
            out[:, piece.rows] = found.cpu().numpy()
        return out.reshape(len(sums), len(self._numbers), self._store.slots)

    def _pieces(self, checkpoint: int) -> Iterator[_Piece]:
        slots, number = self._store.slots, self._store.numbers[checkpoint]
        with quietly(self._jobs[0][1].quiet):
            shown = progress(len(self._numbers) * slots, "true gradients", "rows")
        with shown as bar:
            for own, job in self._jobs:
                loaded, events = job.load(checkpoint), job.budget.events
                ids = job.samples.ids
                draws = job.plan.at(number, ids[:1]).key.shape[2]
                most = max(1, events // draws)
                step = max(1, most // slots)
                for first in range(0, len(own), step):
                    last = min(first + step, len(own))
                    place = np.searchsorted(self._numbers, own[first:last])
                    some = range(first, last)
                    part = event_rows(
                        job.samples, some, loaded.model, job.plan, number=number, device=job.device
                    )
                    for low, high in part.cuts(0, len(part), most):
                        sample, slot = np.divmod(part.order[low:high], slots)
                        batch = part.batch(slice(low, high))
                        yield _Piece(place[sample] * slots + slot, batch, loaded, events)
                        bar.update(len(batch))

    @torch.inference_mode(mode=False)  # the caller may be in inference mode
    @torch.enable_grad()
    def _differentiate(self, checkpoint: int, piece: _Piece, receive: Receive) -> None:
        norms = piece.loaded.differentiate(piece.batch, piece.events, receive).norms
        sample, slot = np.divmod(piece.rows, self._store.slots)
        own, place = np.unique(sample, return_inverse=True)
        stored = self._store.column("norm", checkpoint, self._numbers[own])[place, slot]
        found = norms.cpu().numpy()
        tolerance = _SLACK * max(self._tolerance, tolerance_of(self._jobs[0][1].survey.objective))
        wrong = np.flatnonzero(~np.isclose(found, stored, rtol=tolerance, atol=1e-12))
        if len(wrong):
            name = self._store.manifest.ids[int(self._numbers[sample[wrong[0]]])]
            raise FingerprintError(
                f"a gradient of sample {name!r} at checkpoint {piece.loaded.folder} has norm "
                f"{found[wrong[0]]:g}, but {self._store.location} holds {stored[wrong[0]]:g}: "
                "its inputs differ from the store's. Check the store with gradstore verify."
            )


@dataclass(frozen=True)
class _Piece:
    """Rows to differentiate at once.

    Attributes:
        rows: their indices in the flattened samples × slots.
        batch: their events.
        loaded: the checkpoint.
        events: number of events that the engine gets at once.
    """

    rows: NDArray[np.int64]
    batch: Batch
    loaded: LoadedCheckpoint
    events: int


def _tolerance(recorded: Recorded, made_by: Provenance) -> float:
    """Tolerance of a store's gradients relative to exact ones, by their arithmetic."""
    cast = "bfloat16" in {recorded.objective.autocast, made_by.arithmetic.get("gradients")}
    return CAST_TOLERANCE if cast else TOLERANCE


def _found(
    store: Store, samples: NDArray[np.int64], dataset: Any
) -> Iterator[tuple[NDArray[np.int64], Samples]]:
    """Yield the numbers of the samples in each dataset of a store, and these samples."""
    if dataset is not None:
        yield samples, Samples.of(dataset).read_as(Provenance.of(store.parts[0].spec).reading)
        return
    for part, low, high in store.spans():
        own = np.unique(samples[(samples >= low) & (samples < high)])
        if len(own):
            yield own, Samples.from_spec(recorded_dataset(store, part.spec))


def _events(recorded: Recorded, folders: Sequence[Path], numbers: Sequence[int]) -> EventPlan:
    """The event plan of a store's rows, planned or replayed."""
    steps, spec = int(recorded.objective.num_train_timesteps or 0), recorded.events.spec()
    if spec.events == "planned":
        return PlannedEvents(spec, steps, recorded.events.role)
    return ReplayedEvents(folders, steps, numbers)
