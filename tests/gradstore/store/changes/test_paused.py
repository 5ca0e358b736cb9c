"""Every change may be stopped at every step, go on much later, and lose nothing of the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Semaphore, Thread
from typing import Any

import pytest

from gradstore import delete, drop_checkpoint, open_store, vacuum
from gradstore.errors import GradstoreError, StoreError
from gradstore.store.changes.append import open_part, part_path
from gradstore.store.changes.checkpoints import begin_checkpoint, commit_checkpoint, next_number
from gradstore.store.format.fingerprint import row_fingerprint
from gradstore.store.format.layout import Layout
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.root import ROOT
from gradstore.store.format.spec import CheckpointSpec, LayoutSpec, PartSpec
from gradstore.store.objects.local import LocalObjects
from gradstore.store.part import Part
from gradstore.store.reader import Store
from gradstore.store.verify import verify
from gradstore.store.writer import write_shard
from tests.support.written_stores import filled, grown, some_rows


class Stopping(LocalObjects):
    """Objects of a process that stops before its n-th use of the disk until it is continued."""

    def __init__(self, root: Path, after: int) -> None:
        super().__init__(root)
        self.left = after
        self.stopped = Semaphore(0)
        self.continued = Semaphore(0)

    def _step(self) -> None:
        self.left -= 1
        if self.left == -1:
            self.stopped.release()
            self.continued.acquire()


def _stepping(name: str) -> Any:
    real = getattr(LocalObjects, name)

    def method(self: Stopping, *args: Any, **named: Any) -> Any:
        if args[0] != ROOT or name == "replace":
            self._step()  # but not while it holds the lock of the root, which others wait for
        return real(self, *args, **named)

    return method


for _name in ("write", "create", "replace", "remove", "remove_all"):
    setattr(Stopping, _name, _stepping(_name))


def add_checkpoint(store: Store, weights: str = "c") -> Store:
    """The store with another checkpoint, like one by `gradstore.add_checkpoint`."""
    store = open_store(store.objects)
    number = next_number(store, weights)
    old: Any = store.spec.identity
    new = {"weights": weights, "number": number}
    identity = {**old, "checkpoints": [*old["checkpoints"], new]}
    prints = {number: row_fingerprint(identity, store.checkpoints)}
    begin_checkpoint(store, number, weights)
    parts = [Part(store.objects, part.spec, prints) for part in store.parts]
    for part in parts:
        for shard in set(range(part.layout.shards)) - part.sealed(number):
            low, high = part.layout.span(shard)
            write_shard(part, number, shard, some_rows(high - low, shard))
    spec = CheckpointSpec(path=weights, eta=1, number=number)
    return commit_checkpoint(store, parts, spec, identity)


CUT = ["x", "y"]


def cut_off_append(store: Store) -> None:
    names = Manifest(CUT, ["1"] * len(CUT), {"label": ["new"] * len(CUT)})
    layout = LayoutSpec.of(Layout(len(CUT), 2, 6, "float16", 1, 2))
    part = open_part(store, PartSpec(path=part_path(store, names), layout=layout), names)
    write_shard(part, 0, 0, some_rows(2, 7))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("plain") / "s.gradstore").path


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a deletion, a dropped checkpoint, and an append that was cut off."""
    store = filled(tmp_path_factory.mktemp("begun") / "s.gradstore")
    store = delete(grown(store, ["a", "b"]), ["s5"])
    store = drop_checkpoint(add_checkpoint(store, "old"), 2)
    cut_off_append(store)
    return store.path


Change = Callable[[Store], object]
CHANGES: dict[str, Change] = {
    "vacuum": vacuum,
    "append": lambda store: grown(store, ["p", "q"]),
    "append again": lambda store: grown(store, CUT),
    "delete": lambda store: delete(store, ["s1"]),
    "drop": lambda store: drop_checkpoint(store, 0),
    "add": add_checkpoint,
}
# What may happen while one process stands still: each by processes that run to their end.
MEANWHILE: list[list[str]] = [
    *([name] for name in CHANGES),
    ["vacuum", "append again"],
    ["vacuum", "add"],
    ["vacuum", "append", "delete"],
    ["drop", "vacuum", "add"],
]


def effect(name: str, ids: set[str], checkpoints: int) -> tuple[set[str], int]:
    """Samples and number of checkpoints after a change that succeeded."""
    more = {"append": {"p", "q"}, "append again": set(CUT)}.get(name, set())
    less = {"s1"} if name == "delete" else set()
    return (ids | more) - less, checkpoints + {"add": 1, "drop": -1}.get(name, 0)


