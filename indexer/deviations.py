"""The noise of a sample's mean over timesteps and noises, estimated from its own rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from indexer.product import as_float32

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.store.format.rows import Rows
    from gradstore.store.reader import Store
    from indexer.feature import Features


# Degrees of freedom of a variance per second difference; neighbouring ones share rows. Var of the
# sum of squares of (1, −2, 1)-differences of independent normal rows: 36 alone, 16 and 1 with the
# next two on each side.
_FREEDOM: Final = 36 / (36 + 2 * 16 + 2 * 1)
# 97.5% quantile of the normal distribution.
_NORMAL: Final = 1.959964


def deviations(
    features: Features, store: Store, checkpoint: int, rows: Rows
) -> NDArray[np.float32] | None:
    """Vectors d of which Σ ⟨d, v⟩² estimates the variance of ⟨φ, v⟩ under fresh noises, for any v.

    φ is one checkpoint's part of a feature: a mean over T slots. Second differences of rows over
    timesteps cancel a trend that is straight over three neighbours and keep their noise, six
    times; so a sixth of their mean square estimates the variance of a row (Gasser, Sroka and
    Jennen-Steinmetz, Biometrika 73, 1986), and a T-th of that the variance of the mean. Where the
    trend bends the estimate is too high, in expectation never too low.

    Args:
        features: computes features from rows; its slots are averaged.
        store: the store of the rows.
        checkpoint: position of the checkpoint.
        rows: rows of some samples.

    Returns:
        float32 `[samples, slots − 2, width]`; None if there are fewer than three slots, or if slots
        are matched and not averaged.
    """
    slots = rows.norm.shape[1]
    if slots < 3 or features.slots is not None:
        return None
    order = np.argsort(rows.timestep, axis=1, kind="stable")
    weights = features.weights(store, checkpoint, rows)  # of a mean: each holds 1 / slots
    bend = np.sqrt(slots / (6 * (slots - 2))) * np.array([1, -2, 1])
    # One product per sample: factors [samples, differences, slots] times directions.
    factors = np.zeros((len(order), slots - 2, slots), np.float32)
    for shift, factor in enumerate(bend):
        place = order[:, shift : slots - 2 + shift, None]
        own = np.take_along_axis(weights[:, None], place, axis=2)
        np.put_along_axis(factors, place, factor * own, axis=2)
    found: NDArray[np.float32] = np.matmul(factors, as_float32(rows.direction))
    return features.varied(rows, weights, found, checkpoint)


def margin(
    variances: NDArray[np.float64], differences: int, known: NDArray[np.float64] | float = 0.0
) -> NDArray[np.float64]:
    """Half the width of a 95% interval, by Student's t.

    A variance from few differences is itself uncertain, so the interval is wider than 1.96 standard
    errors: 2.7 at one checkpoint and ten timesteps, 2.1 at five. Degrees of freedom of a sum of
    variances are Welch and Satterthwaite's.

    Args:
        variances: variance at each checkpoint, estimated by `deviations`, `[…, checkpoints]`.
        differences: number of second differences that each is estimated from.
        known: a further variance that is known, `[…]`.

    Returns:
        float64 `[…]`.

    Examples:
        >>> [round(float(margin(one, 8)), 1) for one in (np.array([1.0]), np.full(5, 0.2))]
        [2.7, 2.1]
    """
    total = variances.sum(axis=-1) + known
    own = (variances**2).sum(axis=-1) / (_FREEDOM * max(1, differences))
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.nan_to_num(own / total**2)  # 1 / degrees of freedom
    z = _NORMAL
    # Cornish and Fisher's expansion of the quantile; below two degrees it is no guide.
    inverse = np.minimum(inverse, 0.5)
    quantile = (
        z
        + (z**3 + z) / 4 * inverse
        + (5 * z**5 + 16 * z**3 + 3 * z) / 96 * inverse**2
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384 * inverse**3
    )
    found: NDArray[np.float64] = quantile * np.sqrt(total)
    return found
