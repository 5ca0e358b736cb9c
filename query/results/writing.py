"""Result files are written whole or not at all, and an error names them."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gradstore.errors import QueryError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Provide a temporary name, for a file or folder that becomes `path` on success.

    Raises:
        QueryError: if it cannot be written; what was begun is removed.
    """
    writing = path.with_name(f".{path.name}.writing")
    with named(path):
        if writing.is_dir():  # a killed process left it
            shutil.rmtree(writing)
        try:
            yield writing
            writing.replace(path)
        except BaseException:
            if writing.is_dir():
                shutil.rmtree(writing, ignore_errors=True)
            else:
                writing.unlink(missing_ok=True)
            raise


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
