"""Products of many stored rows with many queries: the one place of the indexer that needs torch.

Processors with bfloat16 instructions multiply it several times as fast as float32. It keeps eight
binary digits, which is enough to find candidates: those are scored again in float32.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor has bfloat16 instructions, or there is a GPU."""
    import torch

    return torch.cuda.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def as_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """An array in float32. From float16 torch takes a thirtieth of numpy's time."""
    import torch

    if array.dtype != np.float16:
        return array.astype(np.float32, copy=False)
    return np.asarray(torch.from_numpy(array).float().numpy())


class Multiplier:
    """Queries, ready to be multiplied with rows.

    Args:
        queries: float32 `[queries, dim]`.
        bfloat16: whether to round both sides to bfloat16; sums are kept in float32 either way.
    """

    def __init__(self, queries: NDArray[np.float32], *, bfloat16: bool) -> None:
        import torch

        self._device = torch.device("cuda" if bfloat16 and torch.cuda.is_available() else "cpu")
        self._dtype = torch.bfloat16 if bfloat16 else torch.float32
        given = torch.from_numpy(np.ascontiguousarray(queries))
        self._queries = given.to(self._device, self._dtype)

    def __call__(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Inner products of `rows`, float16 or float32 `[rows, dim]`, as `[queries, rows]`."""
        import torch

        # By way of float32, which from float16 is a quarter of the straight way's time.
        given = torch.from_numpy(rows).to(self._device).float().to(self._dtype)
        return np.asarray((self._queries @ given.T).float().cpu().numpy())


class Cholesky:
    """Cholesky's factor of a symmetric, positive definite matrix.

    Args:
        matrix: float64 `[dim, dim]`.
    """

    def __init__(self, matrix: NDArray[np.float64]) -> None:
        import torch

        self._factor = torch.linalg.cholesky(torch.from_numpy(matrix))

    def solve(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """`matrix⁻¹` times each of some vectors `[vectors, dim]`, float64."""
        import torch

        right = torch.from_numpy(np.ascontiguousarray(vectors.T, np.float64))
        solved: NDArray[np.float64] = torch.cholesky_solve(right, self._factor).numpy()
        return solved.T
