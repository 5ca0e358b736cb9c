"""Locks between processes, which die with the process that holds them.

A lock is a file of its own, which filelock locks: by the operating system, so that it works between
processes of one machine, and between machines on file systems that share locks, as NFS does; where
there is no such lock, by the file's being there.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A folder that was removed while its lock was made, a file that another host of an NFS removed.
_PASSING: Final = {errno.ENOENT, errno.ESTALE}
_TRIES: Final = 5


def name_of(name: str) -> str:
    """Name of the file that is locked for another one beside it."""
    return f".{name}.lock"


def is_lock(name: str) -> bool:
    """Whether a file is one of those, and so no part of a store."""
    return name.startswith(".") and name.endswith(".lock")


@contextmanager
def locked(file: Path, *, wait: bool) -> Iterator[bool]:
    """Whether a lock is this process's own, within.

    Args:
        file: the file that is locked; it and its folder are made. It stays unless it is discarded,
            or its being there was the lock.
        wait: whether to wait for the lock until it is had.

    Raises:
        OSError: if the file cannot be made or locked.
    """
    from filelock import FileLock, Timeout  # a tenth of a second, and few need a lock

    lock = FileLock(file)
    for again in reversed(range(_TRIES)):
        try:
            lock.acquire(blocking=wait)
            break
        except Timeout:
            yield False
            return
        except OSError as error:
            if error.errno not in _PASSING or not again:
                raise
    try:
        yield True
    finally:
        lock.release()


def discard(file: Path) -> None:
    """Remove a lock's file, by whoever holds it, when what it guarded needs no lock any more.

    Others may then have the old lock and the new one at once. Windows removes no file that is open:
    there filelock does it.
    """
    if os.name != "nt":
        with suppress(OSError):
            file.unlink()
