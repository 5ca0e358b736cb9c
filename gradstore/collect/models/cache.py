"""Keeps the models of checkpoints in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from gradstore.collect.models.folders import checkpoint_folders

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from pathlib import Path


T = TypeVar("T")


class CheckpointCache:
    """Checkpoint folders whose models stay in memory, for repeated queries.

    Accepted wherever checkpoints are. Later queries reuse what the first one read, hashed and
    tried, and cost only their gradients. All used models are held at once, with the buckets of
    `sjlt`, 8 bytes per parameter, in addition to the memory that collecting may use. Later changes
    of the files are ignored. Not thread-safe.

    Args:
        paths: as in `find_checkpoints`.

    Attributes:
        folders: the checkpoints, in training order.

    Examples:
        >>> import gradstore as gs
        >>> held = gs.CheckpointCache("run/checkpoints")
        >>> for name in ("cat", "dog"):
        ...     images, out = f"asked_images/{name}", f"{name}.gradstore"
        ...     gs.collect_queries("train.gradstore", images, out, checkpoints=held)
        Store('cat.gradstore', checkpoints=2, samples=2, slots=10, dim=64)
        Store('dog.gradstore', checkpoints=2, samples=1, slots=10, dim=64)
    """

    def __init__(self, paths: str | Path | Sequence[str | Path]) -> None:
        self.folders = checkpoint_folders(paths)
        self._held: dict[Hashable, Any] = {}

    def held(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value cached for this key; made now if missing."""
        if key not in self._held:
            self._held[key] = make()
        found: T = self._held[key]
        return found


Checkpoints = CheckpointCache  # the earlier name


def find_checkpoints(paths: str | Path | Sequence[str | Path] | CheckpointCache) -> list[Path]:
    """Checkpoint folders, in order: those given, or all within a single given folder.

    Within a folder, the numbers in the names define the order.

    Raises:
        CheckpointError: if one does not exist or is not a checkpoint, or the order is unclear.
    """
    if isinstance(paths, CheckpointCache):
        return paths.folders
    return checkpoint_folders(paths)
