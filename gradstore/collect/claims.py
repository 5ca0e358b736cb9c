"""Claims: any number of processes collect one store, each taking what nobody works on."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from time import sleep
from typing import TYPE_CHECKING

from gradstore import locks
from gradstore.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from gradstore.collect.executor import Task

_POLL_SECONDS = 0.5


class Claims:
    """An executor that locks a task before it does it.

    A lock is a file in a folder beside the store, and dies with its process, however that ends: a
    dead one's work is taken over by the others, who stay until all is done. See `gradstore.locks`
    for where locks work.

    Args:
        folders: where tasks are locked, a folder for each store that is filled; they are made, and
            removed when all is done. A task is claimed when it is locked in all of them.
        done: tells whether a task is done already; asked when its lock is held.
    """

    def __init__(self, folders: Sequence[Path], done: Callable[[Task], bool]) -> None:
        self._folders = sorted(folders)
        self._done = done

    def share(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """All of them: who does which is seen when it is done."""
        return tasks

    def run(self, tasks: Sequence[Task], work: Callable[[Task], None]) -> None:
        """Call `work` on each of `tasks` that no other process does, until all are done.

        Raises:
            StoreError: if a task cannot be locked.
        """
        left = list(tasks)
        while left:
            others = [task for task in left if not self._claimed(task, work)]
            if len(others) == len(left):
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
        "to go on. Where files cannot be locked, set RANK and WORLD_SIZE for each process."
    )
