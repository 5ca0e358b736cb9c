"""Products of many stored rows with many queries, by torch.

Processors with bfloat16 instructions multiply it several times as fast as float32. It keeps eight
binary digits, which is enough to find candidates: those are scored again in float32. A query or two
are multiplied with float16, as rows are stored, at the speed of reading them.
"""

from __future__ import annotations

import math
from functools import cache
from threading import local
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray


# By how many powers of two bfloat16's exponents reach further than float16's.
_SHIFT: Final = 112
# All bits but those that the shift filled with copies of the sign, as an int16.
_NO_SIGNS: Final = 0x8FFF - 0x10000
_FEW: Final = 128
# Up to so many queries float16 is faster.
_BY_FLOAT16: Final = 2


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
        torch.linalg.vector_norm(wide, 2, dim=1, out=squares[here])
        torch.sum(wide.abs_(), 1, out=sizes[here])  # a fifth of what the norm of order 1 takes
    return np.asarray(sizes.numpy()), np.asarray(squares.square_().numpy())


class Multiplier:
    """Queries, ready to be multiplied with rows, in several threads at once.

    Args:
        queries: float32 `[queries, dim]`.
        half: whether to round both sides to two bytes; sums are kept in float32 until the result
            is rounded likewise.
    """

    def __init__(self, queries: NDArray[np.float32], *, half: bool) -> None:
        import torch

        self._device = torch.device("cuda" if half and torch.cuda.is_available() else "cpu")
        self._dtype = torch.bfloat16 if half else torch.float32
        given = torch.from_numpy(np.ascontiguousarray(queries))
        self._largest = float(given.abs().max()) or 1.0
        given = (given / self._largest).to(self._device)
        self._queries = given.to(self._dtype)
        self._shifted = self._queries * 2.0**_SHIFT
        self._float16 = given.half() if len(given) <= _BY_FLOAT16 else None
        self._own = local()

    def __call__(self, rows: NDArray[Any], scale: NDArray[np.float32]) -> NDArray[np.float32]:
        """Inner products of `rows`, float16 or float32 `[rows, dim]`, as `[queries, rows]`.

        They lie in memory that this thread's next call uses again: fresh memory for every block
        costs as much as reading it.

        Args:
            rows: rows as they are stored.
            scale: what each row's products are multiplied with, float32 `[rows]`.
        """
        import torch

        given, queries = torch.from_numpy(rows), self._queries
        if given.dtype == torch.float16 and self._dtype == torch.bfloat16 and not queries.is_cuda:
            if self._float16 is not None:
                queries = self._float16
            else:
                # A float16 whose bits move three places to the right is a bfloat16, 2^112 times
                # smaller: that is half the time of the way by float32. 4 is added to round;
                # numbers below float16's normal ones may count as 0.
                bits = self._scratch("bits", given.shape, torch.int16)
                torch.add(given.view(torch.int16), 4, out=bits)
                bits.bitwise_right_shift_(3).bitwise_and_(_NO_SIGNS)
                given, queries = bits.view(torch.bfloat16), self._shifted
        else:
            given = given.to(self._device).float().to(self._dtype)
        shape = (len(queries), len(given))
        if queries.is_cuda:
            product = (queries @ given.T).cpu()
        else:
            product = self._scratch("product", shape, queries.dtype)
            torch.mm(queries, given.T, out=product)
        scores = self._scratch("scores", shape, torch.float32)
        factor = torch.from_numpy(scale * np.float32(self._largest))
        return np.asarray(scores.copy_(product).mul_(factor).numpy())

    def _scratch(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """This thread's own memory of a name, of a shape."""
        import torch

        count = math.prod(shape)
        held: torch.Tensor | None = getattr(self._own, name, None)
        if held is None or len(held) < count:
            held = torch.empty(count, dtype=dtype)
            setattr(self._own, name, held)
        return held[:count].view(*shape)
