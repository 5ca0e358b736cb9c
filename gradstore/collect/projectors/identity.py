"""No projection: for small models, and the oracle of every other projector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from gradstore.spec import Identity


class IdentityProjector:
    """Directions are the unit gradients themselves."""

    scale = 1.0
    dtype = torch.float32

    def identity(self, num_parameters: int) -> Identity:  # noqa: ARG002
        """Its name."""
        return {"name": "identity"}

    def dim(self, num_parameters: int) -> int:
        """As many as there are parameters."""
        return num_parameters

    def at(
        self,
        checkpoint: int,  # noqa: ARG002
        num_parameters: int,  # noqa: ARG002
        device: torch.device,  # noqa: ARG002
        memory: int,  # noqa: ARG002
    ) -> IdentityProjector:
        """The same at every checkpoint."""
        return self

    def add(self, sketch: Tensor, start: int, gradients: Tensor) -> None:
        """Copy the piece into its place."""
        sketch[:, start : start + gradients.shape[1]] += gradients
