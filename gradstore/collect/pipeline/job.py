"""A job: the checked input of collecting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gradstore.collect.capabilities import can
from gradstore.collect.models.parameters import num_parameters
from gradstore.collect.objectives.wrappers import sigmas
from gradstore.collect.pipeline.differentiating import LoadedCheckpoint
from gradstore.collect.pipeline.executors import Task
from gradstore.collect.pipeline.worker import Worker
from gradstore.collect.projectors.held import HeldProjector

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    import torch

    from gradstore.collect.data.samples import Samples
    from gradstore.collect.engines.choice import EngineChoice
    from gradstore.collect.events.protocol import EventPlan
    from gradstore.collect.models.cache import CheckpointCache
    from gradstore.collect.models.protocol import Loader
    from gradstore.collect.pipeline.budget import Budget
    from gradstore.collect.pipeline.metric import JobMetric
    from gradstore.collect.pipeline.survey import Survey
    from gradstore.collect.pipeline.targets import StoreTarget
    from gradstore.collect.projectors import Projector
    from gradstore.store.part import Part


# Checkpoints are differentiated in parallel up to this many rows each.
_FEW_ROWS = 256


@dataclass(frozen=True)
class Job:
    """The checked input of collecting.

    Attributes:
        samples: the samples, scanned.
        plan: their events.
        survey: the checkpoints.
        loader: loads the checkpoints.
        numbers: numbers of the checkpoints in the stores.
        places: indices of the checkpoints that are collected now, ascending.
        targets: the stores to fill, all with the same shards.
        choice: the engine.
        budget: the division of memory.
        device: device of the gradients.
        params: regular expression of the differentiated parameters.
        read_seconds: seconds to read the dataset.
        load_seconds: seconds to load a checkpoint.
        choice_seconds: seconds to choose the engine.
        quiet: whether to hide progress bars.
        timed: whether the work is large enough to time engines.
        metric: the metric, if there is one.
        kept: the checkpoints, if they stay in memory.
        kept_as: cache key of loaded checkpoints.
    """

    samples: Samples
    plan: EventPlan
    survey: Survey
    loader: Loader
    numbers: Sequence[int]
    places: Sequence[int]
    targets: Sequence[StoreTarget]
    choice: EngineChoice
    budget: Budget
    device: torch.device
    params: str | None
    read_seconds: float
    load_seconds: float
    choice_seconds: float
    timed: bool
    quiet: bool
    metric: JobMetric | None = None
    kept: CheckpointCache | None = None
    kept_as: Hashable = None

    @property
    def rows(self) -> int:
        """Rows of each store."""
        return len(self.samples) * self.plan.slots * len(self.places)

    @property
    def num_parameters(self) -> int:
        """Length of a gradient."""
        return num_parameters(self.survey.model)

    def tasks(self) -> list[Task]:
        """Every shard of every checkpoint that is collected now."""
        shards = self.targets[0].layout.shards
        return [Task(k, shard) for k in self.places for shard in range(shards)]

    def load(self, place: int, *, trial: bool = False) -> LoadedCheckpoint:
        """Load a checkpoint, ready to compute gradients. The first is already in memory.

        Args:
            place: its index.
            trial: use a map of the metric's cost in its place, to measure time.
        """
        found = self._loaded(place)
        metric, number = self.metric, self.numbers[place]
        if metric is None:
            return found
        if trial:
            found.whiten(metric.trial(found.model), "trial")
            return found
        named = metric.named(number)
        if named is None or found.whitened != named:
            own = metric.at(number, found, self.survey.objective, self.budget.events)
            found.whiten(own, metric.fits[number])
        return found

    def _loaded(self, number: int) -> LoadedCheckpoint:
        folder = self.loader.folders[number]

        def loaded() -> LoadedCheckpoint:
            model = self.survey.model
            if number > 0:
                model = self.loader.load(folder, params=self.params).model
            return LoadedCheckpoint(
                folder, model, self.survey.objective, self.choice.make, self.device
            )

        if self.kept is None:
            return loaded()
        return self.kept.held((self.kept_as, number, self.choice.make), loaded)

    def open(self) -> list[Part]:
        """Open the parts to fill; create missing parts and stores."""
        return [target.open(self.samples.manifest) for target in self.targets]

    def side_by_side(self) -> Job | None:
        """The job, ready for its checkpoints to be differentiated in several threads.

        None if they should run sequentially: with many rows each keeps all cores busy, a GPU has
        one queue, and an objective, plan, engine or projector may not be thread-safe.
        """
        rows = len(self.samples) * self.plan.slots
        shared = [self.survey.objective, self.plan, self.choice.make]
        shared += [target.projector for target in self.targets]
        if self.device.type != "cpu" or len(self.places) < 2 or rows > _FEW_ROWS:
            return None
        if not all(can(one, "thread_safe") for one in shared):
            return None
        buckets = len(self.targets) * 8 * self.num_parameters
        budget = self.budget
        one = budget.shard + budget.engine + buckets + rows * budget.per_row
        if one * len(self.places) > budget.total:
            return None
        for place in self.places:  # loading sets state that all threads share
            self.load(place)
        return replace(self, samples=self.samples.in_memory())

    def worker(self, parts: Sequence[Part], bar: Any) -> Worker:
        """The worker that runs the tasks and advances the bar with every row."""
        projectors: list[Projector] = [target.projector for target in self.targets]
        if self.kept is not None:
            projectors = [
                HeldProjector(one, self.kept) if can(one, "stays_in_memory") else one
                for one in projectors
            ]
        return Worker(
            list(zip(parts, projectors, strict=True)),
            self.samples,
            self.plan,
            self.load,
            numbers=self.numbers,
            sigmas=sigmas(self.survey.objective),
            budget=self.budget,
            device=self.device,
            bar=bar,
        )
