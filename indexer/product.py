"""Products of many stored rows with many queries, by torch.

Rows are stored as float16, and there are several ways to multiply them: as they are; as float32;
as bfloat16, which keeps eight binary digits. Which is fastest depends on the processor and on the
number of queries, so a probe decides. Two-byte scores are enough to find candidates: those are
scored again in float32.
"""

from __future__ import annotations

import math
from functools import cache
from threading import local
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from gradstore.arithmetic import timed
from gradstore.workers import in_order

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import NDArray


# By how many powers of two bfloat16's exponents reach further than float16's.
_SHIFT: Final = 112

# All bits but those that the shift filled with copies of the sign, as an int16.
_NO_SIGNS: Final = 0x8FFF - 0x10000

_FEW: Final = 128

# Rows that are converted at once, so that they are still in the processor's cache when they are
# multiplied: bytes as float32.
_TILE_BYTES: Final = 1 << 21

# Rows of a probe, and the most queries of one.
_PROBED_ROWS: Final = 256

_PROBED_QUERIES: Final = 256

# More queries than these are never multiplied fastest one by one.
_FEW_QUERIES: Final = 8


Way = Literal["float32", "float16", "bfloat16", "bfloat16 whole"]


# Ways whose products lie side by side for each query.
_BY_ROWS: Final = ("float16", "bfloat16 whole")


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


def fastest_way(queries: int, dim: int, dtype: str) -> Way:
    """The fastest way on this processor to multiply rows with so many queries, each on one core.

    Args:
        queries: number of queries.
        dim: length of a row.
        dtype: dtype of the rows, float16 or float32.
    """
    seconds = _probed(queries, dim, dtype)
    return min(seconds, key=lambda way: seconds[way])


def row_seconds(queries: int, dim: int, dtype: str) -> float:
    """Seconds that one core takes to multiply a row with so many queries, the fastest way.

    See `fastest_way` for the arguments.
    """
    return min(_probed(queries, dim, dtype).values())


def _probed(queries: int, dim: int, dtype: str) -> dict[Way, float]:
    """`way_seconds` of the next powers of two, so that a probe serves many questions."""
    return way_seconds(_power(min(queries, _PROBED_QUERIES)), min(_power(dim), 1 << 14), dtype)


@cache
def way_seconds(queries: int, dim: int, dtype: str) -> dict[Way, float]:
    """Seconds per row of each way to multiply rows with so many queries, on one core."""
    draws = np.random.default_rng(0)
    asked = draws.standard_normal((queries, dim), np.float32)
    rows = draws.standard_normal((_PROBED_ROWS, dim), np.float32).astype(dtype)

    def trial(way: Way) -> Callable[[int], object]:
        multiplier = Multiplier(asked, dtype, way=way)
        out = multiplier.empty(_PROBED_ROWS)
        return lambda count: multiplier.multiply(rows[:count], out[:count])

    names: list[Way] = ["float32", "bfloat16", "bfloat16 whole"]
    if dtype == "float16" and queries <= _FEW_QUERIES:
        names.insert(1, "float16")

    def probe(_: None) -> dict[Way, float]:
        return timed({way: trial(way) for way in names}, _PROBED_ROWS, first=8)

    (found,) = in_order(probe, [None])  # in a thread with one core, as rows are multiplied
    return found


def _power(number: int) -> int:
    """The smallest power of two that is no less."""
    return 1 << (number - 1).bit_length()


