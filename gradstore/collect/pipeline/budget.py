"""Divides the memory that collecting may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gradstore.errors import ConfigError
from gradstore.store.format.rows import given_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from gradstore.collect.engines.choice import EngineChoice
    from gradstore.collect.projectors import Projection, Projector
    from gradstore.store.format.layout import Layout


@dataclass(frozen=True)
class Budget:
    """A division of memory between finished rows, the engine, the projections and waiting rows.

    Attributes:
        total: total bytes, without the model and the program itself.
        shard: bytes of a shard's finished rows.
        events: number of events (rows × noises) that are differentiated at once.
        engine: bytes that the engine takes for them.
        per_row: bytes of a row in the projections' buffers, and of its sketches.
    """

    total: int
    shard: int
    events: int
    engine: int
    per_row: int

    @classmethod
    def spend(
        cls,
        total: int,
        choice: EngineChoice,
        events: int,
        stores: Sequence[tuple[Projector, Layout]],
        *,
        draws: int,
        num_parameters: int,
        device: torch.device,
        sums: int = 1,
    ) -> Budget:
        """Divide the memory; the engine gets up to half of what nothing else needs.

        Args:
            total: total bytes.
            choice: the engine and its memory.
            events: wanted number of events at once.
            stores: projector and layout of each store that is filled.
            draws: noises per row; if they are split, a row's sum is also held.
            num_parameters: length of a gradient.
            device: device of gradients and buffers.
            sums: gradients held per row if its draws are split.

        Raises:
            ConfigError: if not even one event fits.
        """
        # Twice: the finished rows, and the copy that is being written.
        shard = sum(
            2
            * min(one.shard_samples, one.samples)
            * one.slots
            * (4 * 4 + one.dim * np.dtype(given_dtype(one.dtype)).itemsize)
            for _, one in stores
        )
        least = [projector.at(0, num_parameters, device, 0) for projector, _ in stores]
        # A row of the buffer, its sketch in float32, and the scaled sketch in float64.
        per_row = sum(
            one.width * one.dtype.itemsize + 12 * layout.dim
            for one, (_, layout) in zip(least, stores, strict=True)
        )
        needed = shard + per_row + sum(one.nbytes for one in least)
        # A quarter more: memory inside kernels is not measured.
        fixed, per_event = choice.fixed * 5 // 4, choice.per_event * 5 // 4
        room = (total - needed) // 2 - fixed
        fitting = max(1, min(events, room // per_event))
        if fitting < draws:
            held = 4 * num_parameters * sums
            fixed += held
            fitting = max(1, min(fitting, (room - held) // per_event))
        engine = fixed + fitting * per_event
        if needed + engine > total:
            enough = -(-(needed + engine) * 120 // 2**30) / 100
            raise ConfigError(
                f"--memory is {total / 2**30:.2g} GiB, but a gradient takes "
                f"{engine / 2**30:.2g}, a shard's rows {shard / 2**30:.2g}, and with the "
                f"projection they need {(needed + engine) / 2**30:.2g}. Give --memory {enough:g}, "
                "or use --projector sjlt, a smaller --proj-dim or a smaller --shard-samples."
            )
        return cls(total, shard, fitting, engine, per_row)

    @property
    def _rest(self) -> int:
        return self.total - self.shard - self.engine

    @property
    def projection(self) -> int:
        """Bytes for projections: three quarters of the rest, with room left for one row."""
        return min(self._rest * 3 // 4, self._rest - self.per_row)

    def rows(self, projections: Sequence[Projection]) -> int:
        """Number of rows that may wait in the projections' buffers."""
        left = self._rest - sum(one.nbytes for one in projections)
        return max(1, left // self.per_row)
