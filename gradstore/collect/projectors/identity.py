"""No projection: for small models, and the reference for every other projector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from gradstore.store.format.spec import Identity


class IdentityProjector:
    """Directions are the unit gradients themselves."""

    def identity(self, num_parameters: int) -> Identity:  # noqa: ARG002
        """Its name."""
        return {"name": "identity"}

    def dim(self, num_parameters: int) -> int:
        """The number of parameters."""
        return num_parameters

    def at(
        self,
        checkpoint: int,  # noqa: ARG002
        num_parameters: int,
        device: torch.device,  # noqa: ARG002
        memory: int,  # noqa: ARG002
    ) -> IdentityProjection:
        """The same projection at every checkpoint."""
        return IdentityProjection(num_parameters)


class IdentityProjection:
    """Copies each piece to its place in the buffer."""

    scale = 1.0
    dtype = torch.float32
    nbytes = 0

    def __init__(self, num_parameters: int) -> None:
        self.width = num_parameters

    def add(self, buffer: Tensor, start: int, gradients: Tensor) -> None:
        """See `Projection`."""
        buffer[:, start : start + gradients.shape[1]] = gradients

    def finish(self, buffer: Tensor) -> Tensor:
        """See `Projection`."""
        return buffer
