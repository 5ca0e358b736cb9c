"""Measures that weight each row by its norm alone."""

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
    """Diffusion-TracIn (arXiv 2401.09031, section 4): a row's weight is its norm.

    Examples:
        >>> import gradstore as gs
        >>> rows = gs.open_store("train.gradstore").rows(0)
        >>> bool((gs.TracIn().weights(rows, 0) == rows.norm).all())
        True
    """

    name = "tracin"

    def identity(self) -> Identity:
        """Name."""
        return {"name": self.name}

    def fitted(self, store: Store) -> Self:  # noqa: ARG002
        """Return itself; there is nothing to fit."""
        return self

    def weights(self, rows: Rows, checkpoint: int) -> NDArray[np.float32]:  # noqa: ARG002
        """Return the norms."""
        return rows.norm


class ReTrac:
    """Diffusion-ReTrac (arXiv 2401.09031, section 5): all rows have the same weight.

    Each row is normalised by the norm of its *full* gradient, after averaging over noises and
    before averaging over timesteps. The mean is not normalised again.

    Examples:
        >>> import gradstore as gs
        >>> rows = gs.open_store("train.gradstore").rows(0)
        >>> bool((gs.ReTrac().weights(rows, 0) == 1).all())
        True
    """

    name = "retrac"

    def identity(self) -> Identity:
        """Name."""
        return {"name": self.name}

    def fitted(self, store: Store) -> Self:  # noqa: ARG002
        """Return itself; there is nothing to fit."""
        return self

    def weights(self, rows: Rows, checkpoint: int) -> NDArray[np.float32]:  # noqa: ARG002
        """Return ones."""
        return np.ones_like(rows.norm)


@dataclass(frozen=True)
class Power:
    """Interpolates between TracIn (α = 0) and ReTrac (α = 1): a row's weight is norm^(1 − α).

    Attributes:
        alpha: 0 … 1.

    Examples:
        >>> import gradstore as gs
        >>> gs.search("train.gradstore", "asked.gradstore", 3, measure=gs.Power(0.5))
        Answer('power:0.5', queries=3, k=3, store='train.gradstore')
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
        """Return itself; there is nothing to fit."""
        return self

    def weights(self, rows: Rows, checkpoint: int) -> NDArray[np.float32]:  # noqa: ARG002
        """Powers of the norms; 0 for a zero gradient, whose direction is also 0."""
        exact = np.where(rows.norm > 0, rows.norm, 1).astype(np.float64) ** (1 - self.alpha)
        return np.where(rows.norm > 0, exact, 0).astype(np.float32)


@dataclass(frozen=True)
class Clip:
    """Limits dominant rows: norms are clipped at the q-quantile of their checkpoint.

    The paper suggests this middle ground: a row's weight is its norm, but at most the q-quantile of
    the training store's norms at its checkpoint.

    Attributes:
        q: 0 … 1.
        thresholds: the quantile at each checkpoint; None before fitting.

    Examples:
        >>> import gradstore as gs
        >>> store = gs.open_store("train.gradstore")
        >>> clip = gs.Clip(0.5).fitted(store)
        >>> rows = store.rows(0)
        >>> int((clip.weights(rows, 0) < rows.norm).sum())
        35
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
        """Fit to the quantiles of a store's norms."""
        norms = (store.column("norm", k).astype(np.float64) for k in range(store.checkpoints))
        return replace(self, thresholds=tuple(float(np.quantile(one, self.q)) for one in norms))

    def weights(self, rows: Rows, checkpoint: int) -> NDArray[np.float32]:
        """Norms, clipped at the threshold."""
        if self.thresholds is None:
            raise ConfigError("clip is not fitted to a store: use clip.fitted(store)")
        return np.minimum(rows.norm, np.float32(self.thresholds[checkpoint]))
