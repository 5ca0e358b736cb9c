"""Measures that depend on timesteps: `calibrated`, and another measure within a range."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from gradstore.errors import ConfigError
from indexer.measure import is_of_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.store.format.rows import Rows
    from gradstore.store.format.spec import Identity
    from gradstore.store.reader import Store
    from indexer.measure import Measure


_BINS: Final = 50


@dataclass(frozen=True)
class Calibrated:
    """Removes only the timestep's share of the norm: norm / mean norm at that timestep.

    The paper finds that a row's norm depends on its timestep, so TracIn ranks samples by the
    timesteps they happened to draw. Here, a row's weight is its norm relative to the training
    store's rows of the same timestep and checkpoint. If timesteps were drawn at random, each has
    few rows; adjacent timesteps then form at most 50 groups of equal size.

    Attributes:
        edges: first timestep of each group, per checkpoint; None before fitting.
        means: mean norm of each group, per checkpoint; None before fitting.

    Examples:
        >>> import gradstore as gs
        >>> calibrated = gs.Calibrated().fitted(gs.open_store("train.gradstore"))
        >>> calibrated.name, len(calibrated.means)
        ('calibrated', 2)
    """

    edges: tuple[tuple[int, ...], ...] | None = None
    means: tuple[tuple[float, ...], ...] | None = None
    name = "calibrated"

    def identity(self) -> Identity:
        """Name, group edges and mean norms."""
        return {
            "name": self.name,
            "edges": [list(one) for one in self.edges or ()],
            "means": [list(one) for one in self.means or ()],
        }

    def fitted(self, store: Store) -> Self:
        """Fit to the mean norms of a store's rows."""
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
        """Norms over their group's mean norm; timesteps before the first group use the first."""
        if self.edges is None or self.means is None:
            raise ConfigError("calibrated is not fitted to a store: use calibrated.fitted(store)")
        edges, means = np.array(self.edges[checkpoint]), np.array(self.means[checkpoint])
        group = np.searchsorted(edges, rows.timestep, side="right") - 1
        mean = means[np.maximum(group, 0)]
        weights = np.zeros(rows.norm.shape, np.float32)
        np.divide(rows.norm, mean, out=weights, where=mean > 0, casting="same_kind")
        return weights


@dataclass(frozen=True)
class Within:
    """Applies another measure within a range of timesteps; rows outside have weight 0.

    This holds for training rows and query rows.

    Attributes:
        measure: the other measure.
        low: first timestep.
        high: last timestep (inclusive).

    Examples:
        >>> import gradstore as gs
        >>> measure = gs.Within(gs.ReTrac(), 0, 499)
        >>> gs.search("train.gradstore", "asked.gradstore", 3, measure=measure)
        Answer('retrac@0-499', queries=3, k=3, store='train.gradstore')
    """

    measure: Measure
    low: int
    high: int

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ConfigError(f"timesteps {self.low}-{self.high} are no range; use FIRST-LAST")
        if not is_of_rows(self.measure):
            raise ConfigError(
                f"{self.measure.name} transforms whole samples, not rows within {self.low}-"
                f"{self.high}; use another measure for a range of timesteps"
            )

    @property
    def name(self) -> str:
        """`MEASURE@LOW-HIGH`."""
        return f"{self.measure.name}@{self.low}-{self.high}"

    def identity(self) -> Identity:
        """Identity of the other measure, and the range."""
        return {"name": "within", "of": self.measure.identity(), "range": [self.low, self.high]}

    def fitted(self, store: Store) -> Within:
        """Fit the other measure."""
        return replace(self, measure=self.measure.fitted(store))

    def weights(self, rows: Rows, checkpoint: int) -> NDArray[np.float32]:
        """Weights of the other measure within the range, else 0."""
        inside = (rows.timestep >= self.low) & (rows.timestep <= self.high)
        return np.where(inside, self.measure.weights(rows, checkpoint), np.float32(0))
