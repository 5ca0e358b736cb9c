"""Result files are written whole or not at all, by one process, and an error names them."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gradstore.errors import QueryError
from gradstore.store import locks

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Provide a temporary name, for a file or folder that becomes `path` on success.

    Raises:
        QueryError: if it cannot be written, or another process writes it; what was begun is
            removed.
    """
    writing = temporary(path)
    with named(path), alone(path, lock_of(writing)):
        remove(writing)  # a killed process left it; through a link it would be written elsewhere
        try:
            yield writing
            writing.replace(path)
        except BaseException:
            with suppress(OSError):
                remove(writing)
            raise


def remove(path: Path) -> None:
    """Remove a file, a folder, or a link to either, which is not followed; if it is there.

    Raises:
        OSError: if it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link_in(folder: Path) -> Path | None:
    """A link anywhere below a folder, through which what is written would go elsewhere, or None."""
    for inner, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if os.path.islink(f"{inner}/{name}"):  # noqa: PTH114, a `Path` takes ten times as long
                return Path(inner, name)
    return None


def temporary(path: Path) -> Path:
    """The name of a result that is being written or removed."""
    return path.with_name(f".{path.name}.writing")


def lock_of(path: Path) -> Path:
    """The lock file of a result."""
    return path.with_name(locks.name_of(path.name))


@contextmanager
def alone(path: Path, lock: Path) -> Iterator[None]:
    """Hold a result for this process: a second one would take away what this one still reads.

    Args:
        path: the result.
        lock: its lock file, which is removed at the end.

    Raises:
        QueryError: if another process holds it.
        OSError: if the lock file cannot be made.
    """
    with locks.locked(lock, wait=False) as acquired:
        if not acquired:
            raise QueryError(
                f"{path} is being written by another process, which runs or is stopped. Let it "
                f"finish or end it, then run the same command again. (It holds {lock}.)"
            )
        try:
            yield
        finally:
            locks.discard(lock)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Name a result in the errors of writing it: a full disk tells no name of a file.

    Raises:
        QueryError: if the system raises an error.
    """
    try:
        yield
    except OSError as error:
        raise QueryError(
            f"{path} cannot be written: {error.strerror or error}. Free disk space or choose "
            "another --out, and run the same command again."
        ) from error
