"""Products of many stored rows with many queries: the one place of the indexer that needs torch.

Processors with bfloat16 instructions multiply it several times as fast as float32. It keeps eight
binary digits, which is enough to find candidates: those are scored again in float32.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


# By how many powers of two bfloat16's exponents reach further than float16's.
_SHIFT: Final = 112
# All bits but those that the shift filled with copies of the sign, as an int16.
_NO_SIGNS: Final = 0x8FFF - 0x10000
_FEW: Final = 128


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


def lengths(vectors: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Σ|x_i| and Σx_i² of each vector, float16 or float32 `[vectors, dim]`."""
    import torch

    given = torch.from_numpy(vectors)
    sizes, squares = torch.empty(len(given)), torch.empty(len(given))
    few = torch.empty(min(len(given), _FEW), given.shape[1])  # they stay near the processor
    for start in range(0, len(given), _FEW):
        here = slice(start, start + _FEW)
        wide = few[: len(given[here])].copy_(given[here])
        torch.linalg.vector_norm(wide, 1, dim=1, out=sizes[here])
        torch.linalg.vector_norm(wide, 2, dim=1, out=squares[here])
    return np.asarray(sizes.numpy()), np.asarray(squares.square_().numpy())


class Multiplier:
    """Queries, ready to be multiplied with rows.

    Args:
        queries: float32 `[queries, dim]`.
        bfloat16: whether to round both sides to bfloat16; sums are kept in float32 until the
            result is rounded likewise.
    """

    def __init__(self, queries: NDArray[np.float32], *, bfloat16: bool) -> None:
        import torch

        self._device = torch.device("cuda" if bfloat16 and torch.cuda.is_available() else "cpu")
        self._dtype = torch.bfloat16 if bfloat16 else torch.float32
        given = torch.from_numpy(np.ascontiguousarray(queries))
        self._largest = float(given.abs().max()) or 1.0
        self._queries = (given / self._largest).to(self._device, self._dtype)
        self._shifted = self._queries * 2.0**_SHIFT
        self._bits = torch.empty(0, queries.shape[1], dtype=torch.int16)

    def __call__(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Inner products of `rows`, float16 or float32 `[rows, dim]`, as `[queries, rows]`."""
        import torch

        given, queries = torch.from_numpy(rows), self._queries
        if given.dtype == torch.float16 and self._dtype == torch.bfloat16 and not given.is_cuda:
            # A float16 whose bits move three places to the right is a bfloat16, 2^112 times
            # smaller: that is half the time of the way by float32. 4 is added to round; numbers
            # below float16's normal ones may count as 0.
            if len(given) > len(self._bits):  # kept: fresh memory costs more than the shift
                self._bits = torch.empty(given.shape, dtype=torch.int16)
            bits = torch.add(given.view(torch.int16), 4, out=self._bits[: len(given)])
            bits.bitwise_right_shift_(3).bitwise_and_(_NO_SIGNS)
            given, queries = bits.view(torch.bfloat16), self._shifted
        else:
            given = given.to(self._device).float().to(self._dtype)
        return np.asarray((queries @ given.T).float().cpu().numpy()) * np.float32(self._largest)
