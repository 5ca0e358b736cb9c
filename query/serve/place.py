"""The folder in which a server keeps the rows of images that were asked, as long as it runs."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from tempfile import gettempdir
from typing import TYPE_CHECKING, Final

from gradstore.store import locks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PREFIX: Final = "gradstore-asked-"
_LOCK: Final = ".lock"


@contextmanager
def own_place() -> Iterator[Path]:
    """A new folder among the system's temporary ones, which nobody else may read.

    Its lock, a file beside it, is held before it is made and until it is removed. What servers that
    were killed left is removed first: it may be images of people.

    Raises:
        OSError: if it cannot be made.
    """
    _remove_left()
    folder = Path(gettempdir()).absolute() / f"{_PREFIX}{token_hex(16)}"
    lock = folder.with_name(folder.name + _LOCK)
    with locks.locked(lock, wait=True):
        try:
            folder.mkdir(mode=0o700)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            locks.discard(lock)


def _remove_left() -> None:
    """Remove folders of this user whose locks nobody holds: a stopped server holds its own."""
    for lock in Path(gettempdir()).absolute().glob(f"{_PREFIX}*{_LOCK}"):
        folder = lock.with_name(lock.name.removesuffix(_LOCK))
        if not _is_own(lock, stat.S_ISREG):
            continue
        with suppress(OSError), locks.locked(lock, wait=False) as acquired:
            if acquired:
                if _is_own(folder, stat.S_ISDIR):
                    shutil.rmtree(folder, ignore_errors=True)
                locks.discard(lock)


def _is_own(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether a path is of this kind and of this user, and no link: others may make any there."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return kind(found.st_mode) and found.st_uid == getattr(os, "getuid", lambda: found.st_uid)()
