"""Claims: any number of processes collect one store, each taking what nobody works on."""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack, contextmanager, suppress
from time import sleep
from typing import TYPE_CHECKING

from gradstore.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from gradstore.collect.executor import Task

_POLL_SECONDS = 0.5


class Claims:
    """An executor that locks a task before it does it.

    A lock is a byte of a file beside the store, locked by the operating system, which unlocks it
    when the process ends, however it ends: a dead one's work is taken over by the others, who stay
    until all is done. Locks of this kind work between processes of one machine, and between
    machines on file systems that share them, as NFS does.

    Args:
        files: the files that are locked, one for each store that is filled; they are made, and
            removed when all is done. A task is claimed when its byte is locked in all of them.
        done: tells whether a task is done already; asked when its lock is held.
    """

    def __init__(self, files: Sequence[Path], done: Callable[[Task], bool]) -> None:
        self._files = sorted(files)
        self._done = done

    def share(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """All of them: who does which is seen when it is done."""
        return tasks

    def run(self, tasks: Sequence[Task], work: Callable[[Task], None]) -> None:
        """Call `work` on each of `tasks` that no other process does, until all are done.

        Raises:
            StoreError: if the files cannot be made or locked.
        """
        if not tasks:
            return
        left = list(tasks)
        with ExitStack() as opened:
            locks = [(opened.enter_context(_opened(file)), file) for file in self._files]
            while left:
                others = []
                for task in left:
                    with ExitStack() as held:
                        mine = (held.enter_context(_locked(*lock, _byte(task))) for lock in locks)
                        if not all(mine):
                            others.append(task)
                        elif not self._done(task):
                            work(task)
                if len(others) == len(left):
                    sleep(_POLL_SECONDS)
                left = others
        for file in self._files:
            with suppress(OSError):  # all is done: whoever comes now has nothing to lock
                file.unlink()


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _failed(path, error) from error
    try:
        yield file
    finally:
        os.close(file)


def _failed(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path}, where processes claim shards, cannot be used: {error.strerror or error}. What "
        "was sealed before is safe; make room or restore the disk and run the same command again "
        "to go on. Where files cannot be locked, set RANK and WORLD_SIZE for each process."
    )


def _byte(task: Task) -> int:
    return task.checkpoint << 32 | task.shard


@contextmanager
def _locked(file: int, path: Path, byte: int) -> Iterator[bool]:
    """Whether a byte of the file is this process's own, within."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):  # another process holds it
        yield False
        return
    except OSError as error:  # a file system that has no locks
        raise _failed(path, error) from error
    try:
        yield True
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, byte)
