"""TRAK's kernel against its formula, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from gradstore.errors import ConfigError, QueryError
from indexer import ExactEngine, Features, Trak, build_index, index_path, measure_of
from query import search
from tests.support.drawn_stores import random_store

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from gradstore.store.reader import Store

ETAS = (0.5, 1.0)


def phi(store: Store, checkpoint: int) -> NDArray[np.float64]:
    rows = store.rows(checkpoint)
    gradients = rows.direction.astype(np.float64) * rows.norm[:, :, None]
    return np.asarray(gradients.mean(axis=1))


def kernel(train: Store, queries: Store, share: float) -> NDArray[np.float64]:
    total = np.zeros((queries.samples, train.samples))
    for k, eta in enumerate(ETAS):
        own = phi(train, k)
        gram = own.T @ own
        values = np.linalg.eigvalsh(gram)  # ascending; no more than `samples` are not zero
        ridge = share * np.mean(values[-min(len(gram), train.samples) :])
        total += eta * phi(queries, k) @ np.linalg.inv(gram + ridge * np.eye(len(gram))) @ own.T
    return total


@pytest.mark.parametrize("share", [1.0, 1e-3])
@pytest.mark.parametrize("samples", [40, 300])  # fewer and more than dim
def test_scores_are_the_formula(tmp_path: Path, share: float, samples: int) -> None:
    train = random_store(tmp_path / "t.gradstore", samples, slots=2)
    queries = random_store(tmp_path / "q.gradstore", 5, slots=3, seed=1)
    measure = Trak(share).fitted(train)
    features = Features.of(train, measure)
    asked = measure.prepared(features.range(queries))
    expected = kernel(train, queries, share)
    found = np.concatenate([s for _, s in ExactEngine(train, features).scores(asked)], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_the_index_of_tracin_serves_it(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore")
    queries = random_store(tmp_path / "q.gradstore", 5, slots=3, seed=1)
    assert index_path(train, "trak:0.1") == index_path(train, "tracin")
    index = build_index(train, "trak:0.1")
    answer = search(index, queries, 10, measure="trak:0.1")
    assert answer.measure == "trak:0.1"
    expected = kernel(train, queries, 0.1)
    np.testing.assert_array_equal(
        answer.proponents.samples, np.argsort(-expected, axis=1, kind="stable")[:, :10]
    )
    np.testing.assert_array_equal(
        answer.opponents.samples, np.argsort(expected, axis=1, kind="stable")[:, :10]
    )
    with pytest.raises(QueryError, match="is of tracin and does not serve retrac"):
        search(index, queries, 10, measure="retrac")


def test_a_large_share_is_tracin(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore")
    measure = Trak(1e6).fitted(train)
    asked = Features.of(train, measure).range(train, 0, 3)
    parts = np.split(measure.prepared(asked), 2, axis=1)
    assert measure.lambdas is not None
    for part, plain, ridge in zip(parts, np.split(asked, 2, axis=1), measure.lambdas, strict=True):
        np.testing.assert_allclose(part * ridge, plain, rtol=1e-3, atol=1e-5)


def test_names() -> None:
    assert measure_of("trak").name == "trak"
    assert measure_of("trak:0.01").name == "trak:0.01"
    for wrong in ("trak:0", "trak:-1", "trak:nan", "trak:inf"):
        with pytest.raises(ConfigError, match="must be above 0"):
            measure_of(wrong)
    with pytest.raises(ConfigError, match=r"trak.fitted\(store\)"):
        Trak().prepared(np.zeros((1, 4), np.float32))
