from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from gradstore.errors import ConfigError, UnsealedError
from gradstore.store.writer import create
from indexer import Features, ReTrac, TracIn, measure_of
from tests.support.written_stores import filled, manifest, spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer.feature import Tile
from tests.support.drawn_stores import features


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path / "s.gradstore")


@pytest.mark.parametrize("name", ["tracin", "retrac"])
@pytest.mark.parametrize("etas", [None, [2.0, 0.0]])
def test_features_are_their_definition(store: Store, name: str, etas: list[float] | None) -> None:
    found = features(store, measure_of(name), 3, 9, etas=etas)
    assert found.shape == (6, store.checkpoints * store.dim)
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


@pytest.mark.parametrize("start", [0, 3, 4, 9, 10])
@pytest.mark.parametrize("keep", [None, [0, 3, 4, 5, 9], [2]])
@pytest.mark.parametrize("most", [None, 1, 3])
def test_work_is_done_on_each_block(
    store: Store, start: int, keep: list[int] | None, most: int | None
) -> None:
    """From a start, for some samples, in blocks of a maximum size."""
    chosen = Features.of(store, TracIn())

    def whole(samples: NDArray[np.int64], tiles: Iterator[Tile]) -> NDArray[np.float32]:
        assert most is None or len(samples) <= most
        out = np.full((len(samples), chosen.dim(store)), np.nan, np.float32)
        for here, parts in tiles:
            found = [one * scale[:, None] for one, scale in parts.values()]
            out[here] = np.concatenate(found, axis=1)
        return out

    given = None if keep is None else np.array(keep)
    found = list(chosen.each(store, whole, start=start, keep=given, most=most))
    rows = [row for samples, _ in found for row in samples.tolist()]
    assert rows == [row for row in keep or range(10) if row >= start]
    for samples, block in found:
        np.testing.assert_allclose(block, chosen.take(store, samples), rtol=1e-6)


@pytest.mark.parametrize("etas", [[1.0], [1.0, -1.0], [1.0, float("nan")], [1.0, 1.0, 1.0]])
def test_wrong_etas_are_refused(store: Store, etas: list[float]) -> None:
    with pytest.raises(ConfigError, match="needs one finite number ≥ 0 for each"):
        Features.of(store, ReTrac(), etas=etas)


def test_unknown_measures_are_refused() -> None:
    with pytest.raises(ConfigError, match="no measure 'trac'; use tracin, retrac"):
        measure_of("trac")


def test_unsealed_rows_have_no_features(tmp_path: Path) -> None:
    made = create(tmp_path / "s.gradstore", spec(), manifest())
    with pytest.raises(UnsealedError):
        features(made, TracIn())
