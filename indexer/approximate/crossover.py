"""Smallest batch of queries from which exact search is never slower than an index.

The first stage takes constant time per query. The exact engine reads the store once for all
queries. Their crossover depends on the machine and the store, so `build_index` measures it. It
combines the first stage's time during the build, the exact engine's time on a part of the store,
and the time per row for more queries. None of these needs another pass over the store.
"""

from __future__ import annotations

from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Final

import numpy as np

from gradstore.workers import cores
from indexer.exact.rescoring import rescored
from indexer.product import row_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from indexer.exact.engine import ExactEngine

_COUNTS: Final = (1, 4, 16, 64, 256)
# Number of queries in a rescoring trial, and candidates per query.
_RESCORED: Final = 16
_MOST_CANDIDATES: Final = 50
_TRIES: Final = 2
# Sizes, in samples, of the parts of a store that are timed.
_PARTS: Final = (2048, 8192)
_K: Final = 10
_MOST: Final = 1_000_000

Times = list[tuple[int, float]]
"""Pairs of (queries per batch, seconds), ascending; at least two."""


def crossing(index: Times, exact: Times) -> int | None:
    """Smallest batch from which exact search is never slower; None above 10^6.

    Seconds are interpolated linearly between measurements and extrapolated on the last segment.
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
    """Extrapolate seconds linearly from two parts of the samples to all of them."""
    each = max(0.0, (seconds[1] - seconds[0]) / max(1, parts[1] - parts[0]))
    return seconds[1] + each * (samples - parts[1])


def exact_from(exact: ExactEngine, candidates: int, vector_seconds: float) -> int | None:
    """Smallest batch from which exact search is never slower than an index of the same store.

    The measurement assumes repeated searches: the store is in the system's cache and its checksums
    are verified. The first pass of a process takes longer.

    Args:
        exact: the exact engine.
        candidates: number of candidates that the index rescores at each end of a query.
        vector_seconds: seconds of the index's first stage per end of a query.

    Returns:
        The number of queries; None above 10^6.
    """
    store, features = exact.store, exact.features
    draws = np.random.default_rng(0)
    probes = features.take(store, draws.integers(store.samples, size=_RESCORED))
    drawn = draws.integers(store.samples, size=(_RESCORED, _MOST_CANDIDATES))

    def again(count: int) -> float:
        """Seconds to rescore one candidate of each of `count` queries."""
        job = partial(rescored, store, features, probes[:count], drawn[:count], exact.weights)
        return _seconds(job) / _MOST_CANDIDATES

    rescoring = [(count, again(count)) for count in (1, _RESCORED)]
    index = [
        (count, 2 * (count * vector_seconds + candidates * seconds)) for count, seconds in rescoring
    ]

    k = min(_K, store.samples)
    parts = [min(part, store.samples) for part in _PARTS]
    passes = [
        _seconds(partial(exact.search, probes[:1], k, keep=np.arange(part))) for part in parts
    ]
    one = grown((parts[0], parts[1]), (passes[0], passes[1]), store.samples)
    # Extra time for more queries: their products, and rescoring at both ends.
    rows = store.samples * len(features.checkpoints) / cores()
    width = features.width(store)
    dtype = features.dtype(store)
    least = row_seconds(1, width, dtype)
    end = 2 * k * rescoring[-1][1] / _RESCORED
    return crossing(
        index,
        [
            (count, one + rows * (row_seconds(count, width, dtype) - least) + (count - 1) * end)
            for count in _COUNTS
        ],
    )


def _seconds(job: Callable[[], object]) -> float:
    """Minimum of several runs, since other processes can only add time."""
    taken: list[float] = []
    for _ in range(_TRIES):
        start = perf_counter()
        job()
        taken.append(perf_counter() - start)
    return min(taken)
