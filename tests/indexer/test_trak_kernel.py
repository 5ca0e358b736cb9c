from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gradstore import delete, open_store
from gradstore.errors import SearchIndexError
from indexer import Features, Trak
from indexer.measures import trak as precondition
from indexer.trak_kernel import build_kernel, fitted_by_kernel, kernel_path
from query import engines
from tests.support.drawn_stores import random_store

if TYPE_CHECKING:
    from pathlib import Path

    from gradstore.store.reader import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return random_store(tmp_path / "t.gradstore", 150, slots=2)


@pytest.mark.parametrize("share", [1.0, 0.01])
def test_a_kept_kernel_gives_the_same_queries(store: Store, share: float) -> None:
    path = build_kernel(store)
    assert path.name == "t.trak.kernel"
    asked = Features.of(store, Trak()).range(store, 0, 5)
    plain, kept = Trak(share).fitted(store), fitted_by_kernel(Trak(share), store)
    assert kept == plain  # including λ of each checkpoint
    np.testing.assert_array_equal(kept.prepared(asked), plain.prepared(asked))


def test_the_second_question_reads_no_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = engines.fitted(Trak(), store)

    def never(*_: Any) -> Any:
        raise AssertionError("the store is read again")

    monkeypatch.setattr(precondition, "grams", never)
    monkeypatch.setattr("indexer.trak_kernel.grams", never)
    assert engines.fitted(Trak(), store) == first
    assert engines.fitted(Trak(0.1), store) != first
    build_kernel(store)


def test_a_kernel_of_other_samples_is_refused_and_built_anew(store: Store) -> None:
    build_kernel(store)
    delete(store, ["s3"])
    after = open_store(store.location)
    with pytest.raises(SearchIndexError, match="built from other samples.*--measures trak"):
        engines.fitted(Trak(), after)
    build_kernel(after)
    assert fitted_by_kernel(Trak(), after) == Trak().fitted(after)


def test_a_kernel_of_another_store_is_refused(store: Store, tmp_path: Path) -> None:
    build_kernel(store)
    (tmp_path / "o").mkdir()
    other = random_store(tmp_path / "o" / "t.gradstore", 150, dim=32)
    shutil.copytree(kernel_path(store), kernel_path(other))
    for use in (lambda: build_kernel(other), lambda: fitted_by_kernel(Trak(), other)):
        with pytest.raises(SearchIndexError, match="something else: dim is 64"):
            use()


def test_damage_is_told(store: Store) -> None:
    path = build_kernel(store)
    file = path / "1.npy"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(SearchIndexError, match=r"1.npy cannot be read: it has changed since"):
        fitted_by_kernel(Trak(), store)
    (path / "kernel.json").unlink()
    with pytest.raises(SearchIndexError, match="not a whole kernel"):
        fitted_by_kernel(Trak(), store)
    shutil.rmtree(path)
    with pytest.raises(SearchIndexError, match="there is no kernel"):
        fitted_by_kernel(Trak(), store)


def test_where_nothing_can_be_kept_it_is_computed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert engines.fitted(Trak(), store) == Trak().fitted(store)
    assert not kernel_path(store).exists()


def test_4096_dimensions_stay_float64(tmp_path: Path) -> None:
    """Against the kernel's other side, `[samples, samples]`: (ΦᵀΦ + λI)⁻¹ q by Woodbury."""
    train = random_store(tmp_path / "t.gradstore", 20, dim=4096)
    measure = Trak(1e-6).fitted(train)
    asked = Features.of(train, Trak()).range(train, 0, 2)
    found = np.split(measure.prepared(asked).astype(np.float64), 2, axis=1)
    assert measure.lambdas is not None
    for k, (part, ridge) in enumerate(
        zip(np.split(asked, 2, axis=1), measure.lambdas, strict=True)
    ):
        rows = train.rows(k)
        phi = (rows.direction.astype(np.float64) * rows.norm[:, :, None]).mean(axis=1)
        inner = np.linalg.inv(phi @ phi.T + ridge * np.eye(20))
        expected = (part - part @ phi.T @ inner @ phi) / ridge
        # By its effect on the samples, which hides 1/λ times a float32 query's remainder.
        np.testing.assert_allclose(found[k] @ phi.T, expected @ phi.T, rtol=1e-3, atol=1e-3)
