"""Settings of a query: the number of gradients to compute, and its effect on the ranking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Setting:
    """Timesteps × draws × checkpoints is the number of gradients per query.

    Attributes:
        timesteps: timesteps per query.
        draws: noises averaged at each timestep.
        checkpoints: number of checkpoints used; None for all.
    """

    timesteps: int
    draws: int
    checkpoints: int | None = None

    def etas(self, etas: Sequence[float]) -> list[float]:
        """Checkpoint weights that keep only `checkpoints` evenly spaced ones.

        The last is always kept. A checkpoint represents the training since the previous one, so
        each kept checkpoint also receives the weights of the omitted ones before it.

        Args:
            etas: the store's checkpoint weights, in training order.

        Returns:
            As many weights with the same sum; unchanged if none is omitted.
        """
        count = len(etas) if self.checkpoints is None else min(self.checkpoints, len(etas))
        ends = [len(etas) * (part + 1) // count for part in range(count)]
        weights = [0.0] * len(etas)
        for start, end in zip([0, *ends], ends, strict=False):
            weights[end - 1] = float(sum(etas[start:end]))
        return weights


# Setting of `gradstore query --fast`: a quarter of the gradients of the default 6 × 2. What it
# keeps of the LDS is measured by benchmarks/query_cost.py. All checkpoints are kept: five gradients
# at the last keep less than one at each of five.
FAST: Final = Setting(timesteps=3, draws=1)
