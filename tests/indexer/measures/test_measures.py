"""Every measure by its definition, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradstore.errors import ConfigError, SearchIndexError
from gradstore.store.format.rows import Rows
from gradstore.store.reader import Store
from indexer import (
    Calibrated,
    Clip,
    Power,
    ReTrac,
    TracIn,
    build_index,
    index_path,
    measure_of,
)
from tests.support.drawn_stores import features
from tests.support.written_stores import filled, grown


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path / "s.gradstore")


def weights(measure: Any, rows: Rows, checkpoint: int) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = measure.weights(rows, checkpoint)
    assert found.dtype == np.float32
    assert found.shape == rows.norm.shape
    return found


def test_power_lies_between(store: Store) -> None:
    np.testing.assert_allclose(features(store, Power(0)), features(store, TracIn()), rtol=1e-6)
    np.testing.assert_allclose(features(store, Power(1)), features(store, ReTrac()), rtol=1e-6)
    rows = store.rows(1)
    for row, weight in zip(rows.norm.ravel(), weights(Power(0.25), rows, 1).ravel(), strict=True):
        assert weight == pytest.approx(float(row) ** 0.75)


def zeroed(rows: Rows) -> Rows:
    norm = rows.norm.copy()
    norm[0, 0] = 0
    return Rows(rows.direction, norm, rows.loss, rows.timestep)


@pytest.mark.parametrize("name", ["tracin", "power:0.5", "power:1", "clip:0.5", "calibrated"])
def test_a_zero_gradient_weighs_something_finite(store: Store, name: str) -> None:
    measure = measure_of(name).fitted(store)
    found = weights(measure, zeroed(store.rows(0)), 0)
    assert np.isfinite(found).all()
    assert found[0, 0] == 0


def test_clip_normalises_what_is_dominant(store: Store) -> None:
    measure = Clip(0.7).fitted(store)
    for checkpoint in range(2):
        norms = store.column("norm", checkpoint)
        threshold = np.quantile(norms.astype(np.float64), 0.7)
        found = weights(measure, store.rows(checkpoint), checkpoint)
        for norm, weight in zip(norms.ravel(), found.ravel(), strict=True):
            assert weight == pytest.approx(min(float(norm), threshold))
        assert 0.2 < (found < norms).mean() < 0.4
    whole = features(store, Clip(1).fitted(store))
    np.testing.assert_allclose(whole, features(store, TracIn()), rtol=1e-6)


def test_calibrated_takes_out_the_timesteps_share(store: Store) -> None:
    """By definition for few timesteps: norm over the mean norm at the same timestep."""
    measure = Calibrated().fitted(store)
    for checkpoint in range(2):
        rows = store.rows(checkpoint)
        few = rows.timestep % 3
        made = Rows(rows.direction, rows.norm * (1 + few), rows.loss, few.astype(np.int32))

        class Few:
            checkpoints = 1

            def column(self, name: str, _: int, made: Rows = made) -> Any:
                return getattr(made, name)

        own = Calibrated().fitted(Few())  # type: ignore[arg-type]
        found = weights(own, made, 0)
        for timestep in range(3):
            here = few == timestep
            np.testing.assert_allclose(found[here], made.norm[here] / made.norm[here].mean(), 1e-5)
            assert found[here].mean() == pytest.approx(1)
    # A timestep without training rows has the weight of the one before it, or of the first.
    first, last = measure.edges[0][0], measure.edges[0][-1]  # type: ignore[index]
    rows = store.rows(0, 0, 1)
    asked = Rows(
        rows.direction, np.ones((1, 2), np.float32), rows.loss,
        np.array([[first - 1, last + 1]], np.int32),
    )  # fmt: skip
    means = measure.means[0]  # type: ignore[index]
    np.testing.assert_allclose(weights(measure, asked, 0)[0], [1 / means[0], 1 / means[-1]], 1e-5)


def test_calibrated_groups_timesteps_that_were_drawn_at_random() -> None:
    generator = np.random.default_rng(0)
    timestep = generator.integers(0, 1000, (5000, 1), dtype=np.int32)
    norm = (1 + timestep / 100 * generator.random((5000, 1))).astype(np.float32)
    made = Rows(np.zeros((5000, 1, 1), np.float16), norm, norm, timestep)

    class Drawn:
        checkpoints = 1

        def column(self, name: str, _: int) -> Any:
            return getattr(made, name)

    measure = Calibrated().fitted(Drawn())  # type: ignore[arg-type]
    assert len(measure.edges[0]) == 50  # type: ignore[index]
    found = weights(measure, made, 0).ravel()
    assert abs(np.corrcoef(timestep.ravel(), norm.ravel())[0, 1]) > 0.5
    assert abs(np.corrcoef(timestep.ravel(), found)[0, 1]) < 0.02


@pytest.mark.parametrize("name", ["power:0.5", "clip:0.9", "calibrated"])
def test_an_index_of_each(store: Store, name: str) -> None:
    index = build_index(store, name)
    assert index.path == index_path(store, name)
    assert ":" not in index.path.name
    vectors = features(store, index.measure).astype(np.float64)
    found, _ = index.search(features(store, index.measure, 0, 3), 10)
    expected = vectors[:3] @ vectors.T
    np.testing.assert_array_equal(found.samples, np.argsort(-expected, axis=1))
    np.testing.assert_allclose(found.scores, -np.sort(-expected, axis=1), rtol=1e-4, atol=1e-5)
    assert build_index(store, name).spec == index.spec


def test_what_was_learned_from_other_samples_is_not_mixed(store: Store) -> None:
    build_index(store, "clip:0.9")
    with pytest.raises(SearchIndexError, match="built from something else: measure"):
        build_index(grown(store, ["a", "b"]), "clip:0.9")


@pytest.mark.parametrize("name", ["power", "power:", "power:2", "clip:x", "retrac:1", "nothing"])
def test_nonsense_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no measure|must be from 0 to 1"):
        measure_of(name)


OWN = """
from indexer import Power, ReTrac

class Root(Power):  # all that Power has, under its own name
    name = "mine.Root"

    def __init__(self, alpha=0.5):
        super().__init__(alpha)

class Halves(Root):
    @property
    def name(self):
        return f"mine.Halves:{self.alpha:g}"

unnamed = ReTrac()
nothing = 3
"""


def test_a_measure_of_ones_own_by_name(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    for name, alpha in (("mine.Root", 0.5), ("mine.Halves:0.25", 0.25)):
        measure = measure_of(name)
        assert measure.name == name
        np.testing.assert_array_equal(features(store, measure), features(store, Power(alpha)))
        index = build_index(store, name)
        assert index.path == index_path(store, name)
        assert build_index(store, name).spec == index.spec
    assert measure_of("mine.Root@1-5").name == "mine.Root@1-5"
    for wrong, told in (
        ("mine.Nobody", "cannot be made: module 'mine' has no"),
        ("nowhere.Root", "cannot be made: No module named 'nowhere'"),
        ("mine.Root:x", "cannot be made: could not convert"),
        ("mine.unnamed", "its name is not 'mine.unnamed'"),
        ("mine.nothing", "it has no 'identity'"),
    ):
        with pytest.raises(ConfigError, match=told):
            measure_of(wrong)


@pytest.mark.parametrize("measure", [Clip(0.5), Calibrated()])
def test_what_was_not_learned_is_asked_for(store: Store, measure: Any) -> None:
    with pytest.raises(ConfigError, match=r"fitted\(store\)"):
        features(store, measure)
