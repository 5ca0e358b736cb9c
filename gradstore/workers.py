"""Parallel computation with one thread per core.

torch splits one product across all cores. All cores then wait for the slowest one, which may be
reading or running Python. Here each thread has its own cores.
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

# Items per thread that are submitted but not yet consumed.
_AHEAD: Final = 2
# Threads for reads that wait for a network.
_REMOTE_THREADS: Final = 8
_STARTING: Final = Lock()


def cores() -> int:
    """Number of threads that `in_order` uses, with one core each."""
    import torch

    return torch.get_num_threads()


def in_order(
    do: Callable[[T], R],
    items: Iterable[T],
    *,
    most: int | None = None,
    remote: bool = False,
) -> Iterator[R]:
    """Apply `do` to each item, in as many independent threads as torch has.

    Args:
        do: function that several threads call at once.
        items: its arguments.
        most: maximum number of threads. torch's threads are divided equally among them.
        remote: whether to use more threads, because they wait for a network.

    Yields:
        Results, in the order of the items. A few are computed ahead.
    """
    import torch

    with _STARTING:  # not while another call changes the number
        of_torch = cores()
    threads = max(of_torch, _REMOTE_THREADS) if remote else of_torch
    threads = max(1, min(threads, most or threads))
    ready = Barrier(threads + 1)

    def start() -> None:
        # `get_num_threads` initialises this thread so that `set_num_threads` applies to it. The
        # latter also sets the default of later threads, which is restored below.
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
                ready.abort()  # threads stop waiting for one that could not start
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
            for one in ahead:  # the consumer may stop early
                one.cancel()
