"""Claims: any number of processes collect one store, each taking what nobody works on."""

from __future__ import annotations

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

_POLL_SECONDS = 0.5
# A rank waits for the last shards of others for so long, and for so many times what one should
# take: torchrun ends all ranks when one of them does not succeed.
_PATIENCE_SECONDS = 60.0
_PATIENCE_TASKS = 3


class Claims:
    """An executor that locks a task before it does it.

    A lock is a file in a folder beside the store, and dies with its process, however that ends: a
    dead one's work is taken over by the others, who stay until all is done. See `gradstore.locks`
    for where locks work.

    One of several ranks does its own share first, and then what nobody has done of the others'. Of
    what others hold it waits for no longer than they make headway, lest one that hangs holds all.

    Args:
        folders: where tasks are locked, a folder for each store that is filled; they are made, and
            removed when all is done. A task is claimed when it is locked in all of them.
        done: tells whether a task is done already; asked when its lock is held.
        ranks: which rank this is, if it is one.
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
        """All of them: who does which is seen when it is done. A rank's own come first."""
        return tasks if self._ranks is None else Shuffled(self._ranks).share(tasks)

    def expect(self, seconds: float) -> None:
        """Say how long a task should take."""
        self._patience = max(_PATIENCE_SECONDS, _PATIENCE_TASKS * seconds)

    def run(self, tasks: Sequence[Task], work: Callable[[Task], None]) -> None:
        """Call `work` on each of `tasks` that no other process does, until all are done.

        A rank ends as well when others hold all that is left, and none of it is done for a while.

        Raises:
            StoreError: if a task cannot be locked.
        """
        left, since = list(tasks), monotonic()
        while left:
            others = [task for task in left if not self._claimed(task, work)]
            if len(others) < len(left):
                since = monotonic()
            elif self._ranks is not None and monotonic() - since >= self._patience:
                break
            else:
                sleep(_POLL_SECONDS)
            left = others
        for folder in self._folders:
            with suppress(OSError):  # it is not there, or another process locks a task in it
                folder.rmdir()

    def _claimed(self, task: Task, work: Callable[[Task], None]) -> bool:
        """Do a task, unless it is done; False if another process holds it."""
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
            for file in files:  # whoever comes now sees that the task is done
                locks.discard(file)
        return True


def _failed(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{folder}, where processes claim shards, cannot be used: {error.strerror or error}. What "
        "was sealed before is safe; make room or restore the disk and run the same command again "
        "to go on. Where files cannot be locked, give each process its share in Python: "
        "collect(…, executor=ByRank(rank, world_size))."
    )
