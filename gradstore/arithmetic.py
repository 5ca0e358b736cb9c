"""Which arithmetic is fast on this machine: found by trying, once per process.

Two-byte products are five times as fast as float32 on processors that have instructions for them,
and a hundred times slower where torch has to do without. No list of processors says which: MKL,
oneDNN and torch each choose their own kernels. So every choice is made from a probe of some tenths
of a second, and a trial never starts at full size.

What was used is recorded with the rows and not compared: a bfloat16 product moves a sketch by
0.24% of its length, a projection to 4,096 dimensions moves an inner product by 1.6%.
"""

from __future__ import annotations

from functools import cache
from time import perf_counter
from typing import TYPE_CHECKING, Final, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Way = TypeVar("Way")
Precision = Literal["float32", "bfloat16"]

# A trial that took so long is long enough to be timed.
_LONG_ENOUGH: Final = 0.005
# One that took so long shows whether a way is hopeless; shorter ones are mostly overhead.
_TELLING: Final = 0.001
_TRIES: Final = 3
# Repeating ends where it has taken so many times as long as is enough.
_PATIENCE: Final = 3
# A trial grows by this factor until it is long enough.
_GROWTH: Final = 4
# A way that takes so many times as long as the best one, on a short trial, is tried no further.
_HOPELESS: Final = 4.0
# Less exact arithmetic has to be so many times as fast.
WORTH: Final = 1.25
# Rows and columns of the products that are timed, and their inner dimension at most.
_SIDE: Final = 128
_INNER: Final = 1 << 14


def seconds_each(
    job: Callable[[int], object],
    most: int,
    *,
    first: int = 1,
    enough: float = _LONG_ENOUGH,
    give_up: float = float("inf"),
) -> float:
    """Seconds per item of a job that takes a number of items.

    The number grows from `first` until a run is long enough to be timed; that run is repeated,
    and the quickest counts, since other load on the machine only adds time. Repeating ends when
    the runs took three times as long as is enough.

    Args:
        job: does so many items and waits until they are done.
        most: the largest number of items.
        first: the number of items to begin with.
        enough: seconds from which on a run is long enough.
        give_up: seconds per item from which on the job is not tried with more.

    Example:
        >>> from time import sleep
        >>> 0.001 < seconds_each(lambda count: sleep(0.002 * count), 100) < 0.01
        True
    """
    count = min(first, most)
    job(count)  # loads kernels, allocates memory
    while True:
        seconds, spent, last = float("inf"), 0.0, False
        # A run that makes a kernel, or that other load interrupts, seems long, and is not: a run
        # that would be the last is repeated.
        for _ in range(_TRIES):
            start = perf_counter()
            job(count)
            taken = perf_counter() - start
            seconds, spent = min(seconds, taken), spent + taken
            hopeless = seconds >= _TELLING and seconds / count > give_up
            last = seconds >= enough or count >= most or hopeless
            if not last or spent >= _PATIENCE * enough:
                break
        if last:
            return seconds / count
        count = min(most, _GROWTH * count)


def timed(
    ways: Mapping[Way, Callable[[int], object]], most: int, *, first: int = 1
) -> dict[Way, float]:
    """Seconds per item of several ways to do one job; the first should be fast on any machine.

    Args:
        ways: what each way does, as `seconds_each` takes it.
        most: the largest number of items.
        first: the number of items to begin with.
    """
    found: dict[Way, float] = {}
    for way, job in ways.items():
        best = min(found.values(), default=float("inf"))
        found[way] = seconds_each(job, most, first=first, give_up=_HOPELESS * best)
    return found


@cache
def product_rates(device: str = "cpu") -> dict[Precision, float]:
    """Operations per second of a product of 128 rows and 128 columns, by the operands' dtype.

    On one core, where they are on a CPU: several wait for each other, and on a machine that does
    something else, too, that is all that would be timed.

    Args:
        device: type of a torch device, such as `cpu` or `cuda`.
    """
    import torch

    from gradstore.workers import in_order

    def product(dtype: torch.dtype) -> Callable[[int], object]:
        left = torch.ones(_SIDE, _INNER, dtype=dtype, device=device)
        right = torch.ones(_INNER, _SIDE, dtype=dtype, device=device)

        def multiply(inner: int) -> None:
            (left[:, :inner] @ right[:inner])[0, 0].item()  # which waits for the device

        return multiply

    ways: dict[Precision, Callable[[int], object]] = {
        "float32": product(torch.float32),
        "bfloat16": product(torch.bfloat16),
    }
    (seconds,) = in_order(lambda _: timed(ways, _INNER, first=64), [None])
    return {name: 2 * _SIDE * _SIDE / one for name, one in seconds.items()}


def precision_of(wanted: Literal["auto", "float32", "bfloat16"], device: str) -> Precision:
    """The precision of products on a type of device: what is wanted, or the one worth taking."""
    if wanted != "auto":
        return wanted
    rates = product_rates(device)
    return "bfloat16" if rates["bfloat16"] > WORTH * rates["float32"] else "float32"
