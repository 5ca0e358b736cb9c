"""Which engine is faster: for how many queries at once a pass over the store pays.

The first stage takes so long for every query; the exact engine reads the store once for all of
them. Where they meet depends on the machine and on the store, so it is measured when an index is
built, on a part of the store.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from indexer.exact import ExactEngine

_TRIES: Final = 3
_MANY: Final = 256
_PART: Final = 16_384


def exact_from(
    approximate: Callable[[NDArray[np.float32]], object],
    exact: ExactEngine,
    probes: NDArray[np.float32],
) -> int | None:
    """From how many queries at once on the exact engine is faster than an index.

    Args:
        approximate: searches the index.
        exact: the exact engine of the same store.
        probes: features of some queries, float32 `[queries, dim]`.

    Returns:
        The number; None if it is so of none up to a million.
    """
    samples = exact.store.samples
    part = None if samples <= _PART else np.arange(_PART)
    scale = 1.0 if part is None else samples / _PART
    one, many = probes[:1], np.resize(probes, (_MANY, probes.shape[1]))
    k = min(10, samples)
    each = _seconds(lambda: approximate(one))
    read, all_of_them = (
        scale * _seconds(lambda some=some: exact.search(some, k, keep=part))  # type: ignore[misc]
        for some in (one, many)
    )
    each_exact = max(0.0, (all_of_them - read) / (_MANY - 1))
    if each <= each_exact:
        return None
    found = int(np.ceil((read - each_exact) / (each - each_exact)))
    return max(1, found) if found <= 1_000_000 else None


def _seconds(job: Callable[[], object]) -> float:
    job()
    taken = []
    for _ in range(_TRIES):
        start = perf_counter()
        job()
        taken.append(perf_counter() - start)
    return float(np.median(taken))
