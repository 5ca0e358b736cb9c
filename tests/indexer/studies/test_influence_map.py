from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from gradstore import delete, open_store
from gradstore.errors import SearchIndexError
from indexer import ExactEngine
from indexer.studies import influence_map as maps
from tests.support.drawn_stores import random_store

if TYPE_CHECKING:
    from pathlib import Path

    from gradstore.store.reader import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return random_store(tmp_path / "t.gradstore", 220, slots=2)


@pytest.mark.parametrize("measure", ["retrac", "tracin"])
def test_axes_are_those_of_naive_pca(store: Store, measure: str) -> None:
    engine = ExactEngine(store, measure)
    every = engine.features.range(store).astype(np.float64)
    every -= every.mean(axis=0)
    _, scale, axes = np.linalg.svd(every, full_matrices=False)
    expected = every @ axes[:2].T
    found, shares = maps.principal(engine, 2)
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found * signs, expected, atol=2e-4 * scale[0])
    np.testing.assert_allclose(shares, scale[:2] ** 2 / (scale**2).sum(), rtol=1e-4)


def test_axes_of_drawn_samples_are_near_those_of_all(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ExactEngine(store, "tracin")
    whole, _ = maps.principal(engine, 1)
    monkeypatch.setattr(maps, "_DRAWN", 180)
    drawn, _ = maps.principal(engine, 1)
    assert abs(np.corrcoef(whole[:, 0], drawn[:, 0])[0, 1]) > 0.9


def test_a_map_is_made_once_and_anew_after_a_deletion(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = maps.influence_map(ExactEngine(store, "retrac"))
    assert made.method == "pca"
    assert maps.map_path(store).name == "t.map"
    with monkeypatch.context() as patched:
        patched.setattr(maps, "principal", None)  # it is not called again
        again = maps.influence_map(ExactEngine(open_store(store.location), "retrac"))
    np.testing.assert_array_equal(again.points, made.points)
    assert again.shares == made.shares
    delete(store, ["s3"])
    after = maps.influence_map(ExactEngine(open_store(store.location), "retrac"))
    assert len(after.points) == 219


def test_a_damaged_map_is_refused(store: Store) -> None:
    engine = ExactEngine(store, "retrac")
    maps.influence_map(engine)
    file = maps.map_path(store) / "points.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(SearchIndexError, match="damaged"):
        maps.influence_map(engine)


def test_equal_samples_lie_on_one_point(tmp_path: Path) -> None:
    store = random_store(tmp_path / "one.gradstore", 1)
    found = maps.influence_map(ExactEngine(store, "retrac"))
    np.testing.assert_array_equal(found.points, [[0, 0]])


def test_a_map_that_cannot_be_kept_is_shown(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = store.path / "zarr.json" / "t.map"  # below a file: nothing can be written there
    monkeypatch.setattr(maps, "map_path", lambda _: nowhere)
    assert len(maps.influence_map(ExactEngine(store, "retrac")).points) == 220
