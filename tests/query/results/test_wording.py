from __future__ import annotations

import math

import pytest

from indexer import MEASURES
from indexer.measures.registry import PARAMETRIC
from query.results.wording import Scale, about, display_name, sure_ranks, sure_text


@pytest.mark.parametrize("name", [*MEASURES, *(f"{one}:1" for one in PARAMETRIC)])
def test_every_measure_has_a_name_and_a_text(name: str) -> None:
    assert about(name)
    assert display_name(name) != name


@pytest.mark.parametrize("most", [1e-9, 0.02, 0.5, 7.0, 950.0, 5e4, 3e12])
def test_numbers_of_one_scale_have_three_digits(most: float) -> None:
    scale = Scale.of([most, -most / 3, math.nan])
    shown = scale.shown(most)
    assert float(shown) * 10**scale.power == pytest.approx(most, rel=6e-3)
    assert len(shown) <= 6
    assert scale.shown(math.nan) == "–"


def test_from_which_rank_on_the_order_is_unsure() -> None:
    assert sure_ranks([1, 2, 3], [1, 2, 3]) == 3
    assert sure_ranks([1, 1, 3], [2, 2, 3]) == 0
    assert "rank 3 on" in sure_text(2, 5)
    assert "No error is known" in sure_text(None, 5)
