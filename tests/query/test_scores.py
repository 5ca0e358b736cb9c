from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import zarr

from gradstore import delete, open_store
from gradstore.errors import QueryError
from indexer import ExactEngine, Features, measure_of
from query import Queries, write_scores
from query import scores as scores_module
from query.leftovers import left_beside
from tests.support.drawn_stores import random_store

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from gradstore.store.reader import Store


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Store]:
    monkeypatch.setattr(scores_module, "_CHUNK", (4, 48))  # not aligned with shards of 128
    monkeypatch.setattr(scores_module, "_MOST_QUERIES", 9)
    train = random_store(tmp_path / "t.gradstore", 300, slots=2)
    delete(train, ["s3", "s130", "s131"])
    queries = random_store(tmp_path / "q.gradstore", 21, slots=3, seed=1)
    return open_store(train.location), queries


def naive(train: Store, queries: Store) -> NDArray[np.float64]:
    total = np.zeros((queries.samples, train.samples))
    for k, eta in enumerate((0.5, 1.0)):
        asked, own = (
            (store.rows(k).direction.astype(np.float64) * store.rows(k).norm[:, :, None]).mean(1)
            for store in (queries, train)
        )
        total += eta * asked @ own.T
    return total


def engine(store: Store) -> ExactEngine:
    return ExactEngine(store, Features.of(store, measure_of("tracin")))


def test_the_matrix_is_that_of_float64(stores: tuple[Store, Store], tmp_path: Path) -> None:
    train, queries = stores
    expected = naive(train, queries)
    write_scores(engine(train), queries, tmp_path / "s.zarr")
    group: Any = zarr.open_group(tmp_path / "s.zarr", mode="r")
    found = group["scores"][:]
    assert found.shape == (21, 297)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert group["sample_id"][:].tolist() == list(train.manifest.ids)
    assert "s130" not in group["sample_id"][:].tolist()
    assert group["query_id"][:].tolist() == list(queries.manifest.ids)
    told = group.attrs["gradstore_scores"]
    assert told["measure"] == "tracin"
    assert told["etas"] == [0.5, 1.0]
    assert told["store_fingerprint"] == train.spec.fingerprint
    write_scores(engine(train), queries, tmp_path / "s.parquet")
    table = pd.read_parquet(tmp_path / "s.parquet")
    assert table["query_id"].tolist() == list(np.repeat(queries.manifest.ids, 297))
    assert table["sample_id"].tolist() == list(train.manifest.ids) * 21
    np.testing.assert_array_equal(table["score"], found.ravel())
    assert [file.name for file in tmp_path.glob(".s*")] == []


@pytest.mark.parametrize("written", [0, 1, 4, 7, 10])
def test_cut_off_it_goes_on(
    stores: tuple[Store, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    train, queries = stores
    columns = scores_module._columns
    left = written

    def dying(*args: Any) -> Any:
        nonlocal left
        for column in columns(*args):
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            yield column

    monkeypatch.setattr(scores_module, "_columns", dying)
    with pytest.raises(KeyboardInterrupt):
        write_scores(engine(train), queries, tmp_path / "s.zarr")
    cut: Any = zarr.open_group(tmp_path / "s.zarr", mode="r")
    assert cut["done"][:].sum() == written
    seen = []

    def counted(*args: Any) -> Any:
        for column in columns(*args):
            seen.append(column[0])
            yield column

    monkeypatch.setattr(scores_module, "_columns", counted)
    write_scores(engine(train), queries, tmp_path / "s.zarr")
    assert len(seen) == cut["done"].size - written
    group: Any = zarr.open_group(tmp_path / "s.zarr", mode="r")
    np.testing.assert_allclose(group["scores"][:], naive(train, queries), rtol=1e-4, atol=1e-4)
    write_scores(engine(train), queries, tmp_path / "s.zarr")  # nothing to do
    assert len(seen) == cut["done"].size - written


def test_scores_of_something_else_are_not_changed(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    train, queries = stores
    write_scores(engine(train), queries, tmp_path / "s.zarr")
    with pytest.raises(QueryError, match="holds something else"):
        write_scores(engine(train), Queries.of(queries).part(0, 5), tmp_path / "s.zarr")
    other = ExactEngine(train, Features.of(train, measure_of("tracin"), etas=[1, 0]))
    with pytest.raises(QueryError, match="holds something else"):
        write_scores(other, queries, tmp_path / "s.zarr")
    (tmp_path / "mine.zarr").mkdir()
    with pytest.raises(QueryError, match="exists and is no Zarr group"):
        write_scores(engine(train), queries, tmp_path / "mine.zarr")
    with pytest.raises(QueryError, match=r"NAME.zarr or NAME.parquet"):
        write_scores(engine(train), queries, tmp_path / "s.csv")


def test_what_a_killed_process_left_of_other_inputs_is_taken_over(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    train, queries = stores
    left, out = tmp_path / ".s.parquet.zarr", tmp_path / "s.parquet"
    write_scores(engine(train), Queries.of(queries).part(0, 5), tmp_path / "other.zarr")
    (tmp_path / "other.zarr").rename(left)
    write_scores(engine(train), queries, out)
    assert len(pd.read_parquet(out)) == 21 * 297
    assert not left.exists()
    out.unlink()
    zarr.open_group(left, mode="w", attributes={"mine": 1})  # no scores
    with pytest.raises(QueryError, match="holds something else"):
        write_scores(engine(train), queries, out)
    assert zarr.open_group(left, mode="r").attrs["mine"] == 1


@pytest.mark.parametrize("name", ["s.zarr", "s.parquet"])
def test_a_second_writer_is_refused(
    stores: tuple[Store, Store], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, queries = stores
    columns, refused = scores_module._columns, []

    def meanwhile(*args: Any) -> Any:
        for column in columns(*args):
            with pytest.raises(QueryError, match="by another process"):
                write_scores(engine(train), queries, tmp_path / name)
            refused.append(column)
            assert left_beside(train) == []
            yield column

    monkeypatch.setattr(scores_module, "_columns", meanwhile)
    write_scores(engine(train), queries, tmp_path / name)
    assert len(refused) > 1
    assert {file.name for file in tmp_path.iterdir()} == {"t.gradstore", "q.gradstore", name}
