"""Checkpoints whose models stay in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from gradstore.collect.models.folders import checkpoint_folders

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from pathlib import Path


T = TypeVar("T")


class Checkpoints:
    """Checkpoint folders whose models stay in memory, for whoever asks again and again.

    To be given wherever checkpoints are: what was read, hashed and tried for one question is not
    for the next, which then costs its gradients alone. All models that were used are held at once,
    with the buckets of `sjlt`, 8 bytes a parameter, beside the memory that collecting may take.
    What is in memory counts, though the files change meanwhile. Not for several threads at once.

    Args:
        paths: as `find_checkpoints` takes them.

    Attributes:
        folders: the checkpoints, in training order.
    """

    def __init__(self, paths: str | Path | Sequence[str | Path]) -> None:
        self.folders = checkpoint_folders(paths)
        self._held: dict[Hashable, Any] = {}

    def held(self, key: Hashable, make: Callable[[], T]) -> T:
        """What was made for this key before, else what is made now."""
        if key not in self._held:
            self._held[key] = make()
        found: T = self._held[key]
        return found


def find_checkpoints(paths: str | Path | Sequence[str | Path] | Checkpoints) -> list[Path]:
    """Checkpoint folders, in order: those named, or all within a single folder that holds some.

    Within a folder, the numbers in the names give the order.

    Raises:
        CheckpointError: if one does not exist or is not a checkpoint, or the order is unclear.
    """
    if isinstance(paths, Checkpoints):
        return paths.folders
    return checkpoint_folders(paths)
