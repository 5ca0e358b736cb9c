"""Which engine is faster: for how many queries at once a pass over the store pays.

The first stage takes so long for every query; the exact engine reads the store once for all of
them. Where they meet depends on the machine and on the store, so it is measured when an index is
built. Of a large store the exact engine is tried on parts of two sizes: what grows with them is
scaled up, and what does not, such as scoring candidates again, is not.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from indexer.exact import ExactEngine

PROBES: Final = 256
_COUNTS: Final = (1, 4, 16, 64, PROBES)
_TRIES: Final = 2
_MOST_TRIES: Final = 7
_LITTLE: Final = 0.1  # seconds
# Four times as many queries are tried of an index only if they take no longer, seconds.
_PATIENCE: Final = 0.5
_PARTS: Final = (16_384, 65_536)
_MOST: Final = 1_000_000

Times = list[tuple[int, float]]
"""Queries at once, rising, and the seconds they took; two of them at least."""


def meeting(index: Times, exact: Times) -> int | None:
    """From how many queries at once on the exact engine is never slower; None if not by a million.

    Between what was measured, seconds lie on a line; beyond, on the last one.
    """
    queries = np.arange(1, _MOST + 1)
    slower = np.flatnonzero(_seconds_of(queries, exact) > _seconds_of(queries, index))
    if not len(slower):
        return 1
    found = int(queries[slower[-1]]) + 1
    return found if found <= _MOST else None


def _seconds_of(queries: NDArray[np.int64], times: Times) -> NDArray[np.float64]:
    counts, seconds = (np.array(column, float) for column in zip(*times, strict=True))
    beyond = np.maximum(0, queries - counts[-1])
    each = max(0.0, (seconds[-1] - seconds[-2]) / (counts[-1] - counts[-2]))
    return np.asarray(np.interp(queries, counts, seconds) + beyond * each)


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

    For whoever asks again and again: the store is in the system's cache, and its checksums were
    checked. The first pass of a process takes longer.

    Args:
        approximate: searches the index.
        exact: the exact engine of the same store.
        probes: features of queries that differ, float32 `[queries, dim]`: of the same ones, the
            same candidates would be read from the store. `PROBES` of them, if there are so many.

    Returns:
        The number; None if it is so of none up to a million.
    """
    samples = exact.store.samples
    k = min(10, samples)

    def of_exact(asked: NDArray[np.float32]) -> float:
        if samples <= _PARTS[1]:
            return _seconds(lambda: exact.search(asked, k))
        few, many = (
            _seconds(lambda part=part: exact.search(asked, k, keep=np.arange(part)))  # type: ignore[misc]
            for part in _PARTS
        )
        return grown(_PARTS, (few, many), samples)

    def some(count: int) -> NDArray[np.float32]:
        return np.resize(probes, (count, probes.shape[1]))

    index: Times = []
    for count in _COUNTS:
        # Never one alone: FAISS gives each end of each query a thread, so that one says little.
        if len(index) < 2 or index[-1][1] * count / index[-1][0] < _PATIENCE:
            index.append((count, _seconds(lambda: approximate(some(count)))))  # noqa: B023
    return meeting(index, [(count, of_exact(some(count))) for count in (1, 4, PROBES)])


def _seconds(job: Callable[[], object]) -> float:
    """The least of two tries, or of as many more as take little: what else runs only adds."""
    taken: list[float] = []
    while len(taken) < _TRIES or (sum(taken) < _LITTLE and len(taken) < _MOST_TRIES):
        start = perf_counter()
        job()
        taken.append(perf_counter() - start)
    return min(taken)
