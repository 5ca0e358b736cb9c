from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradstore.collect import CheckpointCache, EventSpec, ProjectorSpec, Samples, collect
from gradstore.collect.pipeline import differentiating
from gradstore.errors import CheckpointError, GradientError
from gradstore.store.reader import Store
from query import collect_queries
from tests.support.collected import PAPER
from tests.support.worlds import World, images

PLAN = EventSpec(events="planned", timesteps=3, draws=2)


@pytest.fixture
def checkpoints(world: World, tmp_path: Path) -> list[Path]:
    """Copies that the test removes."""
    return [Path(shutil.copytree(one, tmp_path / "run" / one.name)) for one in world.checkpoints]


@pytest.fixture
def store(world: World, checkpoints: list[Path], tmp_path: Path) -> Store:
    spec = ProjectorSpec(projector="sjlt", proj_dim=64)
    return collect(world.train, checkpoints, tmp_path / "train.gradstore", projector=spec)


def same_rows(one: Store, other: Store) -> bool:
    return all(
        np.array_equal(getattr(one.rows(k), name), getattr(other.rows(k), name))
        for k in range(one.checkpoints)
        for name in ("direction", "norm", "loss", "timestep")
    )


def test_models_that_stay_give_the_same_rows_and_are_not_read_again(
    store: Store, checkpoints: list[Path], tmp_path: Path
) -> None:
    asked = [Samples(images(2, seed=number), ids=["a", "b"]) for number in range(2)]
    fresh = [
        collect_queries(store, one, tmp_path / f"fresh-{number}.gradstore", events=PLAN)
        for number, one in enumerate(asked)
    ]
    held = CheckpointCache(checkpoints)
    first = collect_queries(
        store, asked[0], tmp_path / "first.gradstore", events=PLAN, checkpoints=held
    )
    for folder in checkpoints:
        shutil.rmtree(folder)
    second = collect_queries(
        store, asked[1], tmp_path / "second.gradstore", events=PLAN, checkpoints=held
    )
    assert same_rows(first, fresh[0])
    assert same_rows(second, fresh[1])
    assert not same_rows(first, second)
    with pytest.raises(CheckpointError, match="does not exist"):
        collect_queries(store, asked[1], tmp_path / "third.gradstore", events=PLAN)


def test_what_is_held_is_not_taken_for_something_else(
    world: World, store: Store, checkpoints: list[Path], tmp_path: Path
) -> None:
    held = CheckpointCache(checkpoints)
    collect_queries(store, world.queries, tmp_path / "q.gradstore", checkpoints=held)
    spec = ProjectorSpec(projector="sjlt", proj_dim=64)
    for name, options in {
        "l2": {"objective": "l2"},
        "etas": {"etas": [1.0, 2.0]},
        "square": {"objective": "square"},
    }.items():
        one, other = (
            collect(
                world.queries,
                given,
                tmp_path / f"{name}-{kind}.gradstore",
                projector=spec,
                events=PLAN,
                **options,  # type: ignore[arg-type]
            )
            for kind, given in (("held", held), ("fresh", checkpoints))
        )
        assert one.spec.identity == other.spec.identity
        assert one.etas == other.etas
        assert same_rows(one, other)


@pytest.mark.parametrize("name", ["sjlt", "trak"])
def test_checkpoints_are_differentiated_side_by_side(
    world: World,
    checkpoints: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """Only without shared state, and with equal rows up to rounding of sums."""
    store = collect(
        world.train,
        checkpoints,
        tmp_path / "train.gradstore",
        projector=ProjectorSpec(projector=name, proj_dim=64),
        **PAPER,
    )
    seen: set[tuple[int, int]] = set()
    differentiate = differentiating.LoadedCheckpoint.differentiate

    def watched(*given: Any) -> Any:
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return differentiate(*given)

    class Bound(Samples):
        """Samples that only their creating thread can read."""

        owner = threading.get_ident()

        def _item(self, row: int, name: str) -> Any:
            assert threading.get_ident() == self.owner
            return super()._item(row, name)

    monkeypatch.setattr(differentiating.LoadedCheckpoint, "differentiate", watched)
    asked = Bound(images(2, seed=3), ids=["a", "b"])
    alone = collect_queries(store, asked, tmp_path / "alone.gradstore", events=PLAN)
    assert seen == {(threading.get_ident(), torch.get_num_threads())}
    held = CheckpointCache(checkpoints)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    seen.clear()
    try:
        both, again = (
            collect_queries(
                store, asked, tmp_path / f"{number}.gradstore", events=PLAN, checkpoints=held
            )
            for number in range(2)
        )
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    if name == "sjlt":  # two checkpoints share four threads
        assert {count for _, count in seen} == {2}
        assert len({ident for ident, _ in seen}) >= 2
    else:  # matrices share scratch memory
        assert seen == {(threading.get_ident(), 4)}
    assert same_rows(both, again)
    for k in range(store.checkpoints):
        for column in ("direction", "norm", "loss", "timestep"):
            found, expected = (getattr(one.rows(k), column) for one in (both, alone))
            # bfloat16 products, if fast here, round each entry of a gradient.
            atol = 2e-3 if column == "direction" and name == "trak" else 2e-4
            np.testing.assert_allclose(found, expected, rtol=2e-3, atol=atol)


def test_a_failure_in_one_thread_is_told(
    store: Store, checkpoints: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = CheckpointCache(checkpoints)
    asked = Samples(images(2, seed=3), ids=["a", "b"])

    def failing(*_: Any) -> Any:
        raise GradientError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(differentiating.LoadedCheckpoint, "differentiate", failing)
        with pytest.raises(GradientError, match="broken"):
            collect_queries(store, asked, tmp_path / "q.gradstore", events=PLAN, checkpoints=held)
    found = collect_queries(store, asked, tmp_path / "q.gradstore", events=PLAN, checkpoints=held)
    assert not found.missing()
