"""The arithmetic of rows is recorded but not compared, because machines differ in speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import sleep, thread_time
from typing import Any

import numpy as np
import pytest
import torch

from gradstore import arithmetic, merge
from gradstore.arithmetic import precision_of, product_rates, seconds_each, timed
from gradstore.collect import (
    EventSpec,
    GradientSpec,
    ProjectorSpec,
    TrakProjector,
    add_checkpoint,
    append,
    collect,
)
from gradstore.collect.engines import choice as engines
from gradstore.collect.events import replayed
from gradstore.collect.events.noise import noise_identity
from gradstore.collect.events.recorder import Recorder
from gradstore.collect.objectives.wrappers import precision
from gradstore.collect.pipeline import prepare, targets
from gradstore.errors import CheckpointError, FingerprintError
from gradstore.store.format.spec import Identity
from gradstore.store.reader import Store
from gradstore.store.verify import verify
from indexer import ExactEngine, Features, ReTrac
from query import collect_queries, rerank, search
from query.info import describe
from query.true_influence import Sources
from tests.support.worlds import NAMES, World, save_checkpoint

OTHER = {"float32": "bfloat16", "bfloat16": "float32"}
PLAN = EventSpec(events="planned", timesteps=2)


def spec(precision: str, **options: Any) -> ProjectorSpec:
    return ProjectorSpec.model_validate({"proj_dim": 64, "precision": precision, **options})


class Recording(TrakProjector):
    """An older projector that recorded its precision in the identity of rows."""

    def identity(self, num_parameters: int) -> Identity:
        found = super().identity(num_parameters)
        probe = found["probe"]
        if (self.spec.proj_type, self.spec.precision) == ("normal", "bfloat16"):
            probe = "of rounded numbers"
        return {**found, "precision": self.spec.precision, "probe": probe}


def require_sound(store: Store) -> None:
    assert [report.problem for report in verify(store) if report.problem] == []
    store.require_complete()


@pytest.mark.parametrize(
    ("first", "kind", "old"),
    [
        ("float32", "rademacher", False),
        ("bfloat16", "normal", False),
        ("bfloat16", "rademacher", True),
        ("bfloat16", "normal", True),
    ],
)
def test_a_store_is_continued_grown_and_asked_in_other_arithmetic(
    world: World, tmp_path: Path, first: str, kind: str, *, old: bool
) -> None:
    begun = spec(first, proj_type=kind)
    other = spec(OTHER[first], proj_type=kind)
    path = tmp_path / "s.gradstore"
    part = world.train.only(NAMES[:4])
    options: dict[str, Any] = {"events": PLAN, "shard_samples": 2}
    made = Recording(begun) if old else begun
    collect(part, world.checkpoints[:1], path, projector=made, **options)
    store = collect(part, world.checkpoints[:1], path, projector=other, **options)
    expected = collect(
        part, world.checkpoints[:1], tmp_path / "e.gradstore", projector=other, **options
    )
    store = append(world.train.only(NAMES[4:6]), store, projector=TrakProjector(other))
    store = add_checkpoint(
        store,
        world.checkpoints[1],
        datasets=[part, world.train.only(NAMES[4:6])],
        projector=TrakProjector(other),
    )
    require_sound(store)
    lengths = np.linalg.norm(
        store.rows(0, 0, 4).direction.astype(float) - expected.rows(0).direction, axis=2
    )
    assert 1e-4 < lengths.max() < 0.01  # different, but far less than the projection's error
    asked = collect_queries(store, world.queries, tmp_path / "q.gradstore", events=PLAN)
    assert "precision" not in asked.spec.identity["projector"]  # type: ignore[operator]
    engine = ExactEngine(store, Features.of(store, ReTrac()))
    answer = search(engine, asked, 3)
    found = rerank(answer, engine.features, 2, Sources(train=world.train, queries=world.queries))
    assert found.proponents.samples.shape == (3, 2)


def test_stores_of_other_arithmetic_are_merged(world: World, tmp_path: Path) -> None:
    made = [
        collect(
            world.train.only(NAMES[low : low + 3]),
            world.checkpoints,
            tmp_path / f"{low}.gradstore",
            projector=projector,
            events=PLAN,
            metric="none",
        )
        for low, projector in ((0, Recording(spec("bfloat16"))), (3, spec("float32")))
    ]
    for store, other in (made, made[::-1]):
        if not set(store.manifest.ids) & set(other.manifest.ids):
            store = merge(store, other)  # noqa: PLW2901
            assert store.samples == 6
            require_sound(store)


def test_what_a_store_was_made_in_is_shown(world: World, tmp_path: Path) -> None:
    store = collect(
        world.train,
        world.checkpoints,
        tmp_path / "s.gradstore",
        projector=spec("bfloat16"),
        gradients=GradientSpec(autocast="bfloat16"),
    )
    used = store.spec.parts[0].made_by["arithmetic"]
    assert used == {"gradients": "bfloat16", "projection": "bfloat16"}
    assert "gradients in bfloat16, projection in bfloat16" in describe(store.location)


def test_gradients_under_autocast_are_compared_with_those_without(
    world: World, tmp_path: Path
) -> None:
    cast = GradientSpec(autocast="bfloat16")
    store = collect(
        world.train,
        world.checkpoints,
        tmp_path / "s.gradstore",
        projector=spec("auto"),
        gradients=cast,
    )
    asked = collect_queries(store, world.queries, tmp_path / "q.gradstore")
    assert asked.spec.parts[0].made_by["arithmetic"]["gradients"] == "float32"
    engine = ExactEngine(store, Features.of(store, ReTrac()))
    answer = search(engine, asked, 3)
    rerank(answer, engine.features, 2, Sources(train=world.train, queries=world.queries))

    require_sound(collect(world.train, world.checkpoints, store.path, projector=spec("auto")))


@pytest.mark.parametrize("fast", ["float32", "bfloat16"])
def test_products_are_in_what_is_fast_here(
    world: World, tmp_path: Path, fast: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unfinished store, and queries of a store, keep its arithmetic, unless that is slow."""
    rates = {fast: 100.0, OTHER[fast]: 50.0}
    for module in (arithmetic, prepare):
        monkeypatch.setattr(module, "product_rates", lambda _: rates)
    path = tmp_path / "s.gradstore"
    options: dict[str, Any] = {"projector": spec("auto"), "events": PLAN, "shard_samples": 2}
    store = collect(world.train, world.checkpoints, path, only=[0], **options)
    assert store.spec.parts[0].made_by["arithmetic"]["projection"] == fast
    for rate, expected in ((300.0, fast), (500.0, OTHER[fast])):
        rates[OTHER[fast]] = rate
        prepared = prepare.prepare(
            world.train, world.checkpoints, {path: options["projector"]}, events=PLAN
        )
        projector = prepared.targets[0].projector
        made = projector.at(0, 1000, torch.device("cpu"), 1 << 20)
        assert str(made.dtype) == f"torch.{expected}"
        asked = collect_queries(
            store, world.queries, tmp_path / f"{expected}.gradstore", events=PLAN, etas=[1, 0]
        )
        assert asked.spec.parts[0].made_by["arithmetic"]["projection"] == expected


