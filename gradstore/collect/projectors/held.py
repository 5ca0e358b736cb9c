"""Keeps projections in memory with their models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from gradstore.collect.models.cache import CheckpointCache
    from gradstore.collect.projectors.protocol import Projection, Projector
    from gradstore.store.format.spec import Identity


class HeldProjector:
    """A projector whose projections are made once for all queries: 8 bytes per parameter each.

    Not for `trak`, whose matrices are many times as large as a model.

    Args:
        projector: the projector.
        kept: the checkpoints, whose cache holds the projections.
    """

    def __init__(self, projector: Projector, kept: CheckpointCache) -> None:
        self._projector = projector
        self._kept = kept

    def identity(self, num_parameters: int) -> Identity:
        """See `Projector`."""
        return self._projector.identity(num_parameters)

    def dim(self, num_parameters: int) -> int:
        """See `Projector`."""
        return self._projector.dim(num_parameters)

    def at(
        self, checkpoint: int, num_parameters: int, device: torch.device, memory: int
    ) -> Projection:
        """See `Projector`."""
        name = json.dumps(self._projector.identity(num_parameters), sort_keys=True)
        return self._kept.held(
            (name, checkpoint, num_parameters, device),
            lambda: self._projector.at(checkpoint, num_parameters, device, memory),
        )
