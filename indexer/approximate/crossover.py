"""Which engine is faster: for how many queries at once a pass over the store pays.

The first stage takes so long for every query; the exact engine reads the store once for all of
them. Where they meet depends on the machine and on the store, so it is measured when an index is
built: what building it told of the first stage, the exact engine's pass over a part of the store,
and what a row takes with more queries. None of it is another pass over the store.
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
# Queries and candidates of each that are scored again.
_RESCORED: Final = 16
_MOST_CANDIDATES: Final = 50
_TRIES: Final = 2
# The parts of a store that are passed over, samples.
_PARTS: Final = (2048, 8192)
_K: Final = 10
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
    each = max(0.0, (seconds[1] - seconds[0]) / max(1, parts[1] - parts[0]))
    return seconds[1] + each * (samples - parts[1])


def exact_from(exact: ExactEngine, candidates: int, vector_seconds: float) -> int | None:
    """From how many queries at once on the exact engine is faster than an index of its store.

    For whoever asks again and again: the store is in the system's cache, and its checksums were
    checked. The first pass of a process takes longer.

    Args:
        exact: the exact engine.
        candidates: how many of each end of a query the index scores again.
        vector_seconds: what its first stage takes for each end of a query.

    Returns:
        The number; None if it is so of none up to a million.
    """
    store, features = exact.store, exact.features
    draws = np.random.default_rng(0)
    probes = features.take(store, draws.integers(store.samples, size=_RESCORED))
    drawn = draws.integers(store.samples, size=(_RESCORED, _MOST_CANDIDATES))

    def again(count: int) -> float:
        """Seconds to score a candidate of each of some queries again."""
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
    # What is left to add for more queries: products, and the ends that are scored again.
    rows = store.samples * len(features.checkpoints) / cores()
    width = features.width(store)
    dtype = features.dtype(store)
    least = row_seconds(1, width, dtype)
    end = 2 * k * rescoring[-1][1] / _RESCORED
    return meeting(
        index,
        [
            (count, one + rows * (row_seconds(count, width, dtype) - least) + (count - 1) * end)
            for count in _COUNTS
        ],
    )


def _seconds(job: Callable[[], object]) -> float:
    """The least of a few tries: what else runs only adds."""
    taken: list[float] = []
    for _ in range(_TRIES):
        start = perf_counter()
        job()
        taken.append(perf_counter() - start)
    return min(taken)
