"""The crossover of two engines, from measurements of each."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer import ExactEngine, Features, TracIn, build_index
from indexer.approximate.crossover import Times, crossing, exact_from, grown
from tests.support.drawn_stores import random_store

if TYPE_CHECKING:
    from pathlib import Path

_SECONDS = st.floats(1e-6, 1e3)
_TIMES = st.lists(_SECONDS, min_size=2, max_size=5).map(
    lambda seconds: list(zip((1, 4, 16, 64, 256), sorted(seconds), strict=False))
)


def seconds(times: Times, queries: int) -> float:
    """Seconds of `queries` at once, by definition."""
    pairs = list(pairwise(times))
    (low, before), (high, after) = next(
        (pair for pair in pairs if queries <= pair[1][0]), pairs[-1]
    )
    return before + (after - before) * (queries - low) / (high - low)


@given(_TIMES, _TIMES, st.integers(1, 2000))
def test_from_where_they_meet_on_the_exact_engine_is_no_slower(
    index: Times, exact: Times, more: int
) -> None:
    found = crossing(index, exact)

    def lost(queries: int) -> float:
        """The exact engine's time lost, relative to the index's time."""
        return seconds(exact, queries) / seconds(index, queries) - 1

    if found is None:
        assert lost(1_000_000) > -1e-9
    else:
        assert lost(found) < 1e-9
        assert lost(found + more) < 1e-9
        assert found == 1 or lost(found - 1) > -1e-9


def test_where_they_meet() -> None:
    index: Times = [(1, 1.0), (4, 4.0)]
    assert crossing(index, [(1, 10.5), (256, 10.5)]) == 11
    assert crossing(index, [(1, 0.5), (256, 0.5)]) == 1
    assert crossing(index, [(1, 10.0), (256, 10.0 + 255)]) is None
    # Many queries share their reads: the time of one does not predict the time of many.
    assert crossing([*index, (256, 20.0)], [(1, 16.0), (256, 16.0)]) == 193


def test_only_what_grows_with_the_store_is_scaled() -> None:
    # 0.5 s whatever the size, and 1 ms for each sample.
    assert grown((1000, 4000), (1.5, 4.5), 100_000) == pytest.approx(100.5)
    assert grown((1000, 4000), (1.5, 1.4), 100_000) == 1.4


def test_the_exact_engine_is_taken_where_a_first_stage_is_slow(tmp_path: Path) -> None:
    store = random_store(tmp_path / "t.gradstore")
    engine = ExactEngine(store, Features.of(store, TracIn()))
    assert exact_from(engine, candidates=50, vector_seconds=100.0) == 1


def test_either_engine_is_chosen_by_the_number_of_queries(tmp_path: Path) -> None:
    store = random_store(tmp_path / "t.gradstore")
    index = build_index(store, TracIn())
    asked = index.features.range(store, 0, 3)
    for known in (None, 1, 2):
        index.spec = index.spec.model_copy(update={"exact_from": known})
        for found, expected in zip(
            index.search(asked, 5), index.approximate(asked, 5), strict=True
        ):
            np.testing.assert_array_equal(found.samples, expected.samples)
            np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
