from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from gradstore.errors import ConfigError, UnsealedError
from gradstore.writer import create
from indexer import Features, ReTrac, TracIn, feature_dim, features, measure_of
from tests.gradstore.test_store import filled, manifest, spec

if TYPE_CHECKING:
    from pathlib import Path

    from gradstore.reader import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path / "s.gradstore")


@pytest.mark.parametrize("name", ["tracin", "retrac"])
@pytest.mark.parametrize("etas", [None, [2.0, 0.0]])
def test_features_are_their_definition(store: Store, name: str, etas: list[float] | None) -> None:
    found = features(store, measure_of(name), 3, 9, etas=etas)
    assert found.shape == (6, feature_dim(store))
    assert found.dtype == np.float32
    parts = []
    for k, eta in enumerate(etas or [0.5, 1.0]):
        stored = store.rows(k, 3, 9)
        direction = stored.direction.astype(np.float64)
        if name == "tracin":
            direction = direction * stored.norm[:, :, None]
        parts.append(np.sqrt(eta) * direction.mean(axis=1))
    np.testing.assert_allclose(found, np.concatenate(parts, axis=1), rtol=1e-5, atol=1e-6)


def test_a_stream_gives_all_of_them(store: Store) -> None:
    blocks = list(Features.of(store, TracIn()).blocks(store))
    assert [start for start, _ in blocks] == [0, 4, 8]
    np.testing.assert_array_equal(
        np.concatenate([block for _, block in blocks]), features(store, TracIn())
    )


@pytest.mark.parametrize("etas", [[1.0], [1.0, -1.0], [1.0, float("nan")], [1.0, 1.0, 1.0]])
def test_wrong_etas_are_refused(store: Store, etas: list[float]) -> None:
    with pytest.raises(ConfigError, match="needs one finite number ≥ 0 for each"):
        features(store, ReTrac(), etas=etas)


def test_unknown_measures_are_refused() -> None:
    with pytest.raises(ConfigError, match="no measure 'trac'; use tracin, retrac"):
        measure_of("trac")


def test_unsealed_rows_have_no_features(tmp_path: Path) -> None:
    made = create(tmp_path / "s.gradstore", spec(), manifest())
    with pytest.raises(UnsealedError):
        features(made, TracIn())
