"""The measure that compares samples by cosines relative to their mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gradstore.errors import ConfigError, QueryError, SearchIndexError
from gradstore.store.reader import Store
from indexer import Features, TracIn, breakdown, build_index, measure_of, open_index
from indexer.deviations import deviations
from indexer.measures import centred
from indexer.measures.centred import Centred
from query import search
from tests.support.drawn_stores import features, random_store
from tests.support.written_stores import filled, grown


def parts(store: Store) -> list[NDArray[np.float64]]:
    """TracIn's features of each checkpoint without its weight."""
    own = Features(TracIn(), (1.0,) * store.checkpoints).range(store).astype(np.float64)
    return np.split(own, store.checkpoints, 1)


def defined(train: Store, asked: Store) -> NDArray[np.float64]:
    """Scores by the definition, `[queries, samples]`."""
    scores = np.zeros((asked.samples, train.samples))
    for eta, phi, query in zip(train.etas, parts(train), parts(asked), strict=True):
        left, right = query - phi.mean(0), phi - phi.mean(0)
        lengths = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
        scores += eta * (left @ right.T) / lengths
    return scores


def found(answer: Any, samples: int) -> NDArray[np.float64]:
    scores = np.zeros((len(answer.queries), samples))
    np.put_along_axis(scores, answer.proponents.samples, answer.proponents.scores, 1)
    return scores


@pytest.mark.parametrize("slots", [1, 4])
def test_scores_are_those_of_the_definition(tmp_path: Path, slots: int) -> None:
    train = random_store(tmp_path / "t.gradstore", 40, seed=0, slots=slots)
    asked = random_store(tmp_path / "q.gradstore", 3, seed=1, slots=slots)
    answer = search(train, asked, 40, measure="centred")
    expected = defined(train, asked)
    np.testing.assert_allclose(found(answer, 40), expected, atol=1e-5 * np.abs(expected).max())
    assert np.isnan(answer.explained.z).all()
    index = build_index(train, "centred")
    rows, scores = (
        np.asarray(one)
        for one in (answer.proponents.samples[:, :5], answer.proponents.scores[:, :5])
    )
    approximate, _ = index.approximate(index.features.range(asked), 5)
    np.testing.assert_array_equal(approximate.samples, rows)
    np.testing.assert_array_equal(approximate.scores, scores)


def test_the_mean_is_of_samples_spread_over_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = random_store(tmp_path / "t.gradstore", 40, seed=0)
    monkeypatch.setattr(centred, "_SAMPLES", 10)
    means = Centred().fitted(train).means
    assert means is not None
    for own, phi in zip(means, parts(train), strict=True):
        np.testing.assert_allclose(own, phi[::4].mean(0), atol=1e-5 * np.abs(own).max())


def test_a_sample_at_the_mean_scores_nothing(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore", 1, seed=0)
    assert not features(train, measure_of("centred").fitted(train)).any()


def test_deviations_are_the_derivative(tmp_path: Path) -> None:
    """A small step along the mean's deviations moves features by theirs, to first order."""
    store = random_store(tmp_path / "t.gradstore", 6, seed=0, slots=5)
    measure = Centred().fitted(store)
    of_mean = Features(TracIn(), tuple(store.etas))
    of_unit = Features(measure, tuple(store.etas))
    rows, step = store.rows(1), 1e-3
    root = np.sqrt(store.etas[1])
    plain = deviations(of_mean, store, 1, rows)
    moved = deviations(of_unit, store, 1, rows)
    assert plain is not None
    assert moved is not None
    part = of_mean.part(store, 1, rows)
    for place in range(plain.shape[1]):
        ends = [
            measure.moved((part + sign * step * plain[:, place]) / root, 1)[0].astype(np.float64)
            for sign in (1, -1)
        ]
        slope = root * (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(moved[:, place], slope, atol=2e-3 * np.abs(slope).max())


def test_an_index_of_other_samples_is_refused(tmp_path: Path) -> None:
    store = filled(tmp_path / "s.gradstore")
    index = build_index(store, "centred")
    more = grown(store, ["new"])
    for again in (open_index, lambda *given: build_index(*given[1:])):
        with pytest.raises(SearchIndexError, match="Remove"):  # its codes have the earlier mean
            again(index.path, more, "centred")


def test_what_needs_rows_refuses_it(tmp_path: Path) -> None:
    store = random_store(tmp_path / "t.gradstore", 4, seed=0)
    with pytest.raises(ConfigError):
        Features.of(store, "centred", matched=True)
    with pytest.raises(ConfigError):
        measure_of("centred@0-499")
    with pytest.raises(QueryError):
        breakdown(store, store, Features.of(store, "centred"), 0, 1)
    with pytest.raises(ConfigError):
        Centred().moved(np.zeros((1, store.dim), np.float32), 0)
