from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gradstore as gs
from indexer.deviations import margin
from query.queries import Queries
from query.studies.totals import totals
from tests.support.drawn_stores import random_store


@pytest.mark.parametrize("measure", ["retrac", "trak"])
def test_totals_and_their_intervals_are_those_of_sums_of_samples(
    tmp_path: Path, measure: str
) -> None:
    groups = ["a" if n % 3 else "b" for n in range(20)]
    store = random_store(tmp_path / "t.gradstore", 20)
    asked = random_store(tmp_path / "q.gradstore", 4, slots=6, seed=1, even=True)
    engine = gs.ExactEngine(store, measure)
    one = Queries.combined(asked, {"s2": {"s2": 1.0}})
    fitted = gs.measure_of(measure).fitted(store)
    found, margins = totals(engine, one, groups, measure=fitted)
    answer = gs.search(engine, one, 20, measure=fitted)
    samples, scores = answer.proponents.samples[0], answer.proponents.scores[0]
    swings = answer.explained.swings[0, :20]  # [samples, checkpoints, parts]
    for place, group in enumerate(found.groups):
        own = np.array([groups[row] == group for row in samples])
        assert found.total[0, place] == pytest.approx(scores[own].sum(), rel=1e-4)
        moved = swings[own].sum(axis=0).astype(np.float64)
        assert margins[place] == pytest.approx(margin((moved**2).sum(axis=1), 4), rel=1e-3)


def test_without_noise_the_interval_is_unknown(tmp_path: Path) -> None:
    store = random_store(tmp_path / "t.gradstore", 12)
    one = Queries.combined(store, {"s2": {"s2": 1.0}})
    _, margins = totals(gs.ExactEngine(store, "tracin"), one, ["a"] * 12)
    assert np.isnan(margins).all()
