"""Where two engines meet, by what was measured of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer import TracIn, build_index
from indexer.choice import Seconds, grown, meeting
from tests.indexer.stores import random_store

if TYPE_CHECKING:
    from pathlib import Path

_TIMES = st.floats(1e-6, 1e3)


@given(_TIMES, _TIMES, _TIMES, _TIMES)
def test_from_where_they_meet_on_the_exact_engine_is_no_slower(
    index_fixed: float, index_each: float, exact_fixed: float, exact_each: float
) -> None:
    index, exact = Seconds(index_fixed, index_each), Seconds(exact_fixed, exact_each)
    found = meeting(index, exact)

    def saved(queries: int) -> float:
        """By the exact engine, of what the index takes."""
        of_index = index.fixed + queries * index.each
        return (of_index - exact.fixed - queries * exact.each) / of_index

    if found is None:
        assert saved(1) < 1e-9
        assert index.each <= exact.each or saved(1_000_000) < 1e-9
    else:
        assert saved(found) > -1e-9
        assert found == 1 or saved(found - 1) < 1e-9


def test_a_line_through_two_measurements() -> None:
    assert Seconds.through((1, 3.0), (11, 23.0)) == Seconds(1.0, 2.0)
    assert Seconds.through((1, 3.0), (11, 2.0)) == Seconds(3.0, 0.0)  # noise


def test_only_what_grows_with_the_store_is_scaled() -> None:
    # 0.5 s whatever the size, and 1 ms for each sample.
    assert grown((1000, 4000), (1.5, 4.5), 100_000) == pytest.approx(100.5)
    assert grown((1000, 4000), (1.5, 1.4), 100_000) == 1.4


def test_either_engine_is_chosen_by_the_number_of_queries(tmp_path: Path) -> None:
    store = random_store(tmp_path / "t.gradstore")
    index = build_index(store, TracIn())
    asked = index.features.range(store, 0, 3)
    for exact_from in (None, 1, 2):
        index.spec = index.spec.model_copy(update={"exact_from": exact_from})
        for found, expected in zip(
            index.search(asked, 5), index.approximate(asked, 5), strict=True
        ):
            np.testing.assert_array_equal(found.rows, expected.rows)
            np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