# The projection error is half the gradient's length at 4 dimensions and 0.1% at 10⁶, which is less
# than the effect of autocast.
@pytest.mark.parametrize(
    ("cost", "dim", "expected"),
    [(0.5, 4, "bfloat16"), (0.9, 4, "float32"), (0.5, 10**6, "float32")],
)
def test_autocast_is_taken_where_it_is_faster_and_near(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    cost: float,
    dim: int,
    expected: str,
) -> None:
    for module in (arithmetic, prepare):
        monkeypatch.setattr(module, "product_rates", lambda _: {"float32": 1.0, "bfloat16": 9.0})
    monkeypatch.setattr(prepare, "_TIMED_EVENTS", 1)
    before = engines._time

    def time(choice: Any, model: Any, objective: Any, batch: Any) -> Any:
        made = before(choice, model, objective, batch)
        return replace(made, seconds=1.0 if precision(objective) == "float32" else cost)

    monkeypatch.setattr(engines, "_time", time)
    store = collect(
        world.train,
        world.checkpoints,
        tmp_path / "s.gradstore",
        projector=ProjectorSpec(projector="sjlt", proj_dim=dim),
    )
    assert store.spec.parts[0].made_by["arithmetic"]["gradients"] == expected


def test_noise_of_another_stream_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = collect(world.train, world.checkpoints, tmp_path / "s.gradstore", events=PLAN)
    changed = {**noise_identity(), "probe": "another"}
    monkeypatch.setattr(targets, "noise_identity", lambda: changed)
    with pytest.raises(FingerprintError, match=r"noise\.probe: .*"):
        collect(world.train, world.checkpoints, store.path, events=PLAN)
    with pytest.raises(FingerprintError, match="numpy"):
        append(world.train, store)
    # Collected rows are still compared with new queries, which have their own noises.
    asked = collect_queries(store, world.queries, tmp_path / "q.gradstore", events=PLAN)
    search(ExactEngine(store, Features.of(store, ReTrac())), asked, 3)


