"""Stores are merged."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradstore import delete, merge
from gradstore.errors import FingerprintError, StoreError
from gradstore.store.format.fingerprint import fingerprint
from gradstore.store.format.spec import CheckpointSpec, Identity
from gradstore.store.reader import Store
from gradstore.store.verify import verify
from tests.support.written_stores import (
    IDENTITY,
    contains,
    everything,
    manifest,
    other_store,
    require_equal,
)


def test_stores_of_one_fingerprint_merge(store: Store, tmp_path: Path) -> None:
    other = delete(other_store(tmp_path / "o.gradstore", ["p", "q", "r", "t"]), ["q"])
    taken = everything(other)
    before = everything(store)
    after = merge(store, other)
    assert list(after.manifest.ids) == [*manifest().ids, "p", "r", "t"]
    require_equal(everything(after, slice(0, 10)), before)
    require_equal(everything(after, slice(10, 13)), taken)
    assert not contains(store.path, b'"q"')
    assert {report.problem for report in verify(after)} == {None}
    assert other.is_current()
    with pytest.raises(StoreError, match="holds sample 'p' already"):
        merge(after, other)


def test_what_does_not_fit_is_not_merged(store: Store, tmp_path: Path) -> None:
    identity: Identity = {**IDENTITY, "projector": {"name": "sjlt"}}
    strange = other_store(
        tmp_path / "a.gradstore", ["p"], identity=identity, fingerprint=fingerprint(identity)
    )
    with pytest.raises(FingerprintError, match=r"projector\.name"):
        merge(store, strange)
    checkpoints = [CheckpointSpec(path="a", eta=9, number=k) for k in range(2)]
    with pytest.raises(FingerprintError, match="checkpoint weights"):
        merge(store, other_store(tmp_path / "b.gradstore", ["p"], checkpoints=checkpoints))
    assert store.is_current()
