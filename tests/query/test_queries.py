from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from gradstore.errors import QueryError
from indexer import ExactEngine, Features, measure_of
from query import Queries, search
from query import queries as queries_module
from tests.support.drawn_stores import random_store

if TYPE_CHECKING:
    from pathlib import Path

    from gradstore.store.reader import Store


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Store, Store]:
    labels: list[object] = [None if n == 11 else f"{n % 3}" for n in range(12)]
    train = random_store(tmp_path / "t.gradstore", 100)
    asked = random_store(tmp_path / "q.gradstore", 12, slots=2, seed=1, metadata={"label": labels})
    return train, asked


def test_samples_by_themselves(stores: tuple[Store, Store]) -> None:
    features = Features.of(stores[0], measure_of("tracin"))
    every = Queries.of(stores[1])
    assert every.labels == stores[1].manifest.metadata["label"]
    np.testing.assert_array_equal(every.features(features), features.range(stores[1]))
    part = every.part(5, 99)
    assert (len(part), part.ids, part.sample(2)) == (7, every.ids[5:], 7)
    np.testing.assert_array_equal(part.features(features), features.range(stores[1], 5, 12))


def test_sums_are_sums(stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    train, asked = stores
    features = Features.of(train, measure_of("tracin"))
    monkeypatch.setattr(queries_module, "_BLOCK_BYTES", 3 * 4 * features.dim(train))
    own = features.range(asked).astype(np.float64)
    sums = {"x": {"s1": 1.0, "s7": -2.5, "s0": 0.5}, "y": {"s4": 1.0}, "z": {"s7": 3.0, "s1": 1.0}}
    queries = Queries.combined(asked, sums)
    expected = [
        sum(weight * own[int(name[1:])] for name, weight in one.items()) for one in sums.values()
    ]
    np.testing.assert_allclose(queries.features(features), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        queries.part(1, 3).features(features), expected[1:], rtol=1e-5, atol=1e-6
    )
    assert queries.labels == [None, "1", "1"]
    assert [queries.sample(q) for q in range(3)] == [None, 4, None]


def test_means_and_differences_are_searched_as_one(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, asked = stores
    monkeypatch.setattr("indexer.studies.explanation.is_projected", lambda store: True)
    features = Features.of(train, measure_of("retrac"))
    engine = ExactEngine(train, features)
    means = Queries.means(asked, "label")
    assert list(means.ids) == ["label=0", "label=1", "label=2"]
    assert means.labels == ["0", "1", "2"]
    own = features.range(asked).astype(np.float64)
    vectors = {
        "label=0": own[0::3].mean(axis=0),
        "label=1": own[1::3].mean(axis=0),
        "label=2": own[[2, 5, 8]].mean(axis=0),  # the last sample has no label
    }
    less = means.minus("label=1")
    assert list(less.ids) == ["label=0 - label=1", "label=2 - label=1"]
    samples = features.range(train).astype(np.float64)
    answer = search(engine, less, 20)
    for query, name in enumerate(("label=0", "label=2")):
        scores = samples @ (vectors[name] - vectors["label=1"])
        np.testing.assert_array_equal(answer.proponents.samples[query], np.argsort(-scores)[:20])
        np.testing.assert_allclose(
            answer.proponents.scores[query], np.sort(scores)[::-1][:20], rtol=1e-3, atol=1e-6
        )
    # A sum's projection is the sum of projections: the error follows from the sum's own length.
    pair = answer.queries.features(features)[0].reshape(2, -1)
    sample = samples[answer.proponents.samples[0, 0]].reshape(2, -1)
    null = (pair**2).sum(axis=1) * (sample**2).sum(axis=1)
    expected = np.sqrt((null + (pair * sample).sum(axis=1) ** 2).sum() / train.dim)
    assert answer.explained.projection_error[0, 0] == pytest.approx(expected, rel=1e-3)


def test_what_cannot_be_summed_is_told(stores: tuple[Store, Store]) -> None:
    with pytest.raises(QueryError, match="no column 'artist'; it has label"):
        Queries.means(stores[1], "artist")
    with pytest.raises(QueryError, match="has no sample 'nobody'"):
        Queries.combined(stores[1], {"x": {"nobody": 1}})
    with pytest.raises(QueryError, match="no query is given"):
        Queries.combined(stores[1], {"x": {}})
    with pytest.raises(QueryError, match="no query 'x' to subtract"):
        Queries.of(stores[1]).minus("x")
    with pytest.raises(QueryError, match="the only query"):
        Queries.of(stores[1]).part(0, 1).minus("s0")
