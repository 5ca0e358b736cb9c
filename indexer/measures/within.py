"""Measures that compare a row with the store's other rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from gradstore.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.store.format.rows import Rows
    from gradstore.store.format.spec import Identity
    from gradstore.store.reader import Store
    from indexer.measure import Measure


_BINS: Final = 50


@dataclass(frozen=True)
class Calibrated:
    """Take out only the timestep's share of the norm: norm / mean norm at that timestep.

    The paper's finding is that a row's norm depends on its timestep, so that TracIn ranks samples
    by the timestep that they happened to get. Here a row weighs how long it is among those of its
    timestep and checkpoint in the training store. Where timesteps were drawn at random there are
    few rows of each; neighbours are taken together, in at most 50 groups of equal number.

    Attributes:
        edges: first timestep of each group, at each checkpoint, once it is known.
        means: mean norm of each group.
    """

    edges: tuple[tuple[int, ...], ...] | None = None
    means: tuple[tuple[float, ...], ...] | None = None
    name = "calibrated"

    def identity(self) -> Identity:
        """Name, groups and means."""
        return {
            "name": self.name,
            "edges": [list(one) for one in self.edges or ()],
            "means": [list(one) for one in self.means or ()],
        }

    def fitted(self, store: Store) -> Self:
        """With the mean norms of a store's rows."""
        edges, means = [], []
        for checkpoint in range(store.checkpoints):
            timesteps = store.column("timestep", checkpoint).ravel()
            norms = store.column("norm", checkpoint).astype(np.float64).ravel()
            own = np.unique(timesteps)
            if len(own) > _BINS:
                own = np.unique(np.quantile(timesteps, np.arange(_BINS) / _BINS, method="lower"))
            group = np.searchsorted(own, timesteps, side="right") - 1
            sums = np.bincount(group, norms, len(own))
            edges.append(tuple(own.astype(int).tolist()))
            means.append(tuple((sums / np.bincount(group, minlength=len(own))).tolist()))
        return replace(self, edges=tuple(edges), means=tuple(means))

    def weights(self, rows: Rows, checkpoint: int) -> NDArray[np.float32]:
        """Norms over the mean norm of their timesteps; of the nearest group before, if unknown."""
        if self.edges is None or self.means is None:
            raise ConfigError(
                "calibrated does not know the store's norms: use calibrated.fitted(store)"
            )
        edges, means = np.array(self.edges[checkpoint]), np.array(self.means[checkpoint])
        group = np.searchsorted(edges, rows.timestep, side="right") - 1
        mean = means[np.maximum(group, 0)]
        weights = np.zeros(rows.norm.shape, np.float32)
        np.divide(rows.norm, mean, out=weights, where=mean > 0, casting="same_kind")
        return weights


@dataclass(frozen=True)
class Within:
    """Another measure within a range of timesteps: rows outside weigh nothing, on either side.

    Attributes:
        measure: the other measure.
        low: first timestep.
        high: last timestep.
    """

    measure: Measure
    low: int
    high: int

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ConfigError(f"timesteps {self.low}-{self.high} are no range; use FIRST-LAST")
        if hasattr(self.measure, "prepared"):
            raise ConfigError(
                f"{self.measure.name} preconditions whole samples, not rows within {self.low}-"
                f"{self.high}; use another measure within timesteps"
            )

    @property
    def name(self) -> str:
        """`MEASURE@LOW-HIGH`."""
        return f"{self.measure.name}@{self.low}-{self.high}"

    def identity(self) -> Identity:
        """The other measure's, and the range."""
        return {"name": "within", "of": self.measure.identity(), "range": [self.low, self.high]}

    def fitted(self, store: Store) -> Within:
        """With the other measure fitted."""
        return replace(self, measure=self.measure.fitted(store))

    def weights(self, rows: Rows, checkpoint: int) -> NDArray[np.float32]:
        """The other measure's weights, or 0."""
        inside = (rows.timestep >= self.low) & (rows.timestep <= self.high)
        return np.where(inside, self.measure.weights(rows, checkpoint), np.float32(0))
