"""Settings of a query: how many gradients are spent on it, and what that leaves of the ranking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Setting:
    """Timesteps × draws × checkpoints: so many gradients are computed of each query.

    Attributes:
        timesteps: timesteps of a query.
        draws: noises averaged into each timestep.
        checkpoints: how many checkpoints are asked at.
    """

    timesteps: int
    draws: int
    checkpoints: int

    def etas(self, etas: Sequence[float]) -> list[float]:
        """Checkpoint weights that leave all but `checkpoints` evenly spaced ones out.

        The last is among them. A checkpoint stands for the training since the one before it, so
        each that is left takes over the weights of those left out before it.

        Args:
            etas: the store's checkpoint weights, in training order.

        Returns:
            As many weights with the same sum; those of the store, if it has no more checkpoints.
        """
        count = min(self.checkpoints, len(etas))
        ends = [len(etas) * (part + 1) // count for part in range(count)]
        weights = [0.0] * len(etas)
        for start, end in zip([0, *ends], ends, strict=False):
            weights[end - 1] = float(sum(etas[start:end]))
        return weights


# What `gradstore query --fast` takes. Provisional, until benchmarks/search.py has found the
# cheapest whose ranking keeps Spearman's 0.95 with that of the paper's own setting.
FAST: Final = Setting(timesteps=4, draws=1, checkpoints=2)
