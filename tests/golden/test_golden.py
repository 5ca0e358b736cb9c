"""Stores of every released format stay readable."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from gradstore.store.changes.append import add_parts, open_part, part_path
from gradstore.store.changes.delete import delete
from gradstore.store.changes.vacuum import vacuum
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.rows import ARRAYS, Rows, given_dtype
from gradstore.store.format.spec import FORMAT_VERSION, LayoutSpec, PartSpec
from gradstore.store.opening import open_store
from gradstore.store.verify import verify
from gradstore.store.writer import write_shard
from indexer import build_index
from tests.golden import make
from tests.support.written_stores import everything, require_equal

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
            # Parquet's bytes depend on the version of pyarrow, and digests of them with it.
            if file.is_file()
            and file.suffix != ".parquet"
            and file.name != "zarr.json"
            and file.parent.name != "commits"
        }

    assert objects(tmp_path / "s.gradstore") == objects(make.HERE / name)


def test_a_golden_store_is_indexed(tmp_path: Path) -> None:
    path = Path(shutil.copytree(PLAIN[0], tmp_path / "s.gradstore"))
    assert build_index(open_store(path), "retrac").spec.count == 7


@pytest.mark.parametrize("path", [*PLAIN, *GROWN], ids=lambda path: path.name)
def test_a_golden_store_is_changed_and_keeps_its_format(path: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(path, tmp_path / "s.gradstore"))
    store = open_store(copied)
    version, before = store.spec.format_version, everything(store)
    names = Manifest(["x", "y"], ["1", "2"])
    old = store.parts[0].layout
    layout = replace(old, samples=2)
    part = open_part(
        store, PartSpec(path=part_path(store, names), layout=LayoutSpec.of(layout)), names
    )
    for number in store.numbers:
        rows = make.rows(number)
        direction = rows.direction[:2].astype(given_dtype(store.dtype))
        write_shard(
            part, number, 0, Rows(direction, rows.norm[:2], rows.loss[:2], rows.timestep[:2])
        )
    grown = add_parts(store, [part])
    left = vacuum(delete(grown, ["y", "sample-0"]))
    assert left.spec.format_version == version
    assert {report.problem for report in verify(left)} == {None}
    found = everything(left)
    require_equal(
        {name: values[:-1] for name, values in found.items()},
        {name: values[1:] for name, values in before.items()},
    )
    root = (copied / "zarr.json").read_text()
    assert ('"columns"' in root, '"metric"' in root) == (version > 1, version > 1)


@pytest.mark.parametrize("path", [*PLAIN, *GROWN], ids=lambda path: path.name)
def test_a_golden_store_is_upgraded(path: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(path, tmp_path / "s.gradstore"))
    before = open_store(path)
    after = vacuum(copied, upgrade=True)
    assert after.spec.format_version == FORMAT_VERSION
    assert after.manifest == before.manifest
    assert {report.problem for report in verify(after)} == {None}
    require_equal(everything(after), everything(before))
    assert not (copied / "checkpoints/0/norm").exists()
