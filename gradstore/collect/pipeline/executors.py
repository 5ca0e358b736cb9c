"""Executors: assign independent tasks (checkpoint, shard) to processes."""

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
    """One shard of one checkpoint, computed, written and sealed by one process."""

    checkpoint: int
    shard: int


class Executor(Protocol):
    """Runs tasks, which are independent and idempotent: any order, any process, even repeatedly."""

    def share(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """The tasks of this executor, in its order; they may include tasks already done."""

    def run(self, tasks: Sequence[Task], work: Callable[[Task], None]) -> None:
        """Call `work` on each of `tasks`, which belong to its share."""


class InProcess:
    """Runs all tasks sequentially in this process."""

    def share(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """All tasks."""
        return tasks

    def run(self, tasks: Sequence[Task], work: Callable[[Task], None]) -> None:
        """See `Executor`."""
        for task in tasks:
            work(task)


class SideBySide(InProcess):
    """Runs all tasks in this process, checkpoints in parallel, each with its share of the cores.

    For queries, whose few rows leave most cores idle while Python runs. Jobs that are not suited
    to several threads (`Job.side_by_side`) run sequentially.
    """

    def run(self, tasks: Sequence[Task], work: Callable[[Task], None]) -> None:
        """See `Executor`. `work` runs in several threads, one per checkpoint."""
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
    """Runs only this rank's share of the tasks among `world_size` processes."""

    def __init__(self, rank: int, world_size: int) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(
                f"RANK is {rank} and WORLD_SIZE is {world_size}; RANK must be in 0 … WORLD_SIZE-1. "
                "Start the processes with srun, torchrun or accelerate, or set both yourself."
            )
        self.rank = rank
        self.world_size = world_size

    def share(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """A contiguous range, so that each process loads few checkpoints."""
        first = len(tasks) * self.rank // self.world_size
        last = len(tasks) * (self.rank + 1) // self.world_size
        return tasks[first:last]


class Shuffled(InProcess):
    """Runs all tasks, one checkpoint at a time, in a random order for each process.

    For several processes where locks do not work, as under a URL. Each process skips tasks that
    are already done, so they share the work and take over the tasks of dead processes. If two
    processes run the same task at once, one of them writes its shard (`gradstore.store.leases`).

    Args:
        ranks: the rank whose share comes first, in its order; by default none.
    """

    def __init__(self, ranks: ByRank | None = None) -> None:
        self._ranks = ranks

    def share(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """All tasks, shuffled; this rank's own share comes first, if there are ranks."""
        own = self._ranks.share(tasks) if self._ranks is not None else []
        known = set(own)
        order = random.sample(tasks, len(tasks))
        first: dict[int, int] = {}
        for place, task in enumerate(order):
            first.setdefault(task.checkpoint, place)
        order.sort(key=lambda task: first[task.checkpoint])
        return [*own, *(task for task in order if task not in known)]


def from_environment() -> ByRank | None:
    """`ByRank` if a launcher started several processes, else None.

    torchrun and accelerate set RANK and WORLD_SIZE, srun sets SLURM_PROCID and SLURM_NTASKS. The
    former take precedence.

    Raises:
        ConfigError: if the values are invalid.
    """
    for names, both in ((("RANK", "WORLD_SIZE"), False), (("SLURM_PROCID", "SLURM_NTASKS"), True)):
        values = [os.environ.get(name) for name in names]
        if not (all(values) if both else any(values)):
            continue
        try:
            rank, world_size = int(values[0] or 0), int(values[1] or 1)
        except ValueError as error:
            raise ConfigError(f"{' and '.join(names)} must be whole numbers: {error}") from error
        alone = world_size <= 1 and (both or rank == 0)
        return None if alone else ByRank(rank, world_size)
    return None
