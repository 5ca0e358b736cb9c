from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest

from indexer import Trak
from indexer.measures import cholesky
from indexer.measures import trak as precondition
from indexer.measures.cholesky import Cholesky
from indexer.measures.trak import grams
from tests.support.drawn_stores import random_store

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("dim", [1, 7, 16, 100])
@pytest.mark.parametrize("aside", [False, True])
def test_it_solves(dim: int, monkeypatch: pytest.MonkeyPatch, *, aside: bool) -> None:
    monkeypatch.setattr(cholesky, "_BLOCK", 16)
    generator = np.random.default_rng(0)
    half = generator.standard_normal((dim, 2 * dim))
    matrix = half @ half.T + np.eye(dim)
    vectors = generator.standard_normal((5, dim)).astype(np.float32)
    factor = Cholesky(matrix.copy())
    if aside:
        factor.put_aside()
    np.testing.assert_allclose(factor.solve(vectors) @ matrix, vectors, rtol=1e-9, atol=1e-9)


def test_what_is_not_positive_definite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cholesky, "_BLOCK", 2)
    with pytest.raises(np.linalg.LinAlgError):
        Cholesky(np.diag([1.0, 1, 1, -1]))


def test_kernels_are_symmetric_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precondition, "_SAMPLES", 100)
    monkeypatch.setattr(precondition, "_COLUMNS", 24)
    train = random_store(tmp_path / "t.gradstore", slots=2)
    for k, found in enumerate(grams(train)):
        rows = train.rows(k)
        phi = (rows.direction.astype(np.float64) * rows.norm[:, :, None]).mean(axis=1)
        np.testing.assert_allclose(found, phi.T @ phi, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found, found.T)


def test_one_matrix_is_held_whatever_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dim = 2048
    whole = 8 * dim * dim
    for module, name, value in (
        (precondition, "_HELD", 0),
        (precondition, "_COLUMNS", 128),
        (cholesky, "_BLOCK", 128),
    ):
        monkeypatch.setattr(module, name, value)
    train = random_store(tmp_path / "t.gradstore", 40, dim=dim)
    asked = np.random.default_rng(0).standard_normal((2, 2 * dim)).astype(np.float32)
    tracemalloc.start()
    try:
        measure = Trak().fitted(train)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        found = measure.prepared(asked)
        left, solving = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * whole
    assert left < 0.1 * whole  # both are in files
    assert solving < 0.3 * whole
    monkeypatch.setattr(precondition, "_HELD", 2**31)
    np.testing.assert_array_equal(Trak().fitted(train).prepared(asked), found)
