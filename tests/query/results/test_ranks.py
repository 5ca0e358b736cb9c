from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from indexer.studies.explanation import Explanation
from query import search
from query.results.ranks import agreement, rank_intervals
from tests.support.drawn_stores import random_store


def explanation(
    swings: np.ndarray, projection: np.ndarray, training: np.ndarray | None = None
) -> Explanation:
    shape = projection.shape
    unknown = np.full(shape, np.nan, np.float32)
    return Explanation(
        parts=np.zeros((*shape, 1), np.float32),
        projection_error=projection.astype(np.float32),
        query_error=np.sqrt((swings**2).sum(axis=(2, 3))).astype(np.float32),
        training_error=unknown if training is None else training.astype(np.float32),
        z=unknown,
        swings=swings.astype(np.float32),
    )


def test_ranks_are_those_of_all_pairs() -> None:
    generator = np.random.default_rng(0)
    scores = -np.sort(-generator.normal(size=(3, 8)).astype(np.float32), axis=1)
    swings = generator.normal(size=(3, 8, 2, 5)) / 10
    errors = generator.random((2, 3, 8)) * np.array([0.05, 0.4])[:, None, None]
    first, last = rank_intervals(scores, explanation(swings, *errors))
    for query in range(3):
        for one in range(8):
            above = below = 0
            for other in set(range(8)) - {one}:
                apart = float(scores[query, other]) - float(scores[query, one])
                own = ((swings[query, one] - swings[query, other]) ** 2).sum(axis=1)
                rest = (errors[:, query, [one, other]] ** 2).sum()
                freedom = (own.sum() + rest) ** 2 / ((own**2).sum() / (5 * 36 / 70))
                sure = student.ppf(0.975, freedom) * np.sqrt(own.sum() + rest)
                above += apart > sure
                below += -apart > sure
            assert (first[query, one], last[query, one]) == (1 + above, 8 - below)
            assert first[query, one] <= one + 1 <= last[query, one]
    assert (first < last).any()


def test_what_moves_together_keeps_its_order() -> None:
    scores = np.array([[3.0, 2.0, 1.0]], np.float32)
    alike = np.tile(np.array([5.0, -4.0]), (1, 3, 1, 1))
    none = np.zeros((1, 3))
    first, last = rank_intervals(scores, explanation(alike, none))
    assert first.tolist() == last.tolist() == [[1, 2, 3]]
    apart = alike * np.array([1, -1, 1])[None, :, None, None]
    first, last = rank_intervals(scores, explanation(apart, none))
    assert (first.tolist(), last.tolist()) == ([[1, 1, 2]], [[2, 3, 3]])


def test_unknown_errors_count_as_none() -> None:
    scores = np.array([[3.0, 2.0]], np.float32)
    unknown = explanation(np.zeros((1, 2, 1, 0)), np.full((1, 2), np.nan))
    first, last = rank_intervals(scores, unknown)
    assert first.tolist() == last.tolist() == [[1, 2]]


def test_checkpoints_agree_or_cancel() -> None:
    found = agreement(np.array([[1.0, 2.0], [1.0, -1.0], [3.0, -1.0]], np.float32))
    assert found == pytest.approx(np.array([1, 0, 0.5]))
    assert np.isnan(agreement(np.zeros((1, 2), np.float32))).all()


def test_the_margin_of_a_score_holds_every_error_that_is_known(tmp_path: Path) -> None:
    store = random_store(tmp_path / "t.gradstore", 20, slots=5)
    queries = random_store(tmp_path / "q.gradstore", 2, slots=5, seed=1)
    for asked, measure in ((queries, "tracin"), (queries, "trak")):
        explained = search(store, asked, 4, measure=measure).explained
        known = (explained.projection_error, explained.query_error, explained.training_error)
        together = np.sqrt(sum(np.nan_to_num(one).astype(np.float64) ** 2 for one in known))
        assert (explained.margin >= 1.95 * together).all()
        assert (explained.margin <= 4 * together).all()
