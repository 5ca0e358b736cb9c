"""Executors: who does which of the independent tasks (checkpoint, shard)."""

from __future__ import annotations

import os
import random
from threading import Event
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gradstore.errors import ConfigError
from gradstore.workers import in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Task(NamedTuple):
    """One shard of one checkpoint: computed, written and sealed by whoever takes it."""

    checkpoint: int
    shard: int


class Executor(Protocol):
    """Runs tasks. They are independent and idempotent: any order, any process, twice if need be."""

    def share(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """Which of all tasks are this executor's, in its order. Whatever may be done already."""

    def run(self, tasks: Sequence[Task], work: Callable[[Task], None]) -> None:
        """Call `work` on each of `tasks`, which are of its share."""


class InProcess:
    """All tasks, one after the other, here."""

    def share(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """All of them."""
        return tasks

    def run(self, tasks: Sequence[Task], work: Callable[[Task], None]) -> None:
        """See `Executor`."""
        for task in tasks:
            work(task)


class SideBySide(InProcess):
    """All tasks here, checkpoints side by side, each with its share of the cores.

    For questions: their few rows leave most cores waiting for the next line of Python. What had
    better not be done in several threads (`Job.side_by_side`) is done one after the other.
    """

    def run(self, tasks: Sequence[Task], work: Callable[[Task], None]) -> None:
        """See `Executor`. `work` is called in several threads, of one checkpoint in one alone."""
        failed = Event()

        def one(checkpoint: int) -> None:
            try:
                for task in tasks:
                    if task.checkpoint == checkpoint and not failed.is_set():
                        work(task)
            except BaseException:
                failed.set()
                raise

        checkpoints = sorted({task.checkpoint for task in tasks})
        for _ in in_order(one, checkpoints, most=max(1, len(checkpoints))):
            pass


class ByRank(InProcess):
    """This process's part of the tasks among `world_size`, and no other."""

    def __init__(self, rank: int, world_size: int) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(
                f"RANK is {rank} and WORLD_SIZE is {world_size}; RANK must be in 0 … WORLD_SIZE-1. "
                "Start the processes with srun, torchrun or accelerate, or set both yourself."
            )
        self.rank = rank
        self.world_size = world_size

    def share(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """A contiguous part, so that each process loads few checkpoints."""
        first = len(tasks) * self.rank // self.world_size
        last = len(tasks) * (self.rank + 1) // self.world_size
        return tasks[first:last]


class Shuffled(InProcess):
    """All tasks, a checkpoint at a time, in an order of this process's own.

    For several processes where nothing can be locked, as under a URL. As each looks whether a task
    is done when it comes to it, they share the work and take over a dead one's; where two meet in
    one task, both do it, and write the same bytes.

    Args:
        ranks: whose share comes first, in its order; by default nobody's.
    """

    def __init__(self, ranks: ByRank | None = None) -> None:
        self._ranks = ranks

    def share(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """All of them, shuffled; this rank's own share before them, where there are ranks."""
        own = self._ranks.share(tasks) if self._ranks is not None else []
        known = set(own)
        order = random.sample(tasks, len(tasks))
        first: dict[int, int] = {}
        for place, task in enumerate(order):
            first.setdefault(task.checkpoint, place)
        order.sort(key=lambda task: first[task.checkpoint])
        return [*own, *(task for task in order if task not in known)]


def from_environment() -> ByRank | None:
    """`ByRank` where a launcher says that this is one of several processes, else None.

    RANK and WORLD_SIZE are what torchrun and accelerate set, SLURM_PROCID and SLURM_NTASKS what
    srun sets. The former win.

    Raises:
        ConfigError: if they are set to something that makes no sense.
    """
    for names, both in ((("RANK", "WORLD_SIZE"), False), (("SLURM_PROCID", "SLURM_NTASKS"), True)):
        told = [os.environ.get(name) for name in names]
        if not (all(told) if both else any(told)):
            continue
        try:
            rank, world_size = int(told[0] or 0), int(told[1] or 1)
        except ValueError as error:
            raise ConfigError(f"{' and '.join(names)} must be whole numbers: {error}") from error
        alone = world_size <= 1 and (both or rank == 0)
        return None if alone else ByRank(rank, world_size)
    return None
