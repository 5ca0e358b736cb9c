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
        """Which of all tasks are this executor's. Of the tasks alone, not of what is done yet."""

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


class Shuffled(InProcess):
    """All tasks, a checkpoint at a time, in an order of this process's own.

    For several processes where nothing can be locked, as under a URL. As each looks whether a task
    is done when it comes to it, they share the work and take over a dead one's; where two meet in
    one task, both do it, and write the same bytes.
    """

    def run(self, tasks: Sequence[Task], work: Callable[[Task], None]) -> None:
        """See `Executor`."""
        order = random.sample(tasks, len(tasks))
        first: dict[int, int] = {}
        for place, task in enumerate(order):
            first.setdefault(task.checkpoint, place)
        super().run(sorted(order, key=lambda task: first[task.checkpoint]), work)


class ByRank(InProcess):
    """This process's part of the tasks among `world_size`, without talking to the others."""

    def __init__(self, rank: int, world_size: int) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(
                f"RANK is {rank} and WORLD_SIZE is {world_size}; RANK must be in 0 … WORLD_SIZE-1. "
                "Start the processes with torchrun, accelerate or a SLURM array that sets both."
            )
        self.rank = rank
        self.world_size = world_size

    def share(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """A contiguous part, so that each process loads few checkpoints."""
        first = len(tasks) * self.rank // self.world_size
        last = len(tasks) * (self.rank + 1) // self.world_size
        return tasks[first:last]


def from_environment() -> Executor | None:
    """`ByRank` where RANK and WORLD_SIZE are set (torchrun, accelerate, SLURM), else None.

    Raises:
        ConfigError: if they are set to something that makes no sense.
    """
    try:
        rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError as error:
        raise ConfigError(f"RANK and WORLD_SIZE must be whole numbers: {error}") from error
    return ByRank(rank, world_size) if world_size > 1 or rank > 0 else None
