"""Changes of an existing store: each happens completely or not at all, and touches no more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradstore import delete, drop_checkpoint, merge, open_store, vacuum
from gradstore.errors import StoreError
from gradstore.store.objects.local import LocalObjects
from gradstore.store.objects.protocol import ChangedError, digest
from gradstore.store.reader import Store
from gradstore.store.writer import create, write_shard
from indexer import build_index, open_index
from tests.support.written_stores import (
    edit_root,
    everything,
    filled,
    grown,
    manifest,
    other_store,
    require_equal,
    rows,
    spec,
)


class KilledError(BaseException):
    """The process died."""


class Dying(LocalObjects):
    """Objects of a process that dies at its n-th disk change."""

    left = 0

    def _step(self) -> None:
        Dying.left -= 1
        if Dying.left < 0:
            raise KilledError

    def write(self, key: str, content: bytes | bytearray) -> None:
        self._step()
        super().write(key, content)

    def create(self, prefix: str, contents: Any) -> None:
        self._step()
        super().create(prefix, contents)

    def remove(self, key: str) -> None:
        self._step()
        super().remove(key)

    def remove_all(self, prefix: str) -> None:
        self._step()
        super().remove_all(prefix)


def merged(store: Store) -> Store:
    """Merge a store of two parts: both are added or none."""
    path = store.path.with_name("other.gradstore")
    if not path.exists():
        grown(other_store(path, ["p", "q", "r"]), ["u", "v"])
    return merge(store, open_store(path))


CHANGES: dict[str, Any] = {
    "merge": merged,
    "delete": lambda store: delete(store, ["s3", "a"]),
    "append": lambda store: grown(store, ["x", "y", "z"]),
    "vacuum": vacuum,
    "drop": lambda store: drop_checkpoint(store, 0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_killed_anywhere_a_change_has_happened_or_has_not(name: str, tmp_path: Path) -> None:
    change = CHANGES[name]

    def begin(path: Path) -> Store:
        return delete(grown(filled(path), ["a", "b"]), ["s5", "b"])

    start = begin(tmp_path / "before.gradstore")
    before = everything(start)
    after = everything(change(begin(tmp_path / "after.gradstore")))
    for steps in range(100):
        path = tmp_path / f"{steps}.gradstore"
        shutil.copytree(start.path, path)
        Dying.left = steps
        try:
            change(open_store(Dying(path)))
        except KilledError:
            found = everything(open_store(path))
            as_before = all(
                found.get(key) is not None and np.array_equal(found[key], before[key])
                for key in before
            )
            require_equal(found, before if as_before else after)
            if not as_before and name in {"delete", "drop", "merge"}:
                continue  # complete; vacuum removes the rest
            require_equal(everything(change(open_store(path))), after)
            continue
        require_equal(everything(open_store(path)), after)
        break
    else:
        pytest.fail("it never came to an end")
    assert steps > 0


def test_two_who_change_at_once_both_succeed(store: Store, monkeypatch: Any) -> None:
    first = iter([True])
    real = LocalObjects.replace

    def replace(self: LocalObjects, key: str, content: bytes, *, seen: bytes) -> None:
        if next(first, False):
            delete(open_store(store.path), ["s1"])  # another process, just before
        real(self, key, content, seen=seen)

    monkeypatch.setattr(LocalObjects, "replace", replace)
    after = delete(store, ["s2"])
    assert {"s1", "s2"}.isdisjoint(after.manifest.ids)
    assert after.samples == 8


def test_a_store_that_changes_all_the_time_is_given_up(store: Store, monkeypatch: Any) -> None:
    def replace(*_: Any, **__: Any) -> None:
        raise ChangedError

    monkeypatch.setattr(LocalObjects, "replace", replace)
    with pytest.raises(StoreError, match="changed by other processes 5 times"):
        delete(store, ["s2"])


def test_the_hash_of_samples_changes_with_them_alone(store: Store) -> None:
    names = store.manifest
    plain = json.dumps([list(names.ids), list(names.digests)]).encode()
    assert store.samples_hash == digest(plain) == open_store(store.path).spec.samples_hash
    seen = [store.samples_hash]
    changes: list[Callable[[Store], Store]] = [
        lambda now: grown(now, ["a", "b"]),
        lambda now: delete(now, ["s1"]),
        lambda now: merge(now, other_store(now.path.with_name("o.gradstore"), ["x"])),
    ]
    for change in changes:
        store = change(store)
        assert store.samples_hash == store.spec.samples_hash
        seen.append(store.samples_hash)
    assert len(set(seen)) == 4
    assert vacuum(store).samples_hash == seen[-1]
    assert drop_checkpoint(store, 0).samples_hash == seen[-1]


def test_an_older_store_gets_the_hash_of_samples_that_its_artifacts_have(store: Store) -> None:
    path = build_index(delete(store, ["s1"]), "retrac").path
    kept = json.loads((path / "index.json").read_text())
    edit_root(store.path, lambda root: root.pop("samples_hash"))
    older = open_store(store.path)
    assert older.spec.samples_hash is None
    kept["samples"] = older.samples_hash
    (path / "index.json").write_text(json.dumps(kept))
    assert open_index(path, older, "retrac").spec.count == 9
    after = vacuum(older)
    assert after.spec.samples_hash == older.samples_hash
    assert open_index(path, after, "retrac").spec.count == 9


def test_skipped_samples_have_a_hash_of_their_own(tmp_path: Path) -> None:
    made = create(tmp_path / "s.gradstore", spec(), manifest())
    for number in made.numbers:
        write_shard(made.parts[0], number, 1, rows(1))
    some = open_store(made.path, skip_unsealed=True)
    assert (some.samples, some.samples_hash) == (4, some.manifest.hash())
    assert some.samples_hash != made.samples_hash
