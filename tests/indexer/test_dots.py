"""Inner products of pairs of features."""

from __future__ import annotations

import numpy as np

from indexer.dots import dots


def test_long_sums_are_exact_to_float32() -> None:
    generator = np.random.default_rng(0)
    left = generator.standard_normal((2, 4_500_000), dtype=np.float32)
    right = left + generator.standard_normal(left.shape, dtype=np.float32)
    expected = np.einsum("nd,nd->n", left.astype(np.float64), right.astype(np.float64))
    np.testing.assert_allclose(dots(left, right), expected, rtol=1e-6)


def test_equal_rows_tie() -> None:
    row = np.random.default_rng(1).standard_normal(9000, dtype=np.float32)
    rows, asked = np.tile(row, (7, 1)), np.tile(row[::-1], (7, 1))
    assert len(np.unique(dots(rows, asked))) == 1
