"""Choice of the fastest arithmetic on this machine, measured once per process.

bfloat16 products are five times as fast as float32 on processors that have instructions for them,
and a hundred times slower where torch emulates them. The processor's type does not decide this:
MKL, oneDNN and torch each choose their own kernels. So every choice is made from a probe of some
tenths of a second, and a trial never starts at full size.

The arithmetic used is recorded with the rows and not compared: a bfloat16 product changes a
direction by 0.24% of its length, a projection to 4,096 dimensions changes an inner product by 1.6%.
"""

from __future__ import annotations

from functools import cache
from time import get_clock_info, perf_counter, thread_time
from typing import TYPE_CHECKING, Final, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Way = TypeVar("Way")
Precision = Literal["float32", "bfloat16"]

# Seconds: a trial this long can be timed.
_LONG_ENOUGH: Final = 0.005
# Seconds: a trial this long shows whether a method is too slow; shorter ones are mostly overhead.
_TELLING: Final = 0.001
_TRIES: Final = 3
# Repeats end when they took this many times `enough`.
_PATIENCE: Final = 3
# A trial grows by this factor until it is long enough.
_GROWTH: Final = 4
# A method this many times slower than the best one, on a short trial, is not tried further.
_HOPELESS: Final = 4.0
# Less exact arithmetic is used only if it is this many times faster.
WORTH: Final = 1.25
# Seconds: the clock of a thread counts in steps no longer than this. On Windows it does not.
_FINE: Final = 1e-5
# Rows and columns of the timed products, and their maximum inner dimension.
_SIDE: Final = 128
_INNER: Final = 1 << 14


def seconds_each(
    job: Callable[[int], object],
    most: int,
    *,
    first: int = 1,
    enough: float = _LONG_ENOUGH,
    give_up: float = float("inf"),
    clock: Callable[[], float] = perf_counter,
) -> float:
    """Seconds per item of a job that processes a number of items.

    The number grows from `first` until a run is long enough to be timed. That run is repeated and
    the fastest repeat counts, because other load on the machine only adds time. Repeats end when
    they took three times `enough`.

    Args:
        job: processes the given number of items and waits until they are done.
        most: the maximum number of items.
        first: the initial number of items.
        enough: minimum seconds of a timed run.
        give_up: above this many seconds per item, the job is not tried with more items.
        clock: what tells the time.

    Examples:
        >>> from time import sleep
        >>> 0.001 < seconds_each(lambda count: sleep(0.002 * count), 100) < 0.01
        True
    """
    count = min(first, most)
    job(count)  # warm-up: loads kernels, allocates memory
    while True:
        seconds, spent, last = float("inf"), 0.0, False
        # Creating a kernel, or other load, can make a short run look long. So the run that would
        # be the last is repeated.
        for _ in range(_TRIES):
            start = clock()
            job(count)
            taken = clock() - start
            seconds, spent = min(seconds, taken), spent + taken
            hopeless = seconds >= _TELLING and seconds / count > give_up
            last = seconds >= enough or count >= most or hopeless
            if not last or spent >= _PATIENCE * enough:
                break
        if last:
            return seconds / count
        count = min(most, _GROWTH * count)


def timed(
    ways: Mapping[Way, Callable[[int], object]],
    most: int,
    *,
    first: int = 1,
    device: str | None = None,
) -> dict[Way, float]:
    """Seconds per item of several methods for one job; the first should be fast on any machine.

    Args:
        ways: the job of each method, as in `seconds_each`.
        most: the maximum number of items.
        first: the initial number of items.
        device: type of the device, if the job runs in this thread alone. On a CPU only this
            thread's own time counts then: other load, or a stop of the process in between, would
            choose another arithmetic now and then, and the same question get another answer.
    """
    own = device == "cpu" and get_clock_info("thread_time").resolution <= _FINE
    clock = thread_time if own else perf_counter
    found: dict[Way, float] = {}
    for way, job in ways.items():
        best = min(found.values(), default=float("inf"))
        found[way] = seconds_each(job, most, first=first, give_up=_HOPELESS * best, clock=clock)
    return found


@cache
def product_rates(device: str = "cpu") -> dict[Precision, float]:
    """Operations per second of a product of 128 rows and 128 columns, by the operands' dtype.

    On a CPU, the product runs on one core: several cores wait for each other, and on a machine
    under other load the timing would show only these waits.

    Args:
        device: type of a torch device, such as `cpu` or `cuda`.
    """
    import torch

    from gradstore.workers import in_order

    def product(dtype: torch.dtype) -> Callable[[int], object]:
        left = torch.ones(_SIDE, _INNER, dtype=dtype, device=device)
        right = torch.ones(_INNER, _SIDE, dtype=dtype, device=device)

        def multiply(inner: int) -> None:
            (left[:, :inner] @ right[:inner])[0, 0].item()  # waits for the device

        return multiply

    ways: dict[Precision, Callable[[int], object]] = {
        "float32": product(torch.float32),
        "bfloat16": product(torch.bfloat16),
    }
    (seconds,) = in_order(lambda _: timed(ways, _INNER, first=64, device=device), [None])
    return {name: 2 * _SIDE * _SIDE / one for name, one in seconds.items()}


def precision_of(wanted: Literal["auto", "float32", "bfloat16"], device: str) -> Precision:
    """Precision of products on a type of device: `wanted`, or for `auto` the better one."""
    if wanted != "auto":
        return wanted
    rates = product_rates(device)
    return "bfloat16" if rates["bfloat16"] > WORTH * rates["float32"] else "float32"
