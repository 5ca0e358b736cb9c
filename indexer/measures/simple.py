"""Measures that weigh each row by its norm alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from gradstore.errors import ConfigError
from indexer.measure import require_share

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.store.format.rows import Rows
    from gradstore.store.format.spec import Identity
    from gradstore.store.reader import Store


class TracIn:
    """Diffusion-TracIn (arXiv 2401.09031, section 4): rows weigh their norm."""

    name = "tracin"

    def identity(self) -> Identity:
        """Its name."""
        return {"name": self.name}

    def fitted(self, store: Store) -> Self:  # noqa: ARG002
        """Itself."""
        return self

    def weights(self, rows: Rows, checkpoint: int) -> NDArray[np.float32]:  # noqa: ARG002
        """The norms."""
        return rows.norm


class ReTrac:
    """Diffusion-ReTrac (arXiv 2401.09031, section 5): rows weigh the same, whatever their norm.

    Each row is normalised by the norm of its *full* gradient, after averaging noises and before
    averaging timesteps; the mean is not normalised again.
    """

    name = "retrac"

    def identity(self) -> Identity:
        """Its name."""
        return {"name": self.name}

    def fitted(self, store: Store) -> Self:  # noqa: ARG002
        """Itself."""
        return self

    def weights(self, rows: Rows, checkpoint: int) -> NDArray[np.float32]:  # noqa: ARG002
        """Ones."""
        return np.ones_like(rows.norm)


@dataclass(frozen=True)
class Power:
    """Between the two: rows weigh norm^(1 − α). TracIn at 0, ReTrac at 1.

    Attributes:
        alpha: 0 … 1.
    """

    alpha: float

    def __post_init__(self) -> None:
        require_share("power", "α", self.alpha)

    @property
    def name(self) -> str:
        """`power:α`."""
        return f"power:{self.alpha:g}"

    def identity(self) -> Identity:
        """Name and α."""
        return {"name": "power", "alpha": self.alpha}

    def fitted(self, store: Store) -> Self:  # noqa: ARG002
        """Itself."""
        return self

    def weights(self, rows: Rows, checkpoint: int) -> NDArray[np.float32]:  # noqa: ARG002
        """Powers of the norms; 0 for a zero gradient, whose direction is 0 as well."""
        exact = np.where(rows.norm > 0, rows.norm, 1).astype(np.float64) ** (1 - self.alpha)
        return np.where(rows.norm > 0, exact, 0).astype(np.float32)


@dataclass(frozen=True)
class Clip:
    """Normalise only what is dominant: rows longer than the q-quantile of their checkpoint.

    A middle ground that the paper suggests: a row weighs its norm, but no more than the quantile of
    the training store's norms at its checkpoint.

    Attributes:
        q: 0 … 1.
        thresholds: the quantile at each checkpoint, once it is known.
    """

    q: float
    thresholds: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        require_share("clip", "q", self.q)

    @property
    def name(self) -> str:
        """`clip:q`."""
        return f"clip:{self.q:g}"

    def identity(self) -> Identity:
        """Name, q and thresholds."""
        return {"name": "clip", "q": self.q, "thresholds": list(self.thresholds or ())}

    def fitted(self, store: Store) -> Self:
        """With the quantiles of a store's norms."""
        norms = (store.column("norm", k).astype(np.float64) for k in range(store.checkpoints))
        return replace(self, thresholds=tuple(float(np.quantile(one, self.q)) for one in norms))

    def weights(self, rows: Rows, checkpoint: int) -> NDArray[np.float32]:
        """Norms, but no more than the threshold."""
        if self.thresholds is None:
            raise ConfigError("clip does not know the store's norms: use clip.fitted(store)")
        return np.minimum(rows.norm, np.float32(self.thresholds[checkpoint]))
