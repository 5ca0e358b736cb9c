from __future__ import annotations

import numpy as np
import pytest

from query.evaluation.methods import chance, cosine, kernel


def test_baselines_are_their_formulas() -> None:
    generator = np.random.default_rng(0)
    queries, train = generator.normal(size=(2, 4)), generator.normal(size=(5, 4))
    squares = np.array([[((q - x) ** 2).sum() for x in train] for q in queries])
    expected = np.exp(-squares / (0.2 * np.median(squares)))
    assert kernel(queries, train) == pytest.approx(expected, rel=1e-5)
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(train, axis=1)
    assert cosine(queries, train) == pytest.approx(queries @ train.T / lengths, rel=1e-5)
    assert not cosine(np.zeros((1, 4)), train).any()
    np.testing.assert_array_equal(chance(2, 5), chance(2, 5))
