"""Stores of every released format stay readable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from gradstore.store.format.rows import ARRAYS
from gradstore.store.opening import open_store
from gradstore.store.verify import verify
from indexer import build_index
from tests.golden import make

PLAIN = sorted(make.HERE.glob("format-[0-9].gradstore"))
GROWN = sorted(make.HERE.glob("format-*-grown.gradstore"))


def test_there_are_some_for_the_present_format() -> None:
    assert {make.HERE / name for name in make.STORES} <= {*PLAIN, *GROWN}


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.name)
def test_a_golden_store_is_read(path: Path) -> None:
    store = open_store(path)
    assert {report.problem for report in verify(store)} == {None}
    assert store.etas == make.ETAS
    assert store.manifest == make.manifest()
    assert store.spec.identity == make.IDENTITY
    for checkpoint in range(2):
        for name in ARRAYS:
            np.testing.assert_array_equal(
                getattr(store.rows(checkpoint), name), getattr(make.rows(checkpoint), name)
            )


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.name)
def test_any_zarr_and_any_parquet_reads_it(path: Path) -> None:
    root = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(root["checkpoints/1/direction"][:], make.rows(1).direction)  # type: ignore[index]
    table = pq.read_table(path / "samples" / "manifest.parquet")
    assert table["id"].to_pylist() == make.manifest().ids


@pytest.mark.parametrize("path", GROWN, ids=lambda path: path.name)
def test_a_golden_store_that_grew_is_read(path: Path) -> None:
    store = open_store(path)
    assert {report.problem for report in verify(store)} == {None}
    first, more = [0, 1, 3, 4, 5, 6], [0, 2]
    names = [make.manifest().ids[row] for row in first]
    assert list(store.manifest.ids) == [*names, "new-0", "new-2"]
    assert store.manifest.metadata["year"] == [None] * 6 + [1999, None]
    assert len(store.deletions) == 2
    for checkpoint in range(2):
        exact, found = make.rows(checkpoint), store.rows(checkpoint)
        direction = exact.direction[first + more].astype(np.float32)
        step = np.abs(direction).max(axis=2, keepdims=True) / 127
        assert (np.abs(found.direction - direction) <= 0.5001 * step).all()
        np.testing.assert_array_equal(found.norm, exact.norm[first + more])
        np.testing.assert_array_equal(found.timestep, exact.timestep[first + more])


@pytest.mark.parametrize("name", make.STORES)
def test_what_is_written_today_is_the_golden_store(name: str, tmp_path: Path) -> None:
    """Compared object by object, to detect changes of the format's bytes."""
    make.STORES[name](tmp_path / "s.gradstore")

    def objects(root: Path) -> dict[str, bytes]:
        return {
            str(file.relative_to(root)): file.read_bytes()
            for file in root.rglob("*")
            if file.is_file() and file.suffix != ".parquet" and file.name != "zarr.json"
        }

    assert objects(tmp_path / "s.gradstore") == objects(make.HERE / name)


def test_a_golden_store_is_indexed(tmp_path: Path) -> None:
    import shutil

    path = Path(shutil.copytree(PLAIN[0], tmp_path / "s.gradstore"))
    assert build_index(open_store(path), "retrac").spec.count == 7
