"""Vacuum removes what does not belong to a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradstore import delete, open_store, vacuum
from gradstore.errors import StoreError, UnsealedError
from gradstore.store.changes.append import add_parts, open_part, part_path
from gradstore.store.format.layout import Layout
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.spec import LayoutSpec, PartSpec
from gradstore.store.objects.local import LocalObjects
from gradstore.store.reader import Store
from gradstore.store.verify import verify
from gradstore.store.writer import unseal, write_arrays, write_shard
from tests.support.written_stores import (
    contains,
    everything,
    filled,
    grown,
    require_equal,
    some_rows,
)


def test_vacuum_leaves_nothing_of_what_was_deleted(store: Store) -> None:
    person = "person-3141592653589793"  # long enough to appear verbatim in a file
    store = grown(store, [person, "b", "c"])
    secret = store.rows(0, 4, 5).direction.tobytes()
    assert contains(store.path, secret)
    assert contains(store.path, person.encode())
    hidden = delete(store, ["s4", person, "b", "c"])
    assert contains(store.path, secret)
    expected, names = everything(hidden), hidden.manifest
    clean = vacuum(hidden)
    require_equal(everything(clean), expected)
    assert clean.manifest == names
    assert not contains(store.path, secret)
    assert not contains(store.path, person.encode())
    assert len(clean.parts) == 1  # nothing of the other remains
    assert len(clean.deletions) == 0
    assert clean.spec.retired == []
    assert {report.problem for report in verify(clean)} == {None}
    assert vacuum(clean).root == clean.root
    require_equal(everything(grown(clean, ["s4"]), slice(0, 9)), expected)


def test_vacuum_needs_a_whole_store(store: Store) -> None:
    after = delete(store, ["s4"])
    unseal(after.parts[0], 1, 2)
    with pytest.raises(UnsealedError):
        vacuum(after)


def half_removed(objects: LocalObjects, prefix: str) -> None:
    """`remove_all` of a process that dies after the first file of each folder of arrays."""
    for number in ("0", "1"):
        for name in ("direction", "columns"):
            files = list((objects.root / prefix / "checkpoints" / number / name).glob("c.*"))
            for file in files[:1]:
                file.unlink()
    raise KeyboardInterrupt


def test_a_removal_that_is_cut_off_leaves_no_seal_to_be_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "s.gradstore")
    names = Manifest(["a"], ["1"])
    layout = LayoutSpec.of(Layout(1, 2, 6, "float16", 1, 1))
    begun = PartSpec(path=part_path(store, names), layout=layout)
    part = open_part(store, begun, names)
    for number in store.numbers:
        write_shard(part, number, 0, some_rows(1, number))
    with monkeypatch.context() as patch:
        patch.setattr(LocalObjects, "remove_all", half_removed)
        with pytest.raises(KeyboardInterrupt):
            vacuum(store)
    now = open_store(store.path)
    assert begun.path in now.spec.retired
    assert part_path(now, names) != begun.path
    with pytest.raises(StoreError, match="was vacuumed"):
        add_parts(store, [part])
    assert vacuum(now).spec.retired == []
    assert not (store.path / begun.path).exists()
    with pytest.raises(StoreError, match="was vacuumed"):
        add_parts(store, [part])


def interrupted(monkeypatch: pytest.MonkeyPatch, name: str, first: Any) -> None:
    """Run `first` before the next call of a method of `LocalObjects`."""
    real, once = getattr(LocalObjects, name), iter([True])

    def method(*args: Any, **named: Any) -> Any:
        if next(once, False):
            first()
        return real(*args, **named)

    monkeypatch.setattr(LocalObjects, name, method)


@pytest.mark.parametrize("at", ["sizes", "replace", "remove"])
def test_deleting_while_vacuum_runs(store: Store, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    delete(store, ["s1"])
    interrupted(monkeypatch, at, lambda: delete(open_store(store.path), ["s2"]))
    try:
        vacuum(store)
    except StoreError as error:
        assert "changed by another process" in str(error)  # noqa: PT017, an error is optional
    now = open_store(store.path)
    assert {"s1", "s2"}.isdisjoint(now.manifest.ids)
    assert now.samples == 8
    expected = everything(now)
    require_equal(everything(vacuum(now)), expected)


@pytest.mark.parametrize("at", ["write", "replace", "flush"])
def test_vacuum_while_deleting(store: Store, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    delete(store, ["s1"])
    interrupted(monkeypatch, at, lambda: vacuum(open_store(store.path)))
    now = delete(store, ["s2"])
    assert now.samples == 8
    assert {report.problem for report in verify(now)} == {None}
    expected = everything(now)
    require_equal(everything(vacuum(now)), expected)


@pytest.mark.parametrize("at", ["write", "create", "replace", "names"])
def test_two_vacuums_at_once(store: Store, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = delete(grown(store, ["a", "b"]), ["s1", "a"])
    expected = everything(store)
    interrupted(monkeypatch, at, lambda: vacuum(open_store(store.path)))
    try:
        vacuum(store)
    except StoreError as error:
        assert "another process" in str(error) or "lacks" in str(error)  # noqa: PT017
    now = vacuum(open_store(store.path))
    require_equal(everything(now), expected)
    assert {report.problem for report in verify(now)} == {None}


def test_vacuum_leaves_what_is_not_its_own_and_takes_what_writers_left(store: Store) -> None:
    store = grown(store, ["a"])
    mine = [
        store.path / "parts" / ".DS_Store",
        store.path / "checkpoints" / "notes.txt",
        store.path / "checkpoints" / "0" / ".nfs0001",
    ]
    left = [
        store.path / "checkpoints" / "0" / "columns" / f".c.0.0.0.{'0' * 32}",
        store.path / "parts" / f".{'1' * 32}.building-{'2' * 32}" / "zarr.json",
    ]
    for file in (*mine, *left):
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")
    vacuum(delete(store, ["s1"]))
    assert not any(file.exists() for file in left)
    assert [file.exists() for file in mine] == [True, False, False]  # removed with their part
    vacuum(open_store(store.path))


def test_vacuum_seals_nothing_anew_that_verify_would_find(store: Store) -> None:
    part = store.parts[0]
    arrays = part.read(0, 0, 4)
    other = {**arrays, "norm": arrays["norm"] + 1}
    seal = (store.path / part.seal_key(0, 0)).read_bytes()
    write_arrays(part, 0, 0, other)  # well-formed, but different from the sealed data
    (store.path / part.seal_key(0, 0)).write_bytes(seal)
    before = delete(store, ["s9"])
    with pytest.raises(StoreError, match="columns differs from its seal"):
        vacuum(before)
    assert open_store(store.path).samples == 9
