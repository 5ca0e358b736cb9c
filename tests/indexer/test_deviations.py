"""The noise of a mean over slots, against its definition and against real repetitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.stats import t as student

from gradstore.store.format.rows import Rows
from indexer import Features, measure_of
from indexer.deviations import deviations, margin
from indexer.studies.explanation import explain
from query import Queries, search
from tests.support.drawn_stores import random_store

if TYPE_CHECKING:
    from pathlib import Path

    from gradstore.store.reader import Store


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Store, Store]:
    train = random_store(tmp_path / "t.gradstore", slots=4)
    return train, random_store(tmp_path / "q.gradstore", 5, slots=6, seed=1)


def rows_of(values: np.ndarray, timesteps: np.ndarray) -> Rows:
    """Rows of one sample each, `[samples, slots, dim]`, as direction and norm."""
    norm = np.linalg.norm(values, axis=2)
    return Rows(values / norm[:, :, None], norm, norm, timesteps)


def test_the_variance_of_a_mean_is_found_whatever_the_straight_trend(tmp_path: Path) -> None:
    """Over many repetitions, the estimate is that of the mean's own spread."""
    slots, dim, repetitions = 10, 3, 4000
    train = random_store(tmp_path / "t.gradstore", slots=slots)
    features = Features.of(train, "tracin")
    generator = np.random.default_rng(0)
    timesteps = np.linspace(50, 950, slots).astype(int)
    trend = timesteps[:, None] / 100 * np.array([1.0, -2.0, 5.0])
    values = trend + generator.normal(size=(repetitions, slots, dim)) * [1, 2, 0.5]
    order = generator.permutation(slots)  # rows may lie in any order
    rows = rows_of(values[:, order], np.tile(timesteps[order], (repetitions, 1)))
    found = deviations(features, train, 0, rows)
    assert found is not None
    assert found.shape == (repetitions, slots - 2, dim)
    direction = np.array([0.6, 0.8, -1])
    told = ((found @ direction) ** 2).sum(axis=1)
    means = values.mean(axis=1) @ direction * np.sqrt(features.etas[0])
    assert told.mean() == pytest.approx(means.var(), rel=0.06)
    covered = np.abs(means - means.mean()) <= margin(told[:, None], slots - 2)
    assert 0.93 <= covered.mean() <= 0.97


def test_a_margin_is_students() -> None:
    for freedom in (3, 5, 20):
        differences = freedom / (36 / 70)
        found = margin(np.array([[4.0]]), differences)  # type: ignore[arg-type]
        assert found == pytest.approx([2 * student.ppf(0.975, freedom)], rel=0.02)
    # Equal parts share their degrees of freedom; what is known adds none.
    assert margin(np.full((1, 4), 1.0), 8) == pytest.approx(
        [2 * student.ppf(0.975, 16.5)], rel=0.01
    )
    assert margin(np.zeros((1, 2)), 8, np.array([9.0])) == pytest.approx([3 * 1.96], rel=1e-3)
    assert margin(np.zeros((1, 2)), 8) == 0


def test_few_or_matched_slots_have_no_known_noise(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore", slots=2)
    rows = train.rows(0)
    assert deviations(Features.of(train, "tracin"), train, 0, rows) is None
    three = random_store(tmp_path / "u.gradstore", slots=3, even=True)
    matched = Features.of(three, "tracin", matched=True)
    assert deviations(matched, three, 0, three.rows(0)) is None
    assert Queries.of(three).deviations(matched) is None


@pytest.mark.parametrize("measure", ["tracin", "retrac", "trak", "minus:2"])
def test_the_errors_of_a_score_are_those_of_its_terms(
    pair: tuple[Store, Store], measure: str
) -> None:
    """Against float64 sums over pairs of slots."""
    train, queries = pair
    answer = search(train, queries, 3, measure=measure)
    found = answer.explained
    rule: Any = measure_of(measure)
    features = Features.of(train, getattr(rule, "indexed", rule))
    asked = features.range(queries)
    prepared = asked
    if hasattr(rule, "prepared"):
        rule = rule.fitted(train)
        prepared = rule.prepared(asked)
    query, place = 2, 1
    sample = int(answer.proponents.samples[query, place])
    width = train.dim
    own, theirs, swings = 0.0, 0.0, []
    for k in range(train.checkpoints):
        here = slice(k * width, (k + 1) * width)
        rows = queries.rows(k, query, query + 1)
        weights = features.weights(queries, k, rows)
        order = np.argsort(rows.timestep[0], kind="stable")
        slots = (rows.direction[0] * weights[0][:, None]).astype(np.float64)[order] * 6
        whole = np.zeros((6, asked.shape[1]), np.float32)
        whole[:, here] = slots
        if hasattr(rule, "prepared"):
            whole = rule.prepared(whole)
        vector = features.range(train, sample, sample + 1)[0].astype(np.float64)
        terms = whole.astype(np.float64) @ vector
        bends = terms[2:] - 2 * terms[1:-1] + terms[:-2]
        swings.extend(bends / np.sqrt(6 * 6 * (6 - 2)))
        own += (bends**2).sum() / (6 * 6 * (6 - 2))
        rows = train.rows(k, sample, sample + 1)
        order = np.argsort(rows.timestep[0], kind="stable")
        slots = (rows.direction[0] * features.weights(train, k, rows)[0][:, None])[order] * 4
        terms = slots.astype(np.float64) @ prepared[query, here].astype(np.float64)
        bends = terms[2:] - 2 * terms[1:-1] + terms[:-2]
        theirs += (bends**2).sum() / (6 * 4 * (4 - 2))
    assert found.query_error[query, place] == pytest.approx(np.sqrt(own), rel=1e-3)
    assert found.training_error[query, place] == pytest.approx(np.sqrt(theirs), rel=1e-3)
    moved = np.abs(found.swings[query, place].ravel())
    assert moved == pytest.approx(np.abs(swings), rel=1e-2, abs=1e-4)


def test_noise_of_a_sum_of_queries_adds_up(pair: tuple[Store, Store]) -> None:
    train, queries = pair
    features = Features.of(train, "retrac")
    sums = Queries.combined(queries, {"a": {"s0": 2.0, "s3": -1.0}})
    each, both = Queries.of(queries).deviations(features), sums.deviations(features)
    assert each is not None
    assert both is not None
    np.testing.assert_allclose(both[0], 2 * each[0] - each[3], rtol=1e-4, atol=1e-6)


def test_unknown_noise_is_told(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore", slots=1)
    queries = random_store(tmp_path / "q.gradstore", 3, slots=1, seed=1)
    features = Features.of(train, "retrac")
    found = explain(train, features, features.range(queries), np.array([[0, 1]] * 3))
    assert np.isnan(found.query_error).all()
    assert np.isnan(found.training_error).all()
    assert np.isnan(found.query_margin).all()
    assert found.swings.shape == (3, 2, 2, 0)
