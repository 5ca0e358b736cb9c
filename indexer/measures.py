"""Measures: how rows become influence. A measure is a weight per row.

A row is stored as direction and norm apart, so a measure is chosen when searching, not when
collecting: TracIn gives each direction its norm back, ReTrac leaves it a unit vector, and the
others lie between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol, Self, cast

import numpy as np

from gradstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gradstore.reader import Store
    from gradstore.rows import Rows
    from gradstore.spec import Identity

_BINS: Final = 50


class Measure(Protocol):
    """A weight per row, from what the store holds of it: norm, timestep, checkpoint."""

    @property
    def name(self) -> str:
        """What `measure_of` makes it of, such as `power:0.5`; also names the index's folder."""

    def identity(self) -> Identity:
        """Name, parameters and what was learned from a store, as JSON."""

    def fitted(self, store: Store) -> Measure:
        """The measure with what it must know of a training store; itself, if that is nothing.

        Queries are weighed by what was learned from the training store, too.
        """

    def weights(self, rows: Rows, checkpoint: int) -> NDArray[np.float32]:
        """Weight of each row, float32 `[samples, slots]`, at a checkpoint's place.

        By norm, loss and timestep: directions may be left out, `[samples, slots, 0]`.
        """


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
        _require_share("power", "α", self.alpha)

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
        _require_share("clip", "q", self.q)

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


def _require_share(measure: str, name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{measure}: {name} is {value:g}; it must be from 0 to 1")


def _trak(share: float = 1.0) -> Measure:
    from indexer.precondition import Trak

    return Trak(share)


MEASURES: dict[str, Callable[[], Measure]] = {
    "tracin": TracIn,
    "retrac": ReTrac,
    "calibrated": Calibrated,
    "trak": _trak,
}
PARAMETRIC: dict[str, Callable[[float], Measure]] = {"power": Power, "clip": Clip, "trak": _trak}


def measure_of(measure: Measure | str) -> Measure:
    """`measure` itself, or the one of that name: `tracin`, `power:0.5`, `clip:0.9`, `trak`, ….

    `package.module.NAME` is a measure of one's own: an object, or what makes one; of a number, if
    `:NUMBER` follows.

    Raises:
        ConfigError: if there is none.
    """
    if not isinstance(measure, str):
        return measure
    if "@" in measure:
        name, _, given = measure.partition("@")
        low, dash, high = given.partition("-")
        if not (dash and low.isdecimal() and high.isdecimal() and len(given) < 20):
            raise ConfigError(f"{measure!r}: {given!r} is no range of timesteps; use FIRST-LAST")
        return Within(measure_of(name), int(low), int(high))
    name, colon, parameter = measure.partition(":")
    if "." in name:
        return _imported(measure)
    if name in MEASURES and not colon:
        return MEASURES[name]()
    try:
        return PARAMETRIC[name](float(parameter))
    except (KeyError, ValueError):
        known = [*MEASURES, *(f"{one}:NUMBER" for one in PARAMETRIC)]
        raise ConfigError(
            f"there is no measure {measure!r}; use {', '.join(known)}, or one of your own, "
            "package.module.NAME: an object with `name`, `identity`, `fitted` and `weights`."
        ) from None


def _imported(name: str) -> Measure:
    """A measure from anybody's module."""
    path, colon, parameter = name.partition(":")
    module, _, attribute = path.rpartition(".")
    try:
        made = getattr(import_module(module), attribute)
        if colon or isinstance(made, type):
            made = made(float(parameter)) if colon else made()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"measure {name!r} cannot be made: {error}. Its module must be installed or on "
            "PYTHONPATH, and NAME be a measure, or make one, of a number if one is given."
        ) from error
    lacking = [one for one in ("identity", "fitted", "weights") if not hasattr(made, one)]
    if lacking or getattr(made, "name", None) != name:
        raise ConfigError(
            f"{name!r} is no measure: "
            + (f"it has no {lacking[0]!r}" if lacking else f"its name is not {name!r}")
            + ". See indexer.Measure for what one has."
        )
    return cast("Measure", made)