def test_events_of_another_noise_stream_are_not_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        other.setattr(replayed, "noise_identity", lambda: {"probe": "another"})
        folder = save_checkpoint(tmp_path / "epoch-1")
    with pytest.raises(CheckpointError, match="from another stream"):
        replayed.ReplayedEvents([folder], 1000)
    Recorder(0, 1000).save(folder, ids=NAMES, epoch=1, learning_rate_sum=0.1, loss="l1")
    replayed.ReplayedEvents([folder], 1000)


def test_a_trial_grows_until_it_can_be_timed() -> None:
    counts: list[int] = []
    seconds_each(counts.append, 1000, first=2)
    assert counts[0] == counts[1] == 2
    assert counts[-1] == 1000  # nothing is slow: finally all of it


def test_a_way_that_makes_a_kernel_is_not_given_up() -> None:
    """Libraries compile a kernel for each shape at its first use."""
    made: set[int] = set()

    def fast(count: int) -> None:
        sleep(2e-6 * count)

    def faster(count: int) -> None:
        sleep(1e-6 * count + (0.003 if count not in made else 0))
        made.add(count)

    found = timed({"fast": fast, "faster": faster}, 4096, first=16)
    assert found["faster"] < found["fast"]


def test_a_hopeless_way_is_tried_no_further() -> None:
    tried: dict[str, list[int]] = {"fast": [], "slow": []}

    def fast(count: int) -> None:
        tried["fast"].append(count)

    def slow(count: int) -> None:
        tried["slow"].append(count)
        torch.ones(1).exp_()
        stop = torch.ones(400, 400)
        for _ in range(20 * count):
            stop = stop @ stop

    found = timed({"fast": fast, "slow": slow}, 1 << 20)
    assert found["fast"] < found["slow"]
    assert max(tried["slow"]) <= 16


def test_a_stop_amid_a_trial_does_not_count() -> None:
    """As when another process, or a debugger, holds this one: its own time stands still."""

    def busy(seconds: float) -> None:
        until = thread_time() + seconds
        while thread_time() < until:
            pass

    def fast(count: int) -> None:
        if count >= 64:
            sleep(0.1)  # longer than repeats last
        busy(1e-4 * count)

    found = timed({"fast": fast, "slow": lambda count: busy(2e-4 * count)}, 256, device="cpu")
    assert found["fast"] < 0.75 * found["slow"]


def test_what_is_wanted_is_taken_unasked() -> None:
    rates = product_rates()
    assert set(rates) == {"float32", "bfloat16"}
    assert all(rate > 0 for rate in rates.values())
    for wanted in ("float32", "bfloat16"):
        assert precision_of(wanted, "cpu") == wanted
    assert precision_of("auto", "cpu") in rates