class Multiplier:
    """Queries, ready to be multiplied with rows, in several threads at once.

    Args:
        queries: float32 `[queries, dim]`.
        dtype: dtype of the rows, float16 or float32.
        exact: whether to multiply in float32; by default, the fastest way on this machine. Sums are
            kept in float32 and rounded to two bytes at the end where that way is a two-byte one.
        way: the way to multiply, where it is known.

    Attributes:
        way: the way to multiply.
        largest: what products have to be multiplied with: the largest entry of the queries.
    """

    def __init__(
        self,
        queries: NDArray[np.float32],
        dtype: str,
        *,
        exact: bool = False,
        way: Way | None = None,
    ) -> None:
        import torch

        cuda = torch.cuda.is_available() and not exact
        self._device = torch.device("cuda" if cuda else "cpu")
        if way is None and cuda:
            way = "bfloat16 whole"
        elif way is None:
            way = "float32" if exact else fastest_way(len(queries), queries.shape[1], dtype)
        self.way: Way = way
        given = torch.from_numpy(np.ascontiguousarray(queries))
        self.largest = np.float32(float(given.abs().max()) or 1.0)
        self._dtype: torch.dtype = getattr(torch, way.split()[0])
        given = (given / float(self.largest)).to(self._device).to(self._dtype)
        # As columns: rows times queries is the faster order where rows come a few at a time.
        self._queries = given.T if way in _BY_ROWS else given.T.contiguous()
        self._one_by_one = list(given) if way == "float16" else []
        self._shifted = self._queries
        if self._dtype == torch.bfloat16:
            self._shifted = self._queries * 2.0**_SHIFT
        self._own = local()

    @property
    def rounds(self) -> bool:
        """Whether products are rounded to two bytes."""
        return self.way != "float32"

    def empty(self, rows: int) -> torch.Tensor:
        """Memory for the products of so many rows, `[rows, queries]`."""
        import torch

        shape = rows, self._queries.shape[1]
        if self.way in _BY_ROWS:  # the products of a query lie side by side
            return torch.empty(shape[::-1], dtype=self._dtype).T
        return torch.empty(shape, dtype=self._dtype)

    def multiply(self, rows: NDArray[Any], out: torch.Tensor) -> None:
        """Products of some rows with the queries, each query divided by `largest`.

        Args:
            rows: rows as they are stored, float16 or float32 `[rows, dim]`.
            out: `[rows, queries]`, of the dtype of `empty`.
        """
        import torch

        given = torch.from_numpy(rows)
        if self._device.type == "cuda":
            out.copy_(given.to(self._device).to(self._dtype) @ self._queries)
            return
        if self.way == "float16" and given.dtype == torch.float16:
            # Not all at once: torch multiplies halves by a vector in one pass, sums in float32, and
            # has nothing of the kind for a few vectors.
            for place, query in enumerate(self._one_by_one):
                torch.mv(given, query, out=out[:, place])
            return
        shifts = given.dtype == torch.float16 and self._dtype == torch.bfloat16
        queries = self._shifted if shifts else self._queries
        whole = self.way == "bfloat16 whole"
        step = len(given) if whole else max(1, _TILE_BYTES // (4 * given.shape[1]))
        held = self._scratch((min(step, len(given)), given.shape[1]))
        if whole:
            out.T.copy_(torch.mm(queries.T, self._converted(given, held).T))
            return
        for start in range(0, len(given), step):
            some = given[start : start + step]
            tile = self._converted(some, held[: len(some)])
            torch.mm(tile, queries, out=out[start : start + step])

    def _converted(self, rows: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        """Rows as this way multiplies them, in `held` unless they are so already."""
        import torch

        if rows.dtype == self._dtype:
            return rows
        if (rows.dtype, self._dtype) != (torch.float16, torch.bfloat16):
            return held.copy_(rows)
        # A float16 whose bits move three places to the right is a bfloat16, 2^112 times smaller:
        # that takes half the time of the way by float32. 4 is added to round; numbers below
        # float16's normal ones may count as 0.
        bits = held.view(torch.int16)
        torch.add(rows.view(torch.int16), 4, out=bits)
        bits.bitwise_right_shift_(3).bitwise_and_(_NO_SIGNS)
        return held

    def _scratch(self, shape: tuple[int, int]) -> torch.Tensor:
        """This thread's own memory of a shape."""
        import torch

        count = math.prod(shape)
        if not hasattr(self._own, "held") or len(self._own.held) < count:
            self._own.held = torch.empty(count, dtype=self._dtype)
        found: torch.Tensor = self._own.held[:count].view(*shape)
        return found
