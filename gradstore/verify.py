"""Checking a store against its seals: every byte of every sealed shard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradstore.errors import StoreError
from gradstore.rows import ARRAYS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradstore.reader import Store


@dataclass(frozen=True)
class ShardReport:
    """What was found of one shard.

    Attributes:
        checkpoint: number of the checkpoint.
        shard: number of the shard.
        problem: what is wrong with it, or None.
        sealed: whether it has a seal. One that has none is not damaged, but not finished.
    """

    checkpoint: int
    shard: int
    problem: str | None
    sealed: bool


def verify(store: Store) -> Iterator[ShardReport]:
    """Read every shard and compare it with its seal, reporting each as it is done."""
    for checkpoint in range(store.checkpoints):
        sealed = store.sealed(checkpoint)
        for shard in range(store.layout.shards):
            problem = _check(store, checkpoint, shard) if shard in sealed else "not sealed"
            yield ShardReport(checkpoint, shard, problem, shard in sealed)


def _check(store: Store, checkpoint: int, shard: int) -> str | None:
    start, stop = store.layout.span(shard)
    try:
        seal = store.seal(checkpoint, shard)
    except StoreError as error:
        return str(error)
    if seal.get("fingerprint") != store.spec.fingerprint:
        return "its seal has another fingerprint: it comes from another run"
    if seal.get("rows") != stop - start:
        return f"its seal counts {seal.get('rows')} rows, the layout {stop - start}"
    try:
        found = store.read_unchecked(checkpoint, start, stop).checksums()
    except StoreError as error:
        return str(error)
    wrong = [name for name in ARRAYS if seal.get("checksums", {}).get(name) != found[name]]
    return f"{', '.join(wrong)} differ from the seal's checksums" if wrong else None
