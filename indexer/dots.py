"""Inner products of pairs of features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Entries that are summed in float32; sums of so few are accurate to 1e-6.
_SEGMENT: Final = 1 << 12


def dots(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """⟨left, right⟩ of each pair, float64 `[pairs]`: float32 sums of segments, summed in float64.

    No BLAS product: its rounding depends on a row's position, and equal rows must tie.

    Args:
        left: float32 `[pairs, dim]`.
        right: float32 `[pairs, dim]`.

    Examples:
        >>> import numpy as np
        >>> ones = np.ones((2, 5000), np.float32)
        >>> dots(ones, 2 * ones)
        array([10000., 10000.])
    """
    total = np.zeros(len(left))
    for start in range(0, left.shape[1], _SEGMENT):
        here = slice(start, start + _SEGMENT)
        total += np.einsum("nd,nd->n", left[:, here], right[:, here])
    return total
