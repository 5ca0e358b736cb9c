"""Parallel blocks: in order, each with its own thread, and nothing left running."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import torch

from gradstore.workers import in_order

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_results_come_in_order(count: int, *, remote: bool) -> None:
    assert list(in_order(lambda n: n * n, range(count), remote=remote)) == [
        n * n for n in range(count)
    ]


def test_each_thread_has_one_of_torch_and_the_others_keep_theirs() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert set(in_order(lambda _: torch.get_num_threads(), range(20))) == {1}
        assert torch.get_num_threads() == 3
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [3]
        assert set(in_order(lambda _: torch.get_num_threads(), range(20), most=1)) == {3}
    finally:
        torch.set_num_threads(before)


def test_no_more_is_begun_than_is_asked_for() -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            begun.append(number)
            yield number

    results = in_order(lambda n: n, items())
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(begun) < 3 + 3 * torch.get_num_threads()
    results.close()  # type: ignore[attr-defined]
    assert len(begun) < 3 + 3 * torch.get_num_threads()


def test_what_fails_is_told() -> None:
    def fail(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        return number

    results = in_order(fail, range(100))
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="five"):
        next(results)
