"""What a projector is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gradstore.store.format.spec import Identity


class Projection(Protocol):
    """A linear map `R^parameters → R^dim` for one checkpoint.

    Gradients come in pieces and go into a buffer, `[rows, width]` and zero at first; when all have
    come, the buffer becomes sketches. What the buffer holds is the projection's own affair: sums
    by bucket, or the gradients themselves, which wait to be multiplied together.
    """

    scale: float
    """What a sketch is multiplied with so that inner products keep their expectation."""

    width: int
    """Entries of the buffer per row."""

    dtype: torch.dtype
    """Dtype of the buffer."""

    nbytes: int
    """Bytes that the projection takes beside the buffers, while it works."""

    def add(self, buffer: Tensor, start: int, gradients: Tensor) -> None:
        """Take a piece of the gradients.

        Args:
            buffer: `[rows, width]`, changed in place.
            start: position of the piece in the flattened parameters.
            gradients: float32 `[rows, n]`, of parameters `start` to `start + n`. Every parameter
                is added once.
        """

    def finish(self, buffer: Tensor) -> Tensor:
        """The raw projections of what a buffer was given, float32 `[rows, dim]`."""


class Projector(Protocol):
    """A family of projections, one per checkpoint."""

    def identity(self, num_parameters: int) -> Identity:
        """What identifies the family, as JSON; a probe of its numbers included."""

    def dim(self, num_parameters: int) -> int:
        """Length of a sketch."""

    def at(
        self, checkpoint: int, num_parameters: int, device: torch.device, memory: int
    ) -> Projection:
        """The projection of a checkpoint.

        Args:
            checkpoint: number of the checkpoint in its store.
            num_parameters: length of a gradient.
            device: where gradients and buffers are.
            memory: bytes that the projection may take. What it needs at least it takes anyway.
        """
