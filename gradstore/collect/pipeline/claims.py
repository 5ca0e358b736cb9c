"""Claims: any number of processes collect one store, each running tasks that no other holds."""

from __future__ import annotations

import logging
from contextlib import ExitStack, suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING

from gradstore.collect.pipeline.executors import ByRank, Shuffled
from gradstore.errors import StoreError
from gradstore.store import locks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from gradstore.collect.pipeline.executors import Task

_log = logging.getLogger("gradstore")

_POLL_SECONDS = 0.5
# Shards of others that are waited for so long are told.
_TOLD_SECONDS = 10.0
# A rank waits at least this long for the last shards of others, or this many times the expected
# time of a task, because torchrun ends all ranks when one of them fails.
_PATIENCE_SECONDS = 60.0
_PATIENCE_TASKS = 3


class Claims:
    """An executor that locks each task before it runs it.

    A lock is a file in a folder next to the store, and is released when its process ends, for any
    reason. Other processes then take over the work; they run until all tasks are done. See
    `gradstore.store.locks` for where locks work.

    A rank runs its own share first, then the remaining tasks of other ranks. It waits for tasks
    that others hold only while they make progress, so that a hanging rank does not block all.

    Args:
        folders: folders of the lock files, one for each store; created if missing, and removed
            when all is done. A task is claimed when it is locked in all of them.
        done: returns whether a task is already done; called while its lock is held.
        ranks: the rank of this process, if it has one.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        done: Callable[[Task], bool],
        ranks: ByRank | None = None,
    ) -> None:
        self._folders = sorted(folders)
        self._done = done
        self._ranks = ranks
        self._patience = _PATIENCE_SECONDS

    def share(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """All tasks; each is assigned when it is locked. A rank's own tasks come first."""
        return tasks if self._ranks is None else Shuffled(self._ranks).share(tasks)

    def expect(self, seconds: float) -> None:
        """Set the expected seconds of a task."""
        self._patience = max(_PATIENCE_SECONDS, _PATIENCE_TASKS * seconds)

    def run(self, tasks: Sequence[Task], work: Callable[[Task], None]) -> None:
        """Call `work` on each of `tasks` that no other process runs, until all are done.

        A rank also ends if others hold all remaining tasks and finish none for a while.

        Raises:
            StoreError: if a task cannot be locked.
        """
        left, since, told = list(tasks), monotonic(), False
        while left:
            others = [task for task in left if not self._claimed(task, work)]
            if len(others) < len(left):
                since = monotonic()
            elif self._ranks is not None and monotonic() - since >= self._patience:
                break
            else:
                if not told and monotonic() - since >= _TOLD_SECONDS:
                    told = True
                    _log.warning(
                        "other processes hold %d shards, locked in %s; waiting for them. If one is "
                        "stopped or hangs, end it: its shards are then collected here",
                        len(others),
                        ", ".join(map(str, self._folders)),
                    )
                sleep(_POLL_SECONDS)
            left = others
        for folder in self._folders:
            with suppress(OSError):  # it does not exist, or another process locks a task in it
                folder.rmdir()

    def _claimed(self, task: Task, work: Callable[[Task], None]) -> bool:
        """Run a task unless it is done; False if another process holds it."""
        files = [folder / f"{task.checkpoint}-{task.shard}" for folder in self._folders]
        with ExitStack() as held:
            for file in files:
                try:
                    mine = held.enter_context(locks.locked(file, wait=False))
                except OSError as error:
                    raise _failed(file.parent, error) from error
                if not mine:
                    return False
            if not self._done(task):
                work(task)
            for file in files:  # other processes now see that the task is done
                locks.discard(file)
        return True


def _failed(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{folder}, where processes claim shards, cannot be used: {error.strerror or error}. "
        "Sealed shards are safe. Free disk space or restore the disk, and run the same command "
        "again to resume. If files cannot be locked, give each process its share in Python: "
        "collect(…, executor=ByRank(rank, world_size))."
    )
