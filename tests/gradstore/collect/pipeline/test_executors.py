from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from gradstore.collect import ByRank, InProcess, Shuffled, Task, devices
from gradstore.collect.conformance import check_executors
from gradstore.collect.pipeline.executors import from_environment
from gradstore.errors import ConfigError


@pytest.mark.parametrize("world_size", [1, 2, 4, 20])
def test_executors_keep_their_promises(world_size: int) -> None:
    check_executors([InProcess()])
    check_executors([Shuffled()])
    check_executors([ByRank(rank, world_size) for rank in range(world_size)])


def test_the_check_can_fail() -> None:
    with pytest.raises(AssertionError, match="every task is done exactly once"):
        check_executors([InProcess(), InProcess()])


def test_shuffled_tasks_stay_together_by_checkpoint() -> None:
    """Loading a checkpoint takes long, and processes must do different tasks."""
    tasks = [Task(checkpoint, shard) for checkpoint in range(3) for shard in range(20)]
    orders = set()
    for _ in range(10):
        done: list[Task] = []
        Shuffled().run(Shuffled().share(tasks), done.append)
        changes = sum(one.checkpoint != other.checkpoint for one, other in pairwise(done))
        assert changes == 2
        orders.add(tuple(done))
    assert len(orders) == 10


def test_a_rank_begins_with_its_own_share() -> None:
    tasks = [Task(checkpoint, shard) for checkpoint in range(3) for shard in range(5)]
    ranks = ByRank(1, 4)
    orders = {tuple(Shuffled(ranks).share(tasks)) for _ in range(5)}
    assert {order[:4] for order in orders} == {tuple(ranks.share(tasks))}
    assert {tuple(sorted(order)) for order in orders} == {tuple(tasks)}
    assert len(orders) > 1  # helpers start at different tasks


LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({}, None),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "3"}, (2, 3)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        ({"SLURM_PROCID": "2"}, None),
        ({"SLURM_NTASKS": "3"}, None),  # in the shell of an allocation
        ({"RANK": "1", "WORLD_SIZE": "4", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, (1, 4)),
        ({"RANK": "0", "WORLD_SIZE": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, None),
    ],
)
def test_launchers(
    environment: pytest.MonkeyPatch, told: dict[str, str], found: tuple[int, int] | None
) -> None:
    for name, value in told.items():
        environment.setenv(name, value)
    ranks = from_environment()
    assert (ranks and (ranks.rank, ranks.world_size)) == found


@pytest.mark.parametrize(
    ("told", "card"),
    [({}, 0), ({"SLURM_LOCALID": "1"}, 1), ({"LOCAL_RANK": "2", "SLURM_LOCALID": "1"}, 2),
     ({"LOCAL_RANK": "4"}, 1)],
)  # fmt: skip
def test_a_rank_takes_its_own_card(
    environment: pytest.MonkeyPatch, told: dict[str, str], card: int
) -> None:
    taken = []
    for name, value in told.items():
        environment.setenv(name, value)
    environment.setattr("torch.cuda.is_available", lambda: True)
    environment.setattr("torch.cuda.device_count", lambda: 3)
    environment.setattr("torch.empty", lambda *_, device: taken.append(device))
    for asked in (None, "cuda", torch.device("cuda")):
        assert devices.choose(asked) == torch.device("cuda", card)
    assert devices.choose("cuda:0") == torch.device("cuda:0")
    assert len(taken) == 4


def test_a_local_rank_that_is_no_number(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("LOCAL_RANK", "first")
    with pytest.raises(ConfigError, match="LOCAL_RANK must be a whole number, not 'first'"):
        devices.choose("cuda")


def test_the_environment_decides(environment: pytest.MonkeyPatch) -> None:
    monkeypatch = environment
    assert from_environment() is None
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    executor = from_environment()
    assert isinstance(executor, ByRank)
    assert (executor.rank, executor.world_size) == (1, 3)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(ConfigError, match="RANK is 3 and WORLD_SIZE is 3"):
        from_environment()
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(ConfigError, match="whole numbers"):
        from_environment()
