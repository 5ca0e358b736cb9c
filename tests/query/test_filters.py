from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from gradstore.errors import ConfigError, QueryError
from indexer import ExactEngine, Features, measure_of
from query import search
from query.filters import matching_samples
from tests.support.drawn_stores import random_store

if TYPE_CHECKING:
    from pathlib import Path

    from gradstore.store.reader import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    metadata: dict[str, list[object]] = {
        "label": [n % 3 for n in range(30)],
        "group": [None if n < 5 else "ann" if n < 20 else "bob" for n in range(30)],
    }
    return random_store(tmp_path / "t.gradstore", 30, metadata=metadata)


def test_samples_are_chosen(store: Store) -> None:
    assert matching_samples(store) is None
    found = matching_samples(store, where={"label": ["1", 2], "group": ["bob"]})
    assert found is not None
    assert found.tolist() == [20, 22, 23, 25, 26, 28, 29]
    both = matching_samples(store, where={"label": [0]}, ids=["s1", "s3", "s9"])
    assert both is not None
    assert both.tolist() == [3, 9]


def test_what_is_not_there_is_told(store: Store) -> None:
    with pytest.raises(QueryError, match="no column 'artist'; it has group, label"):
        matching_samples(store, where={"artist": ["x"]})
    with pytest.raises(QueryError, match="no sample 'zzz' nor 1 more"):
        matching_samples(store, ids=["s1", "zzz", "zzzz"])
    with pytest.raises(QueryError, match="no sample of .* is left"):
        matching_samples(store, where={"group": ["eve"]})


def test_a_range_of_timesteps_is_inside_the_search(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore", slots=2)
    queries = random_store(tmp_path / "q.gradstore", 4, slots=3, seed=1)
    measure = measure_of("tracin@200-699")
    assert measure.name == "tracin@200-699"
    features = Features.of(train, measure)
    answer = search(ExactEngine(train, features), queries, 10)
    total = np.zeros((4, 300))
    for k, eta in enumerate((0.5, 1.0)):
        sides = []
        for store in (queries, train):
            rows = store.rows(k)
            inside = (rows.timestep >= 200) & (rows.timestep <= 699)
            weights = (rows.norm * inside)[:, :, None]
            sides.append((rows.direction.astype(np.float64) * weights).mean(axis=1))
        total += eta * sides[0] @ sides[1].T
    expected = np.argsort(-total, axis=1, kind="stable")[:, :10]
    np.testing.assert_array_equal(answer.proponents.samples, expected)


@pytest.mark.parametrize("name", ["tracin@", "tracin@5", "tracin@9-2", "tracin@-1-5", "trak@1-5"])
def test_nonsense_ranges_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="range of timesteps|are no range|whole samples"):
        measure_of(name)
