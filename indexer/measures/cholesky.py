"""Cholesky's factor in the place of its matrix, a few columns at a time.

A matrix of 16,384 × 16,384 takes 2 GiB in float64, and LAPACK by way of numpy or torch copies it at
every step. Here nothing as large is made beside it, and it may lie in a file.
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
    """The lower factor L of a symmetric, positive definite matrix L·Lᵀ.

    Args:
        matrix: float64 `[dim, dim]`, of which the lower triangle is read. It becomes the factor.

    Raises:
        numpy.linalg.LinAlgError: if it is not positive definite.
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
        """Bytes of the factor."""
        return self._factor.nbytes

    def put_aside(self) -> None:
        """Move the factor into a temporary file, of which memory holds what it has room for."""
        with TemporaryFile(prefix="gradstore-") as file:
            aside = np.memmap(file, np.float64, "w+", shape=self._factor.shape)
        aside[:] = self._factor
        self._factor = aside

    def solve(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """`matrix⁻¹` times each of some vectors `[vectors, dim]`, float64."""
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
