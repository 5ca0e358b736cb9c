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
        checkpoints: how many checkpoints are asked at; None for all.
    """

    timesteps: int
    draws: int
    checkpoints: int | None = None

    def etas(self, etas: Sequence[float]) -> list[float]:
        """Checkpoint weights that leave all but `checkpoints` evenly spaced ones out.

        The last is among them. A checkpoint stands for the training since the one before it, so
        each that is left takes over the weights of those left out before it.

        Args:
            etas: the store's checkpoint weights, in training order.

        Returns:
            As many weights with the same sum; those of the store, if it has no more checkpoints.
        """
        count = len(etas) if self.checkpoints is None else min(self.checkpoints, len(etas))
        ends = [len(etas) * (part + 1) // count for part in range(count)]
        weights = [0.0] * len(etas)
        for start, end in zip([0, *ends], ends, strict=False):
            weights[end - 1] = float(sum(etas[start:end]))
        return weights


# What `gradstore query --fast` takes: a quarter of the gradients of the usual 10 × 4. By
# benchmarks/query_cost.py it keeps Spearman's 0.88 to 0.91 with the full question, where 10 × 4
# keep 0.96. Checkpoints are not saved on: half of them cost more of the ranking than half of the
# rest.
FAST: Final = Setting(timesteps=5, draws=2)
