"""A store grown by samples or a checkpoint equals a store collected at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradstore import delete, drop_checkpoint, open_store, vacuum
from gradstore.collect import (
    EventSpec,
    InProcess,
    ProjectorSpec,
    Samples,
    add_checkpoint,
    append,
    collect,
    repair,
)
from gradstore.collect.grow import append_config
from gradstore.collect.pipeline.run import collect_config, run
from gradstore.errors import ConfigError, DatasetError, StoreError
from gradstore.flags.collect import CollectConfig
from gradstore.flags.dataset import DatasetSpec
from gradstore.store.changes.checkpoints import begin_checkpoint
from gradstore.store.format.rows import ARRAYS
from gradstore.store.reader import Store
from gradstore.store.verify import verify
from query import collect_queries
from tests.support.collected import PAPER
from tests.support.worlds import NAMES, World, images, save_checkpoint

SMALL: dict[str, Any] = {
    **PAPER,
    "projector": ProjectorSpec(proj_dim=64, proj_seed=3),
    "shard_samples": 2,
    "engine": "streaming",
}
PLANNED = EventSpec(events="planned", timesteps=2, event_seed=5)


def require_equal(found: Store, expected: Store) -> None:
    assert list(found.manifest.ids) == list(expected.manifest.ids)
    assert found.etas == pytest.approx(expected.etas)
    assert found.spec.fingerprint == expected.spec.fingerprint
    for checkpoint in range(expected.checkpoints):
        for name in ARRAYS:
            np.testing.assert_allclose(
                getattr(found.rows(checkpoint), name).astype(np.float64),
                getattr(expected.rows(checkpoint), name).astype(np.float64),
                rtol=1e-5,
                atol=2e-3 if name == "direction" else 1e-6,
            )


def part_of(world: World, rows: range) -> Samples:
    return world.train.only([NAMES[row] for row in rows])


@pytest.mark.parametrize("events", ["replayed", PLANNED])
def test_an_appended_store_is_the_store_of_all(world: World, tmp_path: Path, events: Any) -> None:
    options = {**SMALL, "events": events}
    whole = collect(world.train, world.checkpoints, tmp_path / "whole.gradstore", **options)
    store = collect(
        part_of(world, range(4)), world.checkpoints, tmp_path / "grown.gradstore", **options
    )
    after = append(part_of(world, range(4, 7)), store, shard_samples=2)
    require_equal(after, whole)
    assert after.spec.parts[1].made_by["engine"] == "streaming"
    again = append(part_of(world, range(4, 7)), after)
    assert again.root == after.root
    assert append(part_of(world, range(4, 7)), after).samples == 7
    with pytest.raises(StoreError, match=f"holds sample '{NAMES[3]}' already"):
        append(part_of(world, range(3, 5)), store)


class _Killed(BaseException):
    pass


class _Dies(InProcess):
    def run(self, tasks: Any, work: Any) -> None:
        for task in tasks[:2]:
            work(task)
        raise _Killed


def test_an_append_that_was_killed_goes_on(world: World, tmp_path: Path) -> None:
    store = collect(part_of(world, range(3)), world.checkpoints, tmp_path / "a.gradstore", **SMALL)
    more = part_of(world, range(3, 7))
    with pytest.raises(_Killed):
        append(more, store, executor=_Dies(), shard_samples=2)
    assert open_store(store.path).samples == 3  # still searchable in its old state
    open_store(store.path).require_complete()
    (pending,) = (store.path / "parts").iterdir()
    sealed = {file: file.stat().st_mtime_ns for file in pending.glob("seals/*/*")}
    assert len(sealed) == 2
    after = append(more, store, shard_samples=3)  # resumes with the original size
    assert after.samples == 7
    assert after.spec.parts[1].layout.shard_samples == 2
    assert {report.problem for report in verify(after)} == {None}
    assert {file: file.stat().st_mtime_ns for file in sealed} == sealed


def test_replayed_events_of_strangers_do_not_exist(world: World, tmp_path: Path) -> None:
    store = collect(world.train, world.checkpoints, tmp_path / "a.gradstore", **SMALL)
    strangers = Samples(images(2, seed=9), ids=["x", "y"])
    with pytest.raises(DatasetError, match="sample 'x' has no event"):
        append(strangers, store)


def test_a_deleted_sample_stays_deleted(world: World, tmp_path: Path) -> None:
    path = tmp_path / "a.gradstore"
    store = collect(world.train, world.checkpoints, path, **SMALL)
    hidden = delete(store, [NAMES[2]])
    again = collect(world.train, world.checkpoints, path, **SMALL)
    assert again.root == hidden.root
    vacuum(hidden)
    with pytest.raises(DatasetError, match="had 6 samples and now has 7"):
        collect(world.train, world.checkpoints, path, **SMALL)


@pytest.mark.parametrize("events", ["replayed", PLANNED])
def test_a_checkpoint_more_or_less(world: World, tmp_path: Path, events: Any) -> None:
    options = {**SMALL, "events": events}
    third = save_checkpoint(tmp_path / "epoch-03", epoch=3, learning_rate_sum=0.9)
    all_three = [*world.checkpoints, third]
    whole = collect(world.train, all_three, tmp_path / "whole.gradstore", **options)
    path = tmp_path / "grown.gradstore"
    store = collect(part_of(world, range(4)), world.checkpoints, path, **options)
    store = append(part_of(world, range(4, 7)), store)
    datasets = [part_of(world, range(4)), part_of(world, range(4, 7))]
    after = add_checkpoint(store, third, datasets=datasets)
    require_equal(after, whole)
    assert {report.problem for report in verify(after)} == {None}
    with pytest.raises(StoreError, match="already"):
        add_checkpoint(after, third, datasets=datasets)
    begin_checkpoint(after, 3, "w")  # like an interrupted run
    vacuum(after)
    assert sorted(p.name for p in path.glob("**/checkpoints/[0-9]*")) == [
        "0",
        "0",
        "1",
        "1",
        "2",
        "2",
    ]

    # Without the middle one: the next one gets its weight; its number is not reused.
    less = drop_checkpoint(after, 1)
    assert less.numbers == [0, 2]
    assert less.etas == pytest.approx([0.1, 0.8])
    for checkpoint, place in ((0, 0), (1, 2)):
        np.testing.assert_array_equal(less.rows(checkpoint).direction, after.rows(place).direction)
    # The checkpoints' numbers determine the projection of queries.
    asked = collect_queries(less, world.train, tmp_path / "q.gradstore", events=PLANNED)
    of_all = collect_queries(after, world.train, tmp_path / "qa.gradstore", events=PLANNED)
    assert asked.numbers == [0, 2]
    np.testing.assert_array_equal(asked.rows(1).direction, of_all.rows(2).direction)


def test_a_checkpoint_that_is_not_later_is_refused(world: World, tmp_path: Path) -> None:
    store = collect(world.train, world.checkpoints[1:], tmp_path / "a.gradstore", **SMALL)
    with pytest.raises(ConfigError, match="not trained further"):
        add_checkpoint(store, world.checkpoints[0], datasets=[world.train])
    weighed = add_checkpoint(store, world.checkpoints[0], datasets=[world.train], eta=0.2)
    assert weighed.etas == pytest.approx([0.4, 0.2])


def test_a_checkpoint_takes_nothing_from_one_that_was_dropped(world: World, tmp_path: Path) -> None:
    store = collect(world.train, world.checkpoints, tmp_path / "a.gradstore", **SMALL)
    third = save_checkpoint(tmp_path / "epoch-03", epoch=3, learning_rate_sum=0.9)
    old = store.rows(1).norm
    after = add_checkpoint(drop_checkpoint(store, 1), third, datasets=[world.train])
    assert after.numbers == [0, 2]
    new = after.rows(1)
    assert (new.norm != old).any()
    clean = vacuum(after)
    np.testing.assert_array_equal(clean.rows(1).direction, new.direction)
    assert {report.problem for report in verify(clean)} == {None}


def test_two_checkpoints_added_at_once_do_not_mix(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = collect(world.train, world.checkpoints, tmp_path / "a.gradstore", **SMALL)
    mine, theirs = (
        save_checkpoint(tmp_path / f"epoch-0{epoch}", epoch=epoch, learning_rate_sum=epoch)
        for epoch in (3, 4)
    )
    whole = collect(world.train, [*world.checkpoints, mine], tmp_path / "b.gradstore", **SMALL)
    first = iter([True])

    def run_after(job: Any, executor: Any) -> Any:
        if next(first, False):  # another process starts first and does all of it
            with pytest.raises(_Killed):
                run(job, _Dies())
            add_checkpoint(store, theirs, datasets=[world.train])
        return run(job, executor)

    monkeypatch.setattr("gradstore.collect.grow.run", run_after)
    with pytest.raises(StoreError, match="was changed by another process"):
        add_checkpoint(store, mine, datasets=[world.train])
    after = open_store(store.path)
    assert after.numbers == [0, 1, 3]
    assert {report.problem for report in verify(after)} == {None}
    back = add_checkpoint(drop_checkpoint(after, 2), mine, datasets=[world.train])
    assert back.numbers == [0, 1, 4]
    np.testing.assert_array_equal(back.rows(2).norm, whole.rows(2).norm)


def test_other_images_under_the_same_ids_are_refused(world: World, tmp_path: Path) -> None:
    store = collect(world.train, world.checkpoints, tmp_path / "a.gradstore", **SMALL)
    third = save_checkpoint(tmp_path / "epoch-03", epoch=3, learning_rate_sum=0.9)
    strange = Samples(images(len(NAMES), seed=99), ids=NAMES)
    with pytest.raises(DatasetError, match="the content of sample .* differs"):
        add_checkpoint(store, third, datasets=[strange])


@pytest.fixture
def folder_store(world: World, image_folder: Path, tmp_path: Path) -> Store:
    config = CollectConfig(
        dataset=str(image_folder),
        checkpoints=[str(folder) for folder in world.checkpoints],
        store=str(tmp_path / "f.gradstore"),
        proj_dim=32,
        events="planned",
        timesteps=2,
        loss="l1",
        shard_samples=2,
    )
    return collect_config(config)


def test_growing_by_what_a_store_records(folder_store: Store, world: World, tmp_path: Path) -> None:
    more = tmp_path / "more" / "bird"
    more.mkdir(parents=True)
    for number, image in enumerate(images(3, seed=4)):
        image.save(more / f"{number}.png")
    before = [folder_store.rows(k).direction for k in range(2)]
    after, whole = append_config(folder_store, DatasetSpec(dataset=str(more.parent)))
    assert whole
    assert after.samples == 9
    assert list(after.manifest.metadata["label"])[6:] == ["bird"] * 3
    for checkpoint in range(2):
        np.testing.assert_array_equal(after.rows(checkpoint, 0, 6).direction, before[checkpoint])
    third = save_checkpoint(tmp_path / "epoch-03", epoch=3, learning_rate_sum=0.9)
    assert add_checkpoint(after, third).etas == pytest.approx([0.1, 0.3, 0.5])


def test_a_store_made_from_python_is_repaired_from_its_dataset(
    world: World, tmp_path: Path
) -> None:
    store = collect(world.train, world.checkpoints, tmp_path / "a.gradstore", **SMALL)
    whole, (part,) = store.rows(1), store.parts
    file = store.path / part.array_key(1, "columns", 2)
    file.write_bytes(file.read_bytes()[:-1])
    others = {
        seal: seal.stat().st_mtime_ns
        for seal in store.path.glob("seals/*/*")
        if seal != store.path / part.seal_key(1, 2)
    }
    reports = [report for report in verify(store) if report.problem]
    with pytest.raises(ConfigError, match="repair of gradstore.collect with the dataset"):
        repair(store, reports)
    assert part.missing(1) == []  # no removal before all is ready
    repair(store, reports, datasets=[world.train])
    assert {report.problem for report in verify(store)} == {None}
    assert {seal: seal.stat().st_mtime_ns for seal in others} == others
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(store.rows(1), name), getattr(whole, name))


def test_every_part_is_repaired_from_its_own_dataset(folder_store: Store, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    for number, image in enumerate(images(3, seed=4)):
        image.save(more / f"{number}.png")
    store, _ = append_config(folder_store, DatasetSpec(dataset=str(more)))
    store = vacuum(delete(store, [store.manifest.ids[1]]))  # a part smaller than its dataset
    whole = [store.rows(k) for k in range(2)]
    for part in store.parts:
        file = store.path / part.array_key(1, "direction", 0)
        file.write_bytes(file.read_bytes()[:-1])
    reports = [report for report in verify(store) if report.problem]
    assert len(reports) == 2
    repair(store, reports)
    assert {report.problem for report in verify(store)} == {None}
    for checkpoint, rows in enumerate(whole):
        np.testing.assert_array_equal(store.rows(checkpoint).direction, rows.direction)


def test_a_part_from_python_leaves_the_others_their_dataset(
    folder_store: Store, tmp_path: Path
) -> None:
    store = append(Samples(images(2, seed=4), ids=["x", "y"]), folder_store)
    file = store.path / store.parts[0].array_key(1, "columns", 0)
    file.write_bytes(file.read_bytes()[:-1])
    repair(store, [report for report in verify(store) if report.problem])
    assert {report.problem for report in verify(store)} == {None}
    more = tmp_path / "more"
    more.mkdir()
    images(1, seed=5)[0].save(more / "one.png")
    after, whole = append_config(store, DatasetSpec(dataset=str(more)))
    assert whole
    assert after.samples == store.samples + 1
