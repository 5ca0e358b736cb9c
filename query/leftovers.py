"""What killed commands left of results beside a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gradstore.store import locks
from indexer.artifact import beside, leftovers
from query.scores import left_scores

if TYPE_CHECKING:
    from pathlib import Path

    from gradstore.store.reader import Store

# What the names of locked files end with: halves of results, and scores.
_KINDS: Final = ("writing", "parquet", "zarr")


def left_beside(store: Store) -> list[Path]:
    """Unfinished indexes, kernels, stores, scores and tables, and lock files of the last two.

    What a process is just writing, or holds while it is stopped, is none of them.
    """
    folder = beside(store)
    left = [*leftovers(store), *left_scores(store, folder)]
    for lock in sorted(one for kind in _KINDS for one in folder.glob(f".*.{kind}.lock")):
        if lock.is_symlink() or locks.is_held(lock):
            continue
        left.append(lock)
        half = lock.with_name(lock.stem[1:])
        if half.suffix == ".writing" and half.exists():
            left.append(half)
    return left
