"""Verifying a store against its seals: every byte of every sealed shard, or names and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import numpy as np

from gradstore.errors import StoreError
from gradstore.store.commits import check_commits
from gradstore.store.format.root import ROOT
from gradstore.store.metrics import check_metric
from gradstore.store.objects.protocol import ChangedError, TooLargeError
from gradstore.store.writer import array_objects, unseal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gradstore.store.part import Part
    from gradstore.store.reader import Store
    from gradstore.store.seals import Seal


# Other programs may write the same metadata with more spaces or with attributes.
_SPARE_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class ShardReport:
    """Result of verifying one shard.

    Attributes:
        part: the part that holds the shard.
        checkpoint: number of the checkpoint.
        shard: number of the shard.
        problem: description of the problem, or None.
        sealed: whether the shard has a seal. A shard without one is unfinished, not damaged.
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
    """Compare every object of every shard with its seal, and yield one report per shard.

    Raises:
        StoreError: if the root object is not the last that was committed, array metadata is
            damaged, so that nothing can be compared, or a metric is damaged.

    Examples:
        >>> import gradstore as gs
        >>> for report in gs.verify(gs.open_store("damaged.gradstore")):
        ...     print(report)
        checkpoint 0, shard 0: columns has 7 bytes, not 1284
        checkpoint 1, shard 0: None
    """
    check_commits(store)
    for part in store.parts:
        _check_description(part, store.numbers)
    _ = store.deletions  # reading the table compares it with its name
    for number in store.numbers:
        check_metric(store, number)
    for number in store.numbers:
        for part in store.parts:
            sealed = part.sealed(number)
            for shard in range(part.layout.shards):
                problem = check(part, number, shard) if shard in sealed else "not sealed"
                if problem is not None and shard in sealed:
                    store.require_current()  # a vacuum may just have removed it
                yield ShardReport(part, number, shard, problem, shard in sealed)


def _check_description(part: Part, numbers: list[int]) -> None:
    """Raise `StoreError` if the Zarr metadata of the arrays does not match the layout."""
    part.check_manifest()
    for key, _, problem in _false_descriptions(part, numbers):
        part.require_current()
        raise StoreError(
            f"{part.location}/{key} {problem}. Rewrite it: gradstore verify "
            f"{part.objects.location} --repair"
        )


def _false_descriptions(part: Part, numbers: list[int]) -> Iterator[tuple[str, bytes, str]]:
    """Wrong Zarr metadata, as (key within the part, correct content, problem)."""
    for key, content in array_objects(part.layout, numbers).items():
        if part.key(key) == ROOT:
            continue
        try:
            found = part.objects.read(part.key(key), len(content) + _SPARE_BYTES)
        except OSError as error:
            yield key, content, f"cannot be read: {error.strerror or error}"
            continue
        if _json(found) != _json(content):
            yield key, content, "does not describe the array of the layout"


def describe_anew(store: Store) -> list[str]:
    """Rewrite wrong Zarr metadata of the arrays, which follows from the layout.

    Returns:
        Keys of the written objects, below the store.

    Raises:
        StoreError: if an object cannot be written.
    """
    written = []
    for part in store.parts:
        for key, content, _ in _false_descriptions(part, store.numbers):
            try:
                part.objects.write(part.key(key), content)
                part.objects.flush([part.key(key)])
            except OSError as error:
                raise StoreError(
                    f"{part.location}/{key} cannot be written: {error.strerror or error}. Free "
                    "disk space or get write permission, and run the same command again."
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


def unseal_unfit(part: Part, number: int, shards: Iterable[int] | None = None) -> set[int]:
    """Unseal invalid shards of an uncommitted part or checkpoint, so that they are recollected.

    An interrupted process, or two that wrote at once, may have left seals of other rows, or seals
    whose objects were removed. A list may be out of date, so no shard is unsealed on its word.

    Args:
        part: the part.
        number: number of the checkpoint.
        shards: the shards to look at; by default those that are listed as sealed.

    Returns:
        The shards that are sealed and valid.

    Raises:
        OSError: if objects cannot be listed or a seal cannot be removed.
    """
    sealed = sorted(part.sealed(number) if shards is None else shards)
    sizes = dict(part.objects.sizes(part.key(f"checkpoints/{number}")))

    def fits(shard: int) -> bool:
        if shard >= part.layout.shards:
            return False
        try:
            seal = part.seal(number, shard)
        except StoreError:
            return False
        return _problem(part, number, shard, seal) is None and all(
            there(part.array_key(number, name, shard), one.nbytes)
            for name, one in seal.objects.items()
        )

    def there(key: str, nbytes: int) -> bool:
        if sizes.get(key) == nbytes:
            return True
        try:
            return part.objects.size(key) == nbytes
        except FileNotFoundError:
            return False

    fit = dict(zip(sealed, part.in_parallel(fits, sealed), strict=True))
    for shard in (shard for shard in sealed if not fit[shard]):
        unseal(part, number, shard)
    return {shard for shard in sealed if fit[shard]}


def check(part: Part, number: int, shard: int) -> str | None:
    """Compare every byte of a sealed shard with its seal; return the problem, or None."""
    try:
        seal = part.seal(number, shard)
    except ChangedError:
        raise
    except StoreError as error:
        return str(error)
    problem = _problem(part, number, shard, seal)
    if problem:
        return problem
    wrong = []
    for name, one in seal.objects.items():
        try:
            content = part.objects.read(part.array_key(number, name, shard), one.nbytes)
        except TooLargeError as error:
            wrong.append(f"{name} has {error.size} bytes, not {one.nbytes}")
            continue
        except OSError as error:
            wrong.append(f"{name} cannot be read ({error.strerror or error})")
            continue
        if len(content) != one.nbytes:
            wrong.append(f"{name} has {len(content)} bytes, not {one.nbytes}")
        elif sha256(content).hexdigest() != one.sha256:
            wrong.append(f"{name} differs from its seal")
        elif one.sums is not None and not np.array_equal(
            one.sums, part.chunk_sums(name, content, seal.rows)
        ):
            wrong.append(f"its seal has other checksums of {name} than the object")
    return "; ".join(wrong) or None


def _problem(part: Part, number: int, shard: int, seal: Seal) -> str | None:
    """The problem with a seal's content, or None."""
    problem = part.problem(number, shard, seal)
    if problem is not None:
        return problem
    own = part.manifest.samples_sha256(*part.layout.span(shard))
    if seal.samples_sha256 not in {None, own}:
        return "its seal is of other samples: it comes from another shard or another store"
    return None
