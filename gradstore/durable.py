"""Making files survive a loss of power, where their order matters.

A rename is atomic to whoever looks, but the system writes to the disk in any order it likes: after
a power failure a seal could be there and the data that it vouches for not. So the data's files, and
the folders that name them, are flushed to the disk before the seal is written.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def flush(files: Iterable[Path]) -> None:
    """Wait until files, and the folders that they are in, are on the disk.

    Raises:
        OSError: if one is missing, or the disk refuses.
    """
    folders: dict[Path, None] = {}
    for file in files:
        _flush(file)
        folders[file.parent] = None
    for folder in folders:
        _flush(folder)


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # there, folders cannot be flushed and need not be
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