def run(change: Change, objects: LocalObjects) -> bool:
    """Whether a change succeeded; it may also refuse."""
    try:
        change(open_store(objects))
    except GradstoreError:
        return False
    return True


def act(change: Change, objects: Stopping, done: list[bool]) -> None:
    done.append(run(change, objects))
    objects.stopped.release()


@pytest.mark.parametrize("meanwhile", MEANWHILE, ids=" then ".join)
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_stood_still_takes_nothing_from_the_others(
    begun: Path, name: str, meanwhile: list[str], tmp_path: Path
) -> None:
    require_nothing_lost(begun, name, meanwhile, tmp_path)


@pytest.mark.parametrize("name", ["append", "add"])
def test_what_a_vacuum_took_from_a_writer_that_stood_still_is_not_committed(
    plain: Path, name: str, tmp_path: Path
) -> None:
    """Where vacuum changes nothing else, by which the writer could know of it."""
    require_nothing_lost(plain, name, ["vacuum"], tmp_path)


def require_nothing_lost(begun: Path, name: str, meanwhile: list[str], tmp_path: Path) -> None:
    for after in range(100):
        path = Path(shutil.copytree(begun, tmp_path / f"{after}.gradstore"))
        start = open_store(path)
        ids, checkpoints = set(start.manifest.ids), start.checkpoints
        objects, done = Stopping(path, after), list[bool]()
        thread = Thread(target=act, args=(CHANGES[name], objects, done))
        thread.start()
        objects.stopped.acquire()
        came_to_its_end = bool(done)
        order = [other for other in meanwhile if run(CHANGES[other], LocalObjects(path))]
        objects.continued.release()
        thread.join()
        for one in [*order, *([name] if done[0] else [])]:
            ids, checkpoints = effect(one, ids, checkpoints)
        found = open_store(path)
        if name not in order:
            assert set(found.manifest.ids) == ids, (after, order, done)
            assert found.checkpoints == checkpoints, (after, order, done)
        assert {report.problem for report in verify(found)} == {None}, (after, order, done)
        assert run(vacuum, LocalObjects(path))  # and nothing is removed that is needed
        assert {report.problem for report in verify(open_store(path))} == {None}
        shutil.rmtree(path)
        if came_to_its_end:
            break
    else:
        pytest.fail("it never came to an end")
    assert after > 1


def test_a_name_is_never_used_twice(tmp_path: Path) -> None:
    store = filled(tmp_path / "s.gradstore")
    seen: set[str] = set()
    for _ in range(4):
        store = grown(store, CUT)
        path = store.spec.parts[-1].path
        assert path not in seen
        seen.add(path)
        store = vacuum(delete(store, CUT))
    numbers = []
    for _ in range(3):
        store = add_checkpoint(store)
        numbers.append(store.numbers[-1])
        store = vacuum(drop_checkpoint(store, 2))
    assert numbers == [2, 3, 4]


def test_a_link_below_a_store_leads_nobody_outside(begun: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(begun, tmp_path / "s.gradstore"))
    victim = tmp_path / "victim"
    shutil.copytree(path / "parts", victim)
    kept = {file: file.read_bytes() for file in victim.rglob("*") if file.is_file()}
    shutil.rmtree(path / "parts")
    (path / "parts").symlink_to(victim)
    with pytest.raises(StoreError, match="symbolic link"):
        vacuum(open_store(path))
    store = open_store(path)
    for use in (
        lambda: store.parts[1].manifest,
        lambda: store.parts[1].read(0, 0, 1),
        lambda: grown(store, ["new"]),
        lambda: list(verify(store)),
    ):
        with pytest.raises(StoreError, match="symbolic link"):
            use()
    assert {file: file.read_bytes() for file in victim.rglob("*") if file.is_file()} == kept


def test_links_in_place_of_objects_are_not_followed(begun: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(begun, tmp_path / "s.gradstore"))
    for name in ("checkpoints/0/columns/c.0.0.0", "seals/1/0.json", "samples/manifest.parquet"):
        outside = tmp_path / "outside"
        (path / name).replace(outside)
        (path / name).symlink_to(outside)
        reports = []
        try:
            reports = [report.problem for report in verify(open_store(path)) if report.problem]
        except StoreError as error:
            reports = [str(error)]
        assert any("symbolic link" in str(one) for one in reports), (name, reports)
        (path / name).unlink()
        outside.replace(path / name)
    assert json.loads((path / "zarr.json").read_text())
