"""What a projector is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gradstore.spec import Identity


class Projection(Protocol):
    """A linear map `R^parameters → R^dim` for one checkpoint."""

    scale: float
    """What a sketch is multiplied with so that inner products keep their expectation."""

    dtype: torch.dtype
    """The dtype that it computes in: gradients that wait to be projected are kept in it."""

    def add(self, sketch: Tensor, start: int, gradients: Tensor) -> None:
        """Add the raw projection of a piece of the gradients to a sketch.

        Args:
            sketch: float32 `[rows, dim]`, changed in place.
            start: position of the piece in the flattened parameters.
            gradients: `[rows, n]`, of parameters `start` to `start + n`.
        """


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
            device: where gradients and sketches are.
            memory: bytes that the projection may keep.
        """
