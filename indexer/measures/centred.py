"""Cosines of features relative to the mean training sample: a measure of whole samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from gradstore.errors import ConfigError
from indexer.feature import Features
from indexer.measures.simple import TracIn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.store.format.rows import Rows
    from gradstore.store.format.spec import Identity
    from gradstore.store.reader import Store

# Samples whose mean is taken: the error of the mean is 1/64 of the distance of a sample from it.
_SAMPLES: Final = 4096
# Samples that are read at once.
_TOGETHER: Final = 256
# A distance from the mean below this share of the mean's length is float32 rounding.
_ROUNDING: Final = 1e-6


@dataclass(frozen=True)
class Centred:
    """`cos(φ(z') − μ, φ(z) − μ)` per checkpoint k, times η_k, summed over checkpoints.

    φ is the mean over slots of norm · direction, as in TracIn, and μ the mean of φ over training
    samples: over at most 4,096, spread evenly. What all samples share is removed from both sides,
    and no sample scores high because it is far from the others.

    Scores are not linear in rows: a score cannot be split by timestep, and every sample has the
    same influence on itself.

    Attributes:
        means: μ at each checkpoint, float64 `[dim]`; None before fitting.
        samples: hash of the training samples that μ belongs to; None before fitting.

    Examples:
        >>> import gradstore as gs
        >>> gs.search("train.gradstore", "asked.gradstore", 3, measure="centred")
        Answer('centred', queries=3, k=3, store='train.gradstore')
    """

    means: tuple[NDArray[np.float64], ...] | None = None
    samples: str | None = None

    name = "centred"

    def identity(self) -> Identity:
        """Name, and the samples that define μ."""
        return {"name": self.name, "samples": self.samples}

    def fitted(self, store: Store) -> Self:
        """Fit μ to a store; return itself if already fitted."""
        if self.means is not None:
            return self
        features = Features(TracIn(), (1.0,) * store.checkpoints)
        count = min(store.samples, _SAMPLES)
        some = np.arange(count) * store.samples // count
        means = []
        for checkpoint in range(store.checkpoints):
            total = np.zeros(store.dim)
            for start in range(0, count, _TOGETHER):
                rows = store.take(checkpoint, some[start : start + _TOGETHER])
                total += features.part(store, checkpoint, rows).sum(axis=0, dtype=np.float64)
            means.append(total / count)
        return replace(self, means=tuple(means), samples=store.samples_hash)

    def weights(self, rows: Rows, checkpoint: int) -> NDArray[np.float32]:  # noqa: ARG002
        """Return the norms."""
        return rows.norm

    def moved(
        self, parts: NDArray[np.float32], checkpoint: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Unit vectors of `φ − μ`, and their lengths; 0 where φ is μ.

        Args:
            parts: φ of some samples, float32 `[samples, dim]`.
            checkpoint: position of the checkpoint.

        Returns:
            float32 `[samples, dim]` and `[samples]`.
        """
        if self.means is None:
            raise ConfigError("centred is not fitted to a store: use centred.fitted(store)")
        mean = self.means[checkpoint].astype(np.float32)
        apart = parts - mean
        lengths = np.sqrt(np.einsum("nd,nd->n", apart, apart, dtype=np.float64)).astype(np.float32)
        lengths[lengths <= _ROUNDING * np.linalg.norm(mean)] = 0
        far = lengths[:, None] > 0
        return np.divide(apart, lengths[:, None], out=np.zeros_like(apart), where=far), lengths
