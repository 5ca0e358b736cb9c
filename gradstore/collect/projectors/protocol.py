"""The protocol of a projector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gradstore.store.format.spec import Identity


class Projection(Protocol):
    """A linear map `R^parameters → R^dim` for one checkpoint.

    Pieces of gradients are added to a buffer, `[rows, width]`, initially zero. When all are added,
    the buffer is turned into sketches. The projection decides what the buffer holds: sums by
    bucket, or the gradients themselves, which wait for one joint product.
    """

    scale: float
    """Factor of a sketch that preserves the expectation of inner products."""

    width: int
    """Entries of the buffer per row."""

    dtype: torch.dtype
    """Dtype of the buffer."""

    nbytes: int
    """Bytes that the projection uses while it works, without the buffers."""

    def add(self, buffer: Tensor, start: int, gradients: Tensor) -> None:
        """Add a piece of the gradients.

        Args:
            buffer: `[rows, width]`, changed in place.
            start: position of the piece in the flattened parameters.
            gradients: float32 `[rows, n]`, of parameters `start` to `start + n`. Every parameter
                is added once.
        """

    def finish(self, buffer: Tensor) -> Tensor:
        """The unscaled sketches of a buffer, float32 `[rows, dim]`."""


class Projector(Protocol):
    """A family of projections, one per checkpoint."""

    def identity(self, num_parameters: int) -> Identity:
        """The identity of the family, as JSON, including a probe of its numbers."""

    def dim(self, num_parameters: int) -> int:
        """Length of a sketch."""

    def at(
        self, checkpoint: int, num_parameters: int, device: torch.device, memory: int
    ) -> Projection:
        """The projection of a checkpoint.

        Args:
            checkpoint: number of the checkpoint in its store.
            num_parameters: length of a gradient.
            device: device of gradients and buffers.
            memory: bytes that the projection may use. It uses its minimum in any case.
        """
