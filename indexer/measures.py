"""Measures: how rows become influence. A measure is a weight per row.

A row is stored as direction and norm apart, so a measure is chosen when searching, not when
collecting: TracIn gives each direction its norm back, ReTrac leaves it a unit vector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from gradstore.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.rows import Rows
    from gradstore.spec import Identity


class Measure(Protocol):
    """A weight per row, from what the store holds of it."""

    name: str

    def identity(self) -> Identity:
        """Name and parameters, as JSON."""

    def weights(self, rows: Rows, checkpoint: int) -> NDArray[np.float32]:
        """Weight of each row, float32 `[samples, slots]`."""


class TracIn:
    """Diffusion-TracIn (arXiv 2401.09031, section 4): rows weigh their norm."""

    name = "tracin"

    def identity(self) -> Identity:
        """Its name."""
        return {"name": self.name}

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

    def weights(self, rows: Rows, checkpoint: int) -> NDArray[np.float32]:  # noqa: ARG002
        """Ones."""
        return np.ones_like(rows.norm)


MEASURES: dict[str, type[TracIn] | type[ReTrac]] = {"tracin": TracIn, "retrac": ReTrac}


def measure_of(measure: Measure | str) -> Measure:
    """`measure` itself, or the one of that name.

    Raises:
        ConfigError: if there is none.
    """
    if not isinstance(measure, str):
        return measure
    if measure not in MEASURES:
        raise ConfigError(
            f"there is no measure {measure!r}; use {' or '.join(MEASURES)}, or pass an object with "
            "`name`, `identity` and `weights`."
        )
    return MEASURES[measure]()
