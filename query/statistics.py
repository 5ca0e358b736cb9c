"""Means with their intervals, and rank correlations."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

RESAMPLES: Final = 2000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% percentile bootstrap interval.

    Attributes:
        mean: mean of the values.
        low: 2.5% quantile of the resampled means.
        high: 97.5% quantile.
        count: number of resampled values.
        runs: mean of each run (a training or projection seed), if there are several.
    """

    mean: float
    low: float
    high: float
    count: int
    runs: tuple[float, ...] = ()

    def json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def text(figure: Mapping[str, Any], digits: int = 3) -> str:
    """An interval in its JSON form, as text for a table."""
    mean, low, high = (f"{figure[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} ({low} … {high})"


def interval(values: ArrayLike, seed: int = 0) -> Interval:
    """The mean of values, with a bootstrap interval.

    Args:
        values: `[values]`, or `[runs, values]` with the same queries in each run: each query's
            values are averaged over runs, then queries are resampled. Averages skip NaNs;
            queries with only NaNs are dropped.
        seed: seed of the resampling.
    """
    array = np.atleast_2d(np.asarray(values, np.float64))
    array = array[:, ~np.isnan(array).all(axis=0)]
    if not array.size:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    means = np.nanmean(array, axis=0)
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(means), (RESAMPLES, len(means)))
    low, high = np.quantile(means[picks].mean(axis=1), [0.025, 0.975])
    runs = tuple(float(np.nanmean(row)) for row in array) if len(array) > 1 else ()
    return Interval(float(means.mean()), float(low), float(high), len(means), runs)


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Ranks within each row, from 1; ties share their mean rank. Both `[rows, values]`.

    Examples:
        >>> ranks([[30, 10, 10]]).tolist()
        [[3.0, 1.5, 1.5]]
    """
    given = np.atleast_2d(np.asarray(values, np.float64))
    order = np.argsort(given, axis=1, kind="stable")
    ordered = np.take_along_axis(given, order, axis=1)
    place = np.arange(given.shape[1])
    fresh = np.ones(given.shape, bool)  # whether a value differs from the one before it
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    final = np.roll(fresh, -1, axis=1)
    final[:, -1] = True
    first = np.maximum.accumulate(np.where(fresh, place, 0), axis=1)
    backward = np.where(final, place, given.shape[1])[:, ::-1]
    last = np.minimum.accumulate(backward, axis=1)[:, ::-1]
    found = np.empty(given.shape)
    np.put_along_axis(found, order, (first + last) / 2 + 1, axis=1)
    return found


def rank_correlation(left: ArrayLike, right: ArrayLike) -> NDArray[np.float64]:
    """Spearman's correlation of each row, both `[rows, values]`; NaN for constant rows.

    Examples:
        >>> rank_correlation([[1, 2, 3]], [[10, 20, 15]]).round(6).tolist()
        [0.5]
    """
    sides = []
    for one in (left, right):
        own = ranks(one)
        sides.append(own - own.mean(axis=1, keepdims=True))
    lengths = np.prod([np.linalg.norm(side, axis=1) for side in sides], axis=0)
    with np.errstate(invalid="ignore"):
        found: NDArray[np.float64] = (sides[0] * sides[1]).sum(axis=1) / lengths
    return found
