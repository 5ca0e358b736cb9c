"""Checking a store against its seals: every byte of every sealed shard, or names and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from gradstore.errors import StoreError
from gradstore.store.format.root import ROOT
from gradstore.store.writer import array_objects, unseal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradstore.store.part import Part, Seal
    from gradstore.store.reader import Store


@dataclass(frozen=True)
class ShardReport:
    """What was found of one shard.

    Attributes:
        part: the part that it is of.
        checkpoint: number of the checkpoint.
        shard: number of the shard.
        problem: what is wrong with it, or None.
        sealed: whether it has a seal. One that has none is not damaged, but not finished.
    """

    part: Part
    checkpoint: int
    shard: int
    problem: str | None
    sealed: bool

    def __str__(self) -> str:
        where = f"{self.part.spec.path}, " if self.part.spec.path else ""
        return f"{where}checkpoint {self.checkpoint}, shard {self.shard}: {self.problem}"


def verify(store: Store) -> Iterator[ShardReport]:
    """Read every object of every shard and compare it with its seal, reporting each as it is done.

    Raises:
        StoreError: if what describes the arrays is damaged: there is nothing to compare then.
    """
    for part in store.parts:
        _check_description(part, store.numbers)
    _ = store.deletions  # whose table is compared with its name when it is read
    for number in store.numbers:
        for part in store.parts:
            sealed = part.sealed(number)
            for shard in range(part.layout.shards):
                problem = check(part, number, shard) if shard in sealed else "not sealed"
                yield ShardReport(part, number, shard, problem, shard in sealed)


def _check_description(part: Part, numbers: list[int]) -> None:
    """Compare what Zarr is told of the arrays with what the layout says."""
    _ = part.manifest  # whose bytes are compared with their digest when it is read
    for key, _, problem in _false_descriptions(part, numbers):
        raise StoreError(
            f"{part.location}/{key} {problem}. Write it anew: gradstore verify "
            f"{part.objects.location} --repair"
        )


def _false_descriptions(part: Part, numbers: list[int]) -> Iterator[tuple[str, bytes, str]]:
    """What Zarr is told falsely: key within the part, what belongs there, what is wrong."""
    for key, content in array_objects(part.layout, numbers).items():
        if part.key(key) == ROOT:
            continue
        try:
            found = part.objects.read(part.key(key))
        except OSError as error:
            yield key, content, f"cannot be read: {error.strerror or error}"
            continue
        if _json(found) != _json(content):
            yield key, content, "does not describe the array that the layout says"


def describe_anew(store: Store) -> list[str]:
    """Write what Zarr is told of the arrays where it is false: it follows from the layout.

    Returns:
        What was written, as keys below the store.

    Raises:
        StoreError: if it cannot be written.
    """
    written = []
    for part in store.parts:
        for key, content, _ in _false_descriptions(part, store.numbers):
            try:
                part.objects.write(part.key(key), content)
                part.objects.flush([part.key(key)])
            except OSError as error:
                raise StoreError(
                    f"{part.location}/{key} cannot be written: {error.strerror or error}. Make "
                    "room or get the right to write, and run the same command again."
                ) from error
            written.append(part.key(key))
    return written


def _json(content: bytes) -> object:
    import json

    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return {**found, "attributes": {}} if isinstance(found, dict) else found


def unseal_unfit(part: Part, number: int) -> None:
    """Remove the seals that cannot be right, so that their shards are collected anew.

    Of a part or a checkpoint that does not belong to the store yet: what was cut off, or written by
    two at once, may have left seals of other rows, or seals whose objects were removed.

    Raises:
        OSError: if it cannot be done.
    """
    sealed = sorted(part.sealed(number))
    sizes = dict(part.objects.sizes(part.key(f"checkpoints/{number}")))

    def fits(shard: int) -> bool:
        if shard >= part.layout.shards:
            return False
        try:
            seal = part.seal(number, shard)
        except StoreError:
            return False
        return _problem(part, number, shard, seal) is None and all(
            sizes.get(part.array_key(number, name, shard)) == one.nbytes
            for name, one in seal.objects.items()
        )

    for shard, fit in zip(sealed, part.in_parallel(fits, sealed), strict=True):
        if not fit:
            unseal(part, number, shard)


def check(part: Part, number: int, shard: int) -> str | None:
    """Compare every byte of a sealed shard with its seal: what is wrong with it, or None."""
    try:
        seal = part.seal(number, shard)
    except StoreError as error:
        return str(error)
    problem = _problem(part, number, shard, seal)
    if problem:
        return problem
    wrong = []
    for name, one in seal.objects.items():
        try:
            content = part.objects.read(part.array_key(number, name, shard))
        except OSError as error:
            wrong.append(f"{name} cannot be read ({error.strerror or error})")
            continue
        if len(content) != one.nbytes:
            wrong.append(f"{name} has {len(content)} bytes, not {one.nbytes}")
        elif sha256(content).hexdigest() != one.sha256:
            wrong.append(f"{name} is not what was sealed")
    return "; ".join(wrong) or None


def _problem(part: Part, number: int, shard: int, seal: Seal) -> str | None:
    """What is wrong with what a seal says."""
    start, stop = part.layout.span(shard)
    if seal.fingerprint != part.fingerprints[number]:
        return "its seal has another fingerprint: it comes from another run"
    if seal.rows != stop - start:
        return f"its seal counts {seal.rows} rows, the layout {stop - start}"
    if seal.samples_sha256 not in {None, part.manifest.samples_sha256(start, stop)}:
        return "its seal is of other samples: it comes from another shard or another store"
    names = ("direction", *part.columns)
    if set(seal.objects) != set(names):
        return f"its seal names {', '.join(seal.objects)}, not {', '.join(names)}"
    return None
