"""Blocked in-place Cholesky factorisation.

A 16,384 × 16,384 matrix takes 2 GiB in float64, and LAPACK called through numpy or torch copies it
at every step. This code allocates nothing of that size, and the matrix may be a memory-mapped file.
"""

from __future__ import annotations

from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_BLOCK: Final = 512


class Cholesky:
    """Lower Cholesky factor L of a symmetric positive definite matrix L·Lᵀ.

    Args:
        matrix: float64 `[dim, dim]`. Only its lower triangle is read. It is overwritten by L.

    Raises:
        numpy.linalg.LinAlgError: if the matrix is not positive definite.
    """

    def __init__(self, matrix: NDArray[np.float64]) -> None:
        self._factor = matrix
        for low, high in self._blocks():
            before = matrix[low:high, :low]
            matrix[low:, low:high] -= matrix[low:, :low] @ before.T
            corner = np.linalg.cholesky(matrix[low:high, low:high])
            matrix[low:high, low:high] = corner
            matrix[high:, low:high] = np.linalg.solve(corner, matrix[high:, low:high].T).T

    @property
    def nbytes(self) -> int:
        """Size of the factor in bytes."""
        return self._factor.nbytes

    def put_aside(self) -> None:
        """Move the factor to a memory-mapped temporary file; the OS caches what fits in memory."""
        with TemporaryFile(prefix="gradstore-") as file:
            aside = np.memmap(file, np.float64, "w+", shape=self._factor.shape)
        aside[:] = self._factor
        self._factor = aside

    def solve(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """Multiply `matrix⁻¹` by each of the vectors `[vectors, dim]`, float64."""
        factor, right = self._factor, np.array(vectors.T, np.float64, order="C")
        for low, high in self._blocks():
            right[low:high] -= factor[low:high, :low] @ right[:low]
            right[low:high] = np.linalg.solve(factor[low:high, low:high], right[low:high])
        for low, high in reversed(list(self._blocks())):
            right[low:high] -= factor[high:, low:high].T @ right[high:]
            right[low:high] = np.linalg.solve(factor[low:high, low:high].T, right[low:high])
        return right.T

    def _blocks(self) -> Iterator[tuple[int, int]]:
        dim = len(self._factor)
        for low in range(0, dim, _BLOCK):
            yield low, min(low + _BLOCK, dim)
