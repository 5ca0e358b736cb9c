"""Samples are deleted from a store."""

from __future__ import annotations

import numpy as np
import pytest

from gradstore import delete, open_store, vacuum
from gradstore.errors import StoreError
from gradstore.store.format.deletions import Deletions
from gradstore.store.format.manifest import Manifest
from gradstore.store.objects.protocol import ChangedError, digest
from gradstore.store.reader import Store
from gradstore.store.verify import verify
from tests.support.written_stores import (
    everything,
    grown,
    manifest,
    require_equal,
    some_rows,
)


def test_deleted_samples_are_hidden_at_once(store: Store) -> None:
    store = grown(store, ["a", "b", "c"])
    before = everything(store)
    after = delete(store, ["s1", "s4", "b"])
    kept = [0, 2, 3, 5, 6, 7, 8, 9, 10, 12]
    assert list(after.manifest.ids) == [store.manifest.ids[row] for row in kept]
    require_equal(everything(after), {name: array[kept] for name, array in before.items()})
    for name in ("norm", "loss", "timestep"):
        np.testing.assert_array_equal(after.column(name, 1), before[f"1/{name}"][kept])
    np.testing.assert_array_equal(after.take(0, [9, 1]).norm, before["0/norm"][[12, 2]])
    assert list(after.blocks()) == [(0, 3), (3, 6), (6, 8), (8, 9), (9, 10)]
    assert len(after.deletions) == 3
    again = delete(after, ["s2"])
    assert len(again.deletions) == 4
    assert after.take(0, [0]).norm.shape == (1, 2)  # the older table remains for its readers
    assert {report.problem for report in verify(again)} == {None}
    assert len(list((vacuum(again).path / "deleted").iterdir())) == 0


def test_wrong_deletions_change_nothing(store: Store) -> None:
    after = delete(store, ["s1"])
    for ids, message in (
        (["s1"], "holds no sample 's1'"),
        (["s2", "zz"], "holds no sample 'zz'"),
        ([f"s{n}" for n in range(10) if n != 1], "these are all 9 samples"),
    ):
        with pytest.raises(StoreError, match=message):
            delete(after, ids)
    assert delete(after, []).is_current()
    assert open_store(store.path).samples == 9


def test_a_deleted_id_may_come_back(store: Store) -> None:
    after = grown(delete(store, ["s1"]), ["s1"])
    assert list(after.manifest.ids) == [f"s{n}" for n in (0, *range(2, 10), 1)]
    np.testing.assert_array_equal(after.rows(0, 9, 10).norm, some_rows(1, 7).norm)
    gone = delete(after, ["s1"])
    assert "s1" not in gone.manifest.ids
    assert gone.samples == 9


def test_a_damaged_table_of_deletions(store: Store) -> None:
    after = delete(store, ["s4"])
    file = store.path / str(after.spec.deleted)
    for content in (b"nonsense", Deletions({"": np.array([10])}).content(0)):
        file.write_bytes(content)
        with pytest.raises(StoreError, match="the table of deleted rows, has changed"):
            _ = open_store(store.path).samples
        named = file.with_name(f"{digest(content)}.parquet")
        named.write_bytes(content)
        spec = after.spec.model_copy(update={"deleted": f"deleted/{named.name}"})
        with pytest.raises(StoreError, match="cannot be read as a table of deleted rows"):
            _ = Store(after.objects, spec, after.root).samples
    file.unlink()
    with pytest.raises(StoreError, match="the table of deleted rows, cannot be read"):
        open_store(store.path).rows(0)


def test_manifest_and_deletions_are_what_was_written(store: Store) -> None:
    other = Manifest([f"t{n}" for n in range(10)], list(manifest().digests))
    kept = (store.path / "samples/manifest.parquet").read_bytes()
    (store.path / "samples/manifest.parquet").write_bytes(other.content())
    with pytest.raises(StoreError, match="manifest.parquet has changed since"):
        list(verify(open_store(store.path)))
    (store.path / "samples/manifest.parquet").write_bytes(kept)
    after = delete(store, ["s1"])
    table = after.path / str(after.spec.deleted)
    table.write_bytes(Deletions({"": np.array([2])}).content(0))
    with pytest.raises(StoreError, match="the table of deleted rows, has changed"):
        list(verify(open_store(store.path)))


def test_who_opened_a_store_before_is_told_that_it_changed(store: Store) -> None:
    old = delete(store, ["s1"])
    vacuum(old)
    with pytest.raises(ChangedError):
        old.rows(0)


def test_who_opened_a_store_before_a_vacuum_is_not_told_to_collect_again(store: Store) -> None:
    old = open_store(store.path)
    vacuum(delete(open_store(store.path), ["s1"]))
    for read in (lambda: old.rows(0), lambda: old.take(0, [5]), lambda: old.column("norm", 1)):
        with pytest.raises(ChangedError):
            read()
