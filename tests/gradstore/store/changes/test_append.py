"""Parts are added to a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradstore import delete, drop_checkpoint, open_store, vacuum
from gradstore.errors import StoreError, UnsealedError
from gradstore.store.changes.append import add_parts, open_part, part_path
from gradstore.store.format.layout import Layout
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.spec import LayoutSpec, PartSpec
from gradstore.store.objects.local import LocalObjects
from gradstore.store.part import Part
from gradstore.store.reader import Store
from gradstore.store.verify import unseal_unfit, verify
from gradstore.store.writer import write_shard
from tests.support.written_stores import (
    everything,
    filled,
    grown,
    manifest,
    require_equal,
    rows,
    some_rows,
)


def test_a_part_belongs_to_the_store_when_it_is_added(store: Store) -> None:
    before = everything(store)
    after = grown(store, ["a", "b", "c"])
    assert list(after.manifest.ids) == [*manifest().ids, "a", "b", "c"]
    assert after.manifest.metadata["label"] == [None] * 10 + ["new"] * 3
    assert (store.samples, after.samples) == (10, 13)  # one object is one state of the store
    assert not store.is_current()
    assert after.is_current()
    require_equal(everything(after, slice(0, 10)), before)
    for checkpoint in range(2):
        expected = some_rows(3, 7 + checkpoint)
        found = after.take(checkpoint, [12, 3, 10, 11])
        np.testing.assert_array_equal(found.direction[[2, 3, 0]], expected.direction)
        np.testing.assert_array_equal(found.norm[1], before[f"{checkpoint}/norm"][3])
        np.testing.assert_array_equal(after.rows(checkpoint, 11, 13).loss, expected.loss[1:])
    assert list(after.blocks()) == [(0, 4), (4, 8), (8, 10), (10, 12), (12, 13)]
    assert {report.problem for report in verify(after)} == {None}
    assert grown(after, ["a", "b", "c"]).samples == 13  # added once


@pytest.mark.parametrize("nbytes", [1, 100])
def test_tiles_reach_over_shards_and_parts(store: Store, nbytes: int) -> None:
    store = delete(grown(store, ["a", "b", "c"]), ["s1", "s6", "a"])
    scratch, samples = store.scratch(nbytes), np.arange(store.samples)
    # The last case: the first sample of one part and the second of another.
    for some in (samples, samples[2:], samples[::2], samples[-2:], samples[[0, 8]]):
        found = [tile.copy() for tile in store.tiles(1, some, scratch)]
        np.testing.assert_array_equal(np.concatenate(found), store.take(1, some).direction)


def test_an_unfinished_part_or_a_known_id_is_not_added(store: Store) -> None:
    names = Manifest(["a"], ["1"])
    part_spec = PartSpec(
        path=part_path(store, names), layout=LayoutSpec.of(Layout(1, 2, 6, "float16", 1, 1))
    )
    part = open_part(store, part_spec, names)
    with pytest.raises(UnsealedError):
        add_parts(store, [part])
    with pytest.raises(StoreError, match="holds sample 's3' already"):
        grown(store, ["x", "s3"])
    assert open_store(store.path).samples == 10


def test_the_same_samples_come_back_after_they_were_deleted(tmp_path: Path) -> None:
    store = grown(filled(tmp_path / "s.gradstore"), ["a", "b"])
    old = everything(store, slice(10, 12))
    store = grown(delete(store, ["a", "b"]), ["a", "b"], seed=8)
    assert list(store.manifest.ids[10:]) == ["a", "b"]
    new = everything(store, slice(10, 12))
    assert any((old[name] != new[name]).any() for name in old)
    clean = vacuum(store)
    require_equal(everything(clean, slice(10, 12)), new)
    assert {report.problem for report in verify(clean)} == {None}


def test_a_part_is_not_put_where_one_is_to_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vacuum is killed after it replaced the root; then the same samples are appended."""
    store = delete(grown(filled(tmp_path / "s.gradstore"), ["a", "b"]), ["a", "b"])
    with monkeypatch.context() as patch:

        def cut(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(LocalObjects, "remove_all", cut)
        with pytest.raises(KeyboardInterrupt):
            vacuum(store)
    assert open_store(store.path).spec.retired
    store = grown(open_store(store.path), ["a", "b"])
    new = everything(store)
    require_equal(everything(vacuum(store)), new)


def test_seals_of_another_kind_do_not_count(tmp_path: Path) -> None:
    store = filled(tmp_path / "s.gradstore")
    (part,) = store.parts
    unseal_unfit(part, 1)
    assert part.missing(1) == []
    other = Part(part.objects, part.spec, {**part.fingerprints, 1: "0" * 32})
    write_shard(other, 1, 1, rows(1))
    unseal_unfit(part, 1)
    assert part.missing(1) == [1]
    (store.path / part.array_key(1, "columns", 0)).unlink()
    with (store.path / part.array_key(1, "direction", 2)).open("ab") as file:
        file.write(b"x")
    (store.path / part.seal_key(1, 7)).write_text("{}")
    unseal_unfit(part, 1)
    assert part.missing(1) == [0, 1, 2]
    assert part.sealed(1) == set()
    assert part.missing(0) == []


def test_a_part_is_not_added_when_the_checkpoints_changed_meanwhile(tmp_path: Path) -> None:
    store = filled(tmp_path / "s.gradstore")
    names = Manifest(["a"], ["1"])
    layout = LayoutSpec.of(Layout(1, 2, 6, "float16", 1, 1))
    part = open_part(store, PartSpec(path=part_path(store, names), layout=layout), names)
    for number in store.numbers:
        write_shard(part, number, 0, some_rows(1, number))
    drop_checkpoint(store, 0)
    with pytest.raises(StoreError, match="checkpoints of .* were changed by another process"):
        add_parts(store, [part])


def test_a_begun_part_is_gone_on_with_as_it_was_begun(store: Store) -> None:
    names = Manifest(["a", "b", "c"], ["1"] * 3)

    def begun(shard: int, **made_by: Any) -> Part:
        layout = LayoutSpec.of(Layout(3, 2, 6, "float16", 1, shard))
        spec = PartSpec(path=part_path(store, names), layout=layout, made_by=made_by)
        return open_part(store, spec, names)

    first = begun(2, engine="loop")
    write_shard(first, 0, 0, some_rows(2, 1))
    second = begun(3, engine="vmap")
    assert second.layout == first.layout
    assert second.spec == first.spec
    assert second.missing(0) == [1]


def test_samples_are_taken_by_number(tmp_path: Path) -> None:
    store = filled(tmp_path / "s.gradstore")
    for wrong in (np.ones(10, bool), np.array([0.5])):
        with pytest.raises(StoreError, match="are given by number, not as"):
            store.take(0, wrong)
