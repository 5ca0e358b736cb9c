"""Things that are computed side by side, one to a core.

torch shares one product among all cores, and then all wait for the one that had something else to
do, such as reading, or the next line of Python. Here each thread has cores of its own.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from threading import Barrier, Lock
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

T = TypeVar("T")
R = TypeVar("R")

# Items per thread that are begun or done and not yet asked for.
_AHEAD: Final = 2
# Where reading waits for a network.
_REMOTE_THREADS: Final = 8
_STARTING: Final = Lock()


def cores() -> int:
    """How many threads `in_order` has, of one core each."""
    import torch

    return torch.get_num_threads()


def in_order(
    do: Callable[[T], R],
    items: Iterable[T],
    *,
    most: int | None = None,
    remote: bool = False,
) -> Iterator[R]:
    """`do` for each item, in as many threads as torch has, each of which computes by itself.

    Args:
        do: is called in several threads at once.
        items: what for.
        most: how many threads there may be. Of torch's each gets its share.
        remote: whether to take more threads, since they wait for a network.

    Yields:
        Results, in the order of the items. A few are made before they are asked for.
    """
    import torch

    with _STARTING:  # not while another sets it
        of_torch = cores()
    threads = max(of_torch, _REMOTE_THREADS) if remote else of_torch
    threads = max(1, min(threads, most or threads))
    ready = Barrier(threads + 1)

    def start() -> None:
        # This sets the number for this thread, if it has one already, which asking for it sees to;
        # and what later threads begin with, which is set back below.
        torch.get_num_threads()
        torch.set_num_threads(max(1, of_torch // threads))
        ready.wait()

    with ThreadPoolExecutor(threads, initializer=start) as pool:
        with _STARTING:
            try:
                for _ in range(threads):
                    pool.submit(int)  # makes the pool start a thread
                ready.wait()
            except BaseException:
                ready.abort()  # none waits for one that could not start
                raise
            finally:
                torch.set_num_threads(of_torch)
        rest = iter(items)
        ahead: deque[Future[R]] = deque(
            pool.submit(do, item) for item in islice(rest, _AHEAD * threads)
        )
        try:
            while ahead:
                done = ahead.popleft().result()
                ahead.extend(pool.submit(do, item) for item in islice(rest, 1))
                yield done
        finally:
            for one in ahead:  # whoever asked wants no more
                one.cancel()
