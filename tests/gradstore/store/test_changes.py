"""Changes of an existing store: each happens completely or not at all, and touches no more."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradstore import delete, drop_checkpoint, merge, open_store, vacuum
from gradstore.errors import FingerprintError, StoreError, UnsealedError
from gradstore.store.changes.append import add_parts, open_part, part_path
from gradstore.store.changes.checkpoints import begin_checkpoint, next_number
from gradstore.store.format.deletions import Deletions
from gradstore.store.format.fingerprint import fingerprint
from gradstore.store.format.layout import Layout
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.rows import ARRAYS
from gradstore.store.format.spec import CheckpointSpec, Identity, LayoutSpec, PartSpec
from gradstore.store.objects.local import LocalObjects
from gradstore.store.objects.protocol import ChangedError, digest
from gradstore.store.part import Part
from gradstore.store.reader import Store
from gradstore.store.verify import unseal_unfit, verify
from gradstore.store.writer import unseal, write_arrays, write_shard
from tests.support.written_stores import (
    IDENTITY,
    everything,
    filled,
    grown,
    manifest,
    other_store,
    require_equal,
    rows,
    some_rows,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path / "s.gradstore")


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


def contains(folder: Path, content: bytes) -> list[str]:
    return [str(p) for p in folder.rglob("*") if p.is_file() and content in p.read_bytes()]


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


def test_a_dropped_checkpoint(store: Store) -> None:
    before = everything(store)
    after = drop_checkpoint(store, 0)
    assert after.numbers == [1]
    assert after.etas == [1]
    assert after.spec.fingerprint != store.spec.fingerprint
    require_equal(everything(after), {f"0/{name}": before[f"1/{name}"] for name in ARRAYS})
    assert {report.problem for report in verify(after)} == {None}
    assert (store.path / "checkpoints/0").exists()
    vacuum(after)
    assert not (store.path / "checkpoints/0").exists()
    assert not (store.path / "seals/0").exists()
    require_equal(
        everything(open_store(store.path)), {f"0/{name}": before[f"1/{name}"] for name in ARRAYS}
    )
    with pytest.raises(StoreError, match="only this checkpoint"):
        drop_checkpoint(after, 0)
    with pytest.raises(StoreError, match="no 7"):
        drop_checkpoint(after, 7)


def test_the_weights_of_those_that_stay(tmp_path: Path) -> None:
    """As without the dropped one: η is the difference of learning rate sums."""
    checkpoints = [
        CheckpointSpec(path=str(k), eta=eta, learning_rate_sum=total, number=k)
        for k, (eta, total) in enumerate([(0.5, 0.5), (0.25, 0.75)])
    ]
    made = other_store(tmp_path / "a.gradstore", ["p"], checkpoints=checkpoints)
    assert drop_checkpoint(made, 0).etas == [0.75]


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


def test_a_dropped_checkpoint_s_number_is_not_given_again_before_vacuum(tmp_path: Path) -> None:
    store = drop_checkpoint(filled(tmp_path / "s.gradstore"), 1)
    assert next_number(store, "w") == 2
    assert next_number(vacuum(store), "w") == 1


def test_a_checkpoint_s_number_is_of_its_weights(store: Store) -> None:
    """Two processes add different checkpoints at once, or one was killed."""
    store = grown(store, ["a", "b"])
    begin_checkpoint(store, next_number(store, "w"), "w")
    assert next_number(store, "w") == 2  # resumes
    assert next_number(store, "v") == 3
    with pytest.raises(StoreError, match="another process has begun another checkpoint"):
        begin_checkpoint(store, 2, "v")
    assert next_number(vacuum(store), "v") == 2


def test_seals_of_another_kind_do_not_count(tmp_path: Path) -> None:
    store = filled(tmp_path / "s.gradstore")
    (part,) = store.parts
    unseal_unfit(part, 1)
    assert part.missing(1) == []
    other = Part(part.objects, part.spec, {**part.fingerprints, 1: "0" * 32})
    write_shard(other, 1, 1, rows(1))
    unseal_unfit(part, 1)
    assert part.missing(1) == [1]
    (store.path / part.array_key(1, "norm", 0)).unlink()
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


def half_removed(objects: LocalObjects, prefix: str) -> None:
    """`remove_all` of a process that dies after the first file of each folder of arrays."""
    for number in ("0", "1"):
        for name in ("direction", "norm"):
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
    with pytest.raises(StoreError, match="just being removed by vacuum"):
        add_parts(store, [part])
    assert vacuum(now).spec.retired == []
    assert not (store.path / begun.path).exists()
    with pytest.raises(UnsealedError, match="lacks 1 of 1"):
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
        store.path / "checkpoints" / "0" / "norm" / f".c.0.0.{'0' * 32}",
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
    with pytest.raises(StoreError, match="norm differs from its seal"):
        vacuum(before)
    assert open_store(store.path).samples == 9


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
    with pytest.raises(StoreError, match="was changed since it was opened"):
        old.rows(0)


def test_samples_are_taken_by_number(tmp_path: Path) -> None:
    store = filled(tmp_path / "s.gradstore")
    for wrong in (np.ones(10, bool), np.array([0.5])):
        with pytest.raises(StoreError, match="are given by number, not as"):
            store.take(0, wrong)
