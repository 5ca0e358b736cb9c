"""Products of many stored rows with many queries, computed by torch.

Rows stored as float16 can be multiplied as float16, as float32, or as bfloat16, which keeps eight
significant bits. The fastest way depends on the processor and on the number of queries, so a probe
selects it. Two-byte scores suffice to find candidates, which are then rescored in float32.
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


# Difference of the exponent biases of bfloat16 (127) and float16 (15).
_SHIFT: Final = 112

# Mask, as int16, that clears the bits which the arithmetic shift fills with copies of the sign.
_NO_SIGNS: Final = 0x8FFF - 0x10000

_FEW: Final = 128

# Float32 bytes of rows converted at once, so that they stay in the processor's cache until they are
# multiplied.
_TILE_BYTES: Final = 1 << 21

# Rows of a probe, and its maximum number of queries.
_PROBED_ROWS: Final = 256

_PROBED_QUERIES: Final = 256

# With more queries than this, multiplying them one by one is never the fastest way.
_FEW_QUERIES: Final = 8


Way = Literal["float32", "float16", "bfloat16", "bfloat16 whole"]


# Ways whose products are contiguous for each query.
_BY_ROWS: Final = ("float16", "bfloat16 whole")


def as_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """Convert an array to float32. From float16, torch takes 1/30 of numpy's time."""
    import torch

    if array.dtype != np.float16:
        return array.astype(np.float32, copy=False)
    return np.asarray(torch.from_numpy(array).float().numpy())


def lengths(vectors: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Σ|x_i| and Σx_i² of each vector, float16 or float32 `[vectors, dim]`."""
    import torch

    given = torch.from_numpy(vectors)
    sizes, squares = torch.empty(len(given)), torch.empty(len(given))
    few = torch.empty(min(len(given), _FEW), given.shape[1])  # stays in the processor's cache
    for start in range(0, len(given), _FEW):
        here = slice(start, start + _FEW)
        wide = few[: len(given[here])].copy_(given[here])
        torch.linalg.vector_norm(wide, 2, dim=1, out=squares[here])
        torch.sum(wide.abs_(), 1, out=sizes[here])  # a fifth of the time of vector_norm, order 1
    return np.asarray(sizes.numpy()), np.asarray(squares.square_().numpy())


def fastest_way(queries: int, dim: int, dtype: str) -> Way:
    """Fastest way on this processor to multiply rows with `queries` queries, one core per thread.

    Args:
        queries: number of queries.
        dim: length of a row.
        dtype: dtype of the rows, float16 or float32.
    """
    seconds = _probed(queries, dim, dtype)
    return min(seconds, key=lambda way: seconds[way])


def row_seconds(queries: int, dim: int, dtype: str) -> float:
    """Seconds for one core to multiply one row with `queries` queries in the fastest way.

    The arguments are those of `fastest_way`.
    """
    return min(_probed(queries, dim, dtype).values())


def _probed(queries: int, dim: int, dtype: str) -> dict[Way, float]:
    """`way_seconds` for sizes rounded up to powers of two, so that few probes cover all sizes."""
    return way_seconds(_power(min(queries, _PROBED_QUERIES)), min(_power(dim), 1 << 14), dtype)


@cache
def way_seconds(queries: int, dim: int, dtype: str) -> dict[Way, float]:
    """Seconds per row of each way to multiply rows with `queries` queries, on one core."""
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

    (found,) = in_order(probe, [None])  # in a one-core thread, as in real use
    return found


def _power(number: int) -> int:
    """Smallest power of two ≥ `number`."""
    return 1 << (number - 1).bit_length()


class Multiplier:
    """Multiplies rows with fixed queries; may be called from several threads at once.

    Args:
        queries: float32 `[queries, dim]`.
        dtype: dtype of the rows, float16 or float32.
        exact: multiply in float32; by default the fastest way on this machine. Two-byte ways sum in
            float32 and round the result to two bytes.
        way: the way to multiply, if known.

    Attributes:
        way: the way to multiply.
        largest: factor to apply to the products: the largest absolute entry of the queries.
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
        # Store queries as columns: rows @ queries is faster when rows arrive a few at a time.
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
        """Allocate memory for the products of `rows` rows, `[rows, queries]`."""
        import torch

        shape = rows, self._queries.shape[1]
        if self.way in _BY_ROWS:  # the products of a query are contiguous
            return torch.empty(shape[::-1], dtype=self._dtype).T
        return torch.empty(shape, dtype=self._dtype)

    def multiply(self, rows: NDArray[Any], out: torch.Tensor) -> None:
        """Write the products of rows with the queries, divided by `largest`, to `out`.

        Args:
            rows: stored rows, float16 or float32 `[rows, dim]`.
            out: `[rows, queries]`, of the dtype of `empty`.
        """
        import torch

        given = torch.from_numpy(rows)
        if self._device.type == "cuda":
            out.copy_(given.to(self._device).to(self._dtype) @ self._queries)
            return
        if self.way == "float16" and given.dtype == torch.float16:
            # One query at a time: torch multiplies a float16 matrix by a vector in one pass with
            # float32 sums, but has no such kernel for a few vectors.
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
        """Convert rows to this way's dtype, into `held` if conversion is needed."""
        import torch

        if rows.dtype == self._dtype:
            return rows
        if (rows.dtype, self._dtype) != (torch.float16, torch.bfloat16):
            return held.copy_(rows)
        # Shifting a float16's bits right by three places yields a bfloat16 that is 2^112 times
        # smaller. This takes half the time of a conversion through float32. Adding 4 rounds to
        # nearest. Subnormal float16 values may become 0.
        bits = held.view(torch.int16)
        torch.add(rows.view(torch.int16), 4, out=bits)
        bits.bitwise_right_shift_(3).bitwise_and_(_NO_SIGNS)
        return held

    def _scratch(self, shape: tuple[int, int]) -> torch.Tensor:
        """This thread's reusable memory, viewed in the given shape."""
        import torch

        count = math.prod(shape)
        if not hasattr(self._own, "held") or len(self._own.held) < count:
            self._own.held = torch.empty(count, dtype=self._dtype)
        found: torch.Tensor = self._own.held[:count].view(*shape)
        return found
