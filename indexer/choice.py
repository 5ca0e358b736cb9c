"""Which engine is faster: for how many queries at once a pass over the store pays.

The first stage takes so long for every query; the exact engine reads the store once for all of
them. Where they meet depends on the machine and on the store, so it is measured when an index is
built, on parts of the store of two sizes: what grows with them is scaled up, and what does not,
such as scoring candidates again, is not.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from indexer.exact import ExactEngine

PROBES: Final = 256
_TRIES: Final = 3
_PARTS: Final = (4096, 16_384)
_MOST: Final = 1_000_000


@dataclass(frozen=True)
class Seconds:
    """What queries at once take: `fixed + each · queries`."""

    fixed: float
    each: float

    @classmethod
    def through(cls, few: tuple[float, float], many: tuple[float, float]) -> Seconds:
        """The line through two measurements, (queries, seconds); none of its terms below 0."""
        each = max(0.0, (many[1] - few[1]) / (many[0] - few[0]))
        return cls(max(0.0, few[1] - few[0] * each), each)


def meeting(index: Seconds, exact: Seconds) -> int | None:
    """From how many queries at once on the exact engine is faster; None if of none to a million."""
    if exact.fixed + exact.each <= index.fixed + index.each:
        return 1
    if index.each <= exact.each:
        return None
    found = int(np.ceil((exact.fixed - index.fixed) / (index.each - exact.each)))
    return max(1, found) if found <= _MOST else None


def grown(parts: tuple[float, float], seconds: tuple[float, float], samples: int) -> float:
    """Seconds for all samples, by the line through those for two parts of them."""
    each = max(0.0, (seconds[1] - seconds[0]) / (parts[1] - parts[0]))
    return seconds[1] + each * (samples - parts[1])


def exact_from(
    approximate: Callable[[NDArray[np.float32]], object],
    exact: ExactEngine,
    probes: NDArray[np.float32],
) -> int | None:
    """From how many queries at once on the exact engine is faster than an index.

    Args:
        approximate: searches the index.
        exact: the exact engine of the same store.
        probes: features of queries that differ, float32 `[queries, dim]`: of the same ones, the
            same candidates would be read from the store. The more of them, the better.

    Returns:
        The number; None if it is so of none up to a million.
    """
    samples = exact.store.samples
    k = min(10, samples)

    def seconds_of_exact(asked: NDArray[np.float32]) -> float:
        if samples <= _PARTS[1]:
            return _seconds(lambda: exact.search(asked, k))
        few, many = (
            _seconds(lambda part=part: exact.search(asked, k, keep=np.arange(part)))  # type: ignore[misc]
            for part in _PARTS
        )
        return grown(_PARTS, (few, many), samples)

    enough = 2 * (os.cpu_count() or 1)  # FAISS gives each end of each query a thread
    one, some, many = (np.resize(probes, (count, probes.shape[1])) for count in (1, enough, PROBES))
    index = Seconds.through(
        (1, _seconds(lambda: approximate(one))), (enough, _seconds(lambda: approximate(some)))
    )
    return meeting(
        index, Seconds.through((1, seconds_of_exact(one)), (PROBES, seconds_of_exact(many)))
    )


def _seconds(job: Callable[[], object]) -> float:
    job()
    taken = []
    for _ in range(_TRIES):
        start = perf_counter()
        job()
        taken.append(perf_counter() - start)
    return float(np.median(taken))
