from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from gradstore.collect import Checkpoints, EventSpec, ProjectorSpec, Samples, collect
from gradstore.errors import CheckpointError
from gradstore.reader import Store
from query import collect_queries
from tests.conftest import World, images

PLAN = EventSpec(events="planned", timesteps=3, draws=2)


@pytest.fixture
def checkpoints(world: World, tmp_path: Path) -> list[Path]:
    """Copies, to be removed."""
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
    held = Checkpoints(checkpoints)
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
    held = Checkpoints(checkpoints)
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
