"""Locks between processes.

A lock is a separate file, which filelock locks through the operating system. It works between
processes of one machine, and between machines on file systems that share locks, such as NFS.
The operating system releases a lock when its process dies. Without such locks, the existence of the
file is the lock, and a dead process leaves it behind.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_log = logging.getLogger("gradstore")

# Transient errors: the folder was removed during locking, or another NFS host removed the file.
_PASSING: Final = {errno.ENOENT, errno.ESTALE}
_TRIES: Final = 5
# Seconds after which a wait is told.
_TOLD_SECONDS = 10.0


def name_of(name: str) -> str:
    """Name of the lock file of a file in the same folder."""
    return f".{name}.lock"


def is_lock(name: str) -> bool:
    """Whether a file is a lock file and not an object of a store."""
    return name.startswith(".") and name.endswith(".lock")


@contextmanager
def locked(file: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock in this context, and yield whether it was acquired.

    Args:
        file: the lock file; it and its folder are created. It remains unless it is discarded, or
            its existence was the lock.
        wait: whether to wait until the lock is acquired.

    Raises:
        OSError: if the file cannot be created or locked.
    """
    from filelock import FileLock, Timeout  # takes 0.1 s, and few callers need a lock

    lock = FileLock(file, thread_local=False)  # another thread may leave the context
    for again in reversed(range(_TRIES)):
        try:
            lock.acquire(timeout=_TOLD_SECONDS if wait else 0)
            break
        except Timeout:
            if not wait:
                yield False
                return
            _log.warning(
                "another process holds %s; waiting for it. If it is stopped or hangs, end it", file
            )
            lock.acquire()
            break
        except OSError as error:
            if error.errno not in _PASSING or not again:
                raise
    try:
        yield True
    finally:
        lock.release()


def is_held(file: Path) -> bool:
    """Whether a process holds a lock, running or stopped; also if that cannot be known."""
    if not file.exists():
        return False
    with suppress(OSError), locked(file, wait=False) as acquired:
        return not acquired
    return True


def discard(file: Path) -> None:
    """Remove a lock file; only its holder may do so, once the guarded data needs no lock.

    Afterwards two processes may hold the old lock and a new one at once. Windows cannot remove an
    open file; there filelock removes it.
    """
    if os.name != "nt":
        with suppress(OSError):
            file.unlink()
