"""The protocol of a loader: where checkpoints lie, and how their models are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gradstore.collect.models.loading import Checkpoint
    from gradstore.store.format.spec import Identity, ModelSpec


@runtime_checkable
class Loader(Protocol):
    """Checkpoints in training order, loaded one at a time."""

    @property
    def folders(self) -> Sequence[Path]:
        """Place of each checkpoint, in training order: a folder or a file."""

    def load(self, folder: Path, *, scheduler: Any = None, params: str | None = None) -> Checkpoint:
        """Load a checkpoint.

        Its model is in `eval()` mode; a later call does not change it.

        Args:
            folder: its place.
            scheduler: used instead of the checkpoint's own.
            params: regular expression; parameters whose name contains no match are frozen.

        Raises:
            CheckpointError: if it cannot be read.
        """

    def identity(self) -> Identity:
        """What all checkpoints share besides their own weights, as JSON."""

    def spec(self) -> ModelSpec | None:
        """How a later process makes this loader; None if only code can."""
