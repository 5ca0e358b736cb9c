"""The measure that removes common directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradstore.errors import ConfigError
from indexer import TracIn, measure_of
from indexer.measures.minus import Minus, leading
from query import search
from query.engines import fitted
from tests.support.drawn_stores import features, random_store


@pytest.mark.parametrize("rank", [1, 3])
def test_scores_are_those_of_the_definition(tmp_path: Path, rank: int) -> None:
    train = random_store(tmp_path / "t.gradstore", 40, seed=0)
    asked = random_store(tmp_path / "q.gradstore", 3, seed=1)
    phi, queries = (features(one, TracIn()).astype(np.float64) for one in (train, asked))
    expected = np.zeros((3, 40))
    for part, own in zip(
        np.split(phi, train.checkpoints, 1), np.split(queries, train.checkpoints, 1), strict=True
    ):
        _, vectors = np.linalg.eigh(part.T @ part)
        kept = vectors[:, :-rank]
        expected += own @ kept @ kept.T @ part.T
    answer = search(train, asked, 40, measure=f"minus:{rank}")
    found = np.zeros((3, 40))
    np.put_along_axis(found, answer.proponents.samples, answer.proponents.scores, 1)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_eigenvectors_that_are_close_are_found() -> None:
    values = np.r_[1.0, 0.999, 0.99, 0.98, np.linspace(0.5, 0, 60)]
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))[0]
    found = leading((basis * values) @ basis.T, 4)
    np.testing.assert_allclose(found @ found.T, basis[:, :4] @ basis[:, :4].T, atol=1e-5)


def test_the_kernel_beside_the_store_is_used(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore", 40, seed=0)
    measure = fitted(measure_of("minus:2"), train)
    assert (tmp_path / "t.trak.kernel").exists()
    assert isinstance(measure, Minus)
    asked = np.random.default_rng(0).standard_normal((2, train.checkpoints * train.dim))
    given = asked.astype(np.float32)
    np.testing.assert_allclose(
        measure.prepared(given), Minus(2).fitted(train).prepared(given), atol=1e-5
    )


@pytest.mark.parametrize("name", ["minus:0", "minus:1.5", "minus:-1", "minus:x"])
def test_wrong_ranks_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        measure_of(name)


def test_not_all_directions_are_removed() -> None:
    with pytest.raises(ConfigError):
        leading(np.eye(3), 3)
