"""What killed commands left of results beside a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradstore.store import locks
from indexer.artifact import beside, leftovers
from query.scores import left_scores

if TYPE_CHECKING:
    from pathlib import Path

    from gradstore.store.reader import Store


def left_beside(store: Store) -> list[Path]:
    """Unfinished indexes, kernels, stores, scores and tables, and the lock files of the last two.

    What a process is just writing, or holds while it is stopped, is none of them.
    """
    folder = beside(store)
    left = [*leftovers(store), *left_scores(store, folder)]
    for lock in sorted(folder.glob("..*.writing.lock")):
        if not lock.is_symlink() and not locks.is_held(lock):
            left += [one for one in (lock.with_name(lock.stem[1:]), lock) if one.exists()]
    return left
