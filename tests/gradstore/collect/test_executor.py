from __future__ import annotations

from itertools import pairwise

import pytest

from gradstore.collect import ByRank, InProcess, Shuffled, Task
from gradstore.collect.conformance import check_executors
from gradstore.collect.executor import from_environment
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
    """To load a checkpoint takes long; and processes that all do the same would share nothing."""
    tasks = [Task(checkpoint, shard) for checkpoint in range(3) for shard in range(20)]
    orders = set()
    for _ in range(10):
        done: list[Task] = []
        Shuffled().run(tasks, done.append)
        changes = sum(one.checkpoint != other.checkpoint for one, other in pairwise(done))
        assert changes == 2
        orders.add(tuple(done))
    assert len(orders) == 10


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
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
