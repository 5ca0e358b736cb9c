"""Changing a store that stands: parts added, samples deleted, checkpoints added or dropped.

All that is new is written first, where nobody looks; then the root object is replaced, which makes
it so at once for everyone who opens the store afterwards; then what belongs to the store no more is
removed. Killed anywhere, a change has happened or it has not.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import numpy as np

from gradstore.errors import FingerprintError, StoreError
from gradstore.fingerprint import fingerprint, only_checkpoints, require_same
from gradstore.layout import Layout
from gradstore.objects import ChangedError, digest
from gradstore.part import Part
from gradstore.progress import progress
from gradstore.reader import ROOT, Store, open_store, root_object
from gradstore.spec import LayoutSpec, PartSpec
from gradstore.writer import array_objects, part_objects, unseal, write_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gradstore.manifest import Manifest
    from gradstore.spec import CheckpointSpec, StoreSpec

_TRIES = 5


def part_path(store: Store, manifest: Manifest) -> str:
    """Where a part of these samples lies: the same for whoever makes it, and for the next try.

    Never where a part lies that held the same samples and lost some of them, nor where one lies
    that is to be removed.
    """
    taken = set(store.spec.retired)
    taken |= {part.path for part in store.spec.parts if len(store.deletions.rows(part.path))}
    samples = (list(manifest.ids), list(manifest.digests))
    told = chain([samples], ((*samples, number) for number in count(1)))
    paths = (f"parts/{digest(repr(one).encode())}" for one in told)
    return next(path for path in paths if path not in taken)


def next_number(spec: StoreSpec) -> int:
    """The number of a new checkpoint: none that the store has, nor one that is to be removed."""
    names = [prefix.split("/")[-1] for prefix in spec.retired]
    retired = [int(name) for name in names if name.isdecimal()]
    return 1 + max([checkpoint.number for checkpoint in spec.checkpoints] + retired)


def discard_foreign(part: Part, number: int) -> None:
    """Remove seals of rows that are of another kind, left behind by what was cut off.

    Raises:
        StoreError: if it cannot be done.
    """
    for shard in sorted(part.sealed(number)):
        try:
            own = part.seal(number, shard).fingerprint == part.fingerprints[number]
        except StoreError:
            own = False
        if not own:
            unseal(part, number, shard)


def commit(store: Store, change: Callable[[Store], StoreSpec]) -> Store:
    """Replace the root object by what `change` makes of the store as it is now.

    Raises:
        StoreError: if it cannot be written, or others change the store all the time.
    """
    for _ in range(_TRIES):
        now = open_store(store.objects)
        try:
            spec = change(now)
            content = root_object(type(spec).model_validate(spec.model_dump()))
            store.objects.replace(ROOT, content, seen=now.root)
        except ChangedError:
            continue
        except OSError as error:
            raise _failed(store, error) from error
        return open_store(store.objects, skip_unsealed=store.skip_unsealed)
    raise StoreError(
        f"{store.location} was changed by others {_TRIES} times meanwhile. Run the same command "
        "again."
    )


def _failed(store: Store, error: OSError) -> StoreError:
    return StoreError(
        f"{store.location} cannot be changed: {error.strerror or error}. It is as it was; make "
        "room or get the right to write, and run the same command again."
    )


def open_part(store: Store, spec: PartSpec, manifest: Manifest) -> Part:
    """A part that may not belong to the store yet, made where it is not there.

    Raises:
        StoreError: if it cannot be written.
    """
    known = next((part for part in store.parts if part.spec.path == spec.path), None)
    if known is not None:
        return known
    part = Part(store.objects, spec, store.parts[0].fingerprints)
    try:
        try:
            store.objects.create(spec.path, part_objects(spec, store.numbers, manifest))
        except FileExistsError:  # begun before, or by another process
            _describe(part, store.numbers)  # the store may have other checkpoints by now
    except OSError as error:
        raise _failed(store, error) from error
    return part


def add_part(store: Store, part: Part) -> Store:
    """Make a finished part belong to its store.

    Raises:
        UnsealedError: if it is not finished.
        StoreError: if one of its samples is in the store already.
    """
    for number in store.numbers:
        part.require_sealed(number, range(part.layout.shards))

    def change(now: Store) -> StoreSpec:
        if any(one.spec.path == part.spec.path for one in now.parts):
            return now.spec
        if now.spec.identity != store.spec.identity:
            raise StoreError(
                f"the checkpoints of {store.location} were changed meanwhile. Run the same command "
                "again: what is collected is kept."
            )
        require_new(now, part.manifest)
        return now.spec.model_copy(update={"parts": [*now.spec.parts, part.spec]})

    return commit(store, change)


def require_new(store: Store, manifest: Manifest) -> None:
    """Raise `StoreError` if a store holds one of these samples already."""
    both = set(store.manifest.ids) & set(manifest.ids)
    if both:
        raise StoreError(
            f"{store.location} holds sample {min(both)!r} already (and {len(both) - 1} more of "
            "those that were to be added). Leave them out, give them other ids, or delete the old "
            f"ones first: gradstore delete {store.location} --ids {min(both)}"
        )


def delete(store: Store, ids: Sequence[str]) -> Store:
    """Delete samples: from now on no one who opens the store is shown them.

    Their bytes stay until `vacuum`.

    Args:
        store: the store.
        ids: ids of samples that it holds.

    Returns:
        The store as it is now.

    Raises:
        StoreError: if it does not hold one of them, or would hold none any more.
    """
    wanted = set(ids)
    old: list[str | None] = []

    def change(now: Store) -> StoreSpec:
        unknown = wanted - now.manifest.position.keys()
        if unknown:
            raise StoreError(
                f"{store.location} holds no sample {min(unknown)!r} (and {len(unknown) - 1} more "
                "of those that were to be deleted); nothing was changed. `gradstore info` names "
                "the table of ids."
            )
        if len(wanted) == now.samples:
            raise StoreError(
                f"these are all {now.samples} samples of {store.location}; nothing was changed. "
                "Remove the whole store instead."
            )
        more = {}
        for part in now.parts:
            place = part.manifest.position
            rows = [place[name] for name in wanted & place.keys()]
            # An id may have been deleted here before and have come back with another part.
            more[part.spec.path] = np.array(sorted(rows), np.int64)
        content = now.deletions.with_more(more).content()
        key = f"deleted/{digest(content)}.parquet"
        store.objects.write(key, content)
        store.objects.flush([key])
        old[:] = [now.spec.deleted]
        return now.spec.model_copy(update={"deleted": key})

    if not wanted:
        return store
    found = commit(store, change)
    if old[0] and old[0] != found.spec.deleted:
        with suppress(OSError):  # vacuum removes it
            store.objects.remove(old[0])
    return found


def vacuum(store: Store) -> Store:
    """Remove for good what was deleted, dropped, or left behind by what was cut off.

    Parts that lost samples are written anew without them. Nothing must be collecting or appending
    meanwhile.

    Raises:
        StoreError: if a shard is not sealed, or it cannot be written; run again, it goes on.
    """
    store = _clean(open_store(store.objects))
    lost = [part for part in store.parts if len(store.deletions.rows(part.spec.path))]
    if lost:
        store.require_complete()
        made: dict[str, PartSpec | None] = {}
        for part in lost:
            kept = np.setdiff1d(np.arange(len(part)), store.deletions.rows(part.spec.path))
            made[part.spec.path] = _copy(store, part, kept) if len(kept) else None
        seen = store.spec.deleted

        def change(now: Store) -> StoreSpec:
            if now.spec.deleted != seen:
                raise StoreError(
                    f"samples of {store.location} were deleted meanwhile. Run vacuum again."
                )
            parts = [made.get(part.path, part) for part in now.spec.parts]
            return now.spec.model_copy(
                update={
                    "parts": [part for part in parts if part is not None],
                    "deleted": None,
                    "retired": [*now.spec.retired, *(p for old in made for p in _all_of(old))],
                }
            )

        store = _clean(commit(store, change))
    return store


def _all_of(path: str) -> list[str]:
    """The prefixes of all that a part consists of."""
    return [path] if path else ["checkpoints", "seals", "samples"]


def _clean(store: Store) -> Store:
    """Remove what belongs to the store no more."""
    objects = store.objects
    try:
        for prefix in store.spec.retired:
            objects.remove_all(prefix)
        for name in objects.names("deleted"):
            if f"deleted/{name}" != store.spec.deleted:
                objects.remove(f"deleted/{name}")
        mine = {part.path for part in store.spec.parts}
        others = {"/".join(key.split("/")[:2]) for key, _ in objects.sizes("parts")} - mine
        for prefix in others:  # an append or a vacuum that was cut off
            objects.remove_all(
                f"{prefix}/seals"
            )  # first: a seal without its data would be believed
            objects.remove_all(prefix)
        for part in store.parts:
            for what in ("seals", "checkpoints"):  # another checkpoint that was cut off
                under = part.key(what) + "/"
                keys = [key.removeprefix(under) for key, _ in objects.sizes(part.key(what))]
                found = {key.split("/")[0] for key in keys}
                for number in found - {"zarr.json", *map(str, store.numbers)}:
                    objects.remove_all(under + number)
    except OSError as error:
        raise _failed(store, error) from error
    if not store.spec.retired:
        return store
    return commit(store, lambda now: now.spec.model_copy(update={"retired": []}))


def _copy(store: Store, source: Part, rows: NDArray[np.int64]) -> PartSpec:
    """Write some rows of a part, of this store or another, into a new part of this one."""
    manifest = source.manifest.chosen(rows)
    old = source.layout
    layout = Layout.choose(len(rows), old.slots, old.dim, old.dtype, old.shard_samples)
    spec = PartSpec(
        path=part_path(store, manifest),
        layout=LayoutSpec.of(layout),
        made_by=source.spec.made_by,
    )
    part = open_part(store, spec, manifest)
    total = len(rows) * len(store.numbers)
    with progress(total, f"writing {spec.path}", "samples") as bar:
        for number in store.numbers:
            for shard in part.missing(number):
                start, stop = layout.span(shard)
                arrays = source.take(number, rows[start:stop])
                write_arrays(part, number, shard, arrays)
                bar.update(stop - start)
    return spec


def merge(store: Store, other: Store) -> Store:
    """Take all samples of another store into this one; the other is not changed.

    Args:
        store: the store that grows.
        other: a complete store of the same fingerprint and checkpoint weights, with other samples.

    Returns:
        The store as it is now.

    Raises:
        FingerprintError: if the two stores' rows are not of one kind.
        StoreError: if a sample is in both.
    """
    require_same(
        store.spec.identity,
        other.spec.identity,
        expected_name=store.location,
        found_name=other.location,
        sections=tuple(store.spec.identity.keys() | other.spec.identity.keys()),
        mend="collect the other's samples with this store's configuration: gradstore append",
    )
    if (store.etas, store.numbers) != (other.etas, other.numbers):
        raise FingerprintError(
            f"{other.location} has checkpoint weights {other.etas}, {store.location} has "
            f"{store.etas}. Collect both with the same --etas."
        )
    other.require_complete()
    require_new(store, other.manifest)
    for part in other.parts:
        kept = np.setdiff1d(np.arange(len(part)), other.deletions.rows(part.spec.path))
        if len(kept):
            spec = _copy(store, part, kept)
            store = add_part(store, open_part(store, spec, part.manifest.chosen(kept)))
    return store


def drop_checkpoint(store: Store, checkpoint: int) -> Store:
    """Leave a checkpoint out of a store. Its bytes stay until `vacuum`.

    The weights of those that stay become what they would be had it never been used, where the
    training run recorded its learning rates; else they stay as they are.

    Args:
        store: the store.
        checkpoint: its place among the checkpoints, from 0.

    Returns:
        The store as it is now, with another fingerprint.

    Raises:
        StoreError: if there is no such checkpoint, or no other.
    """
    dropped = store.number(checkpoint)

    def change(now: Store) -> StoreSpec:
        places = [place for place, number in enumerate(now.numbers) if number != dropped]
        if not places:
            raise StoreError(
                f"{store.location} has this checkpoint only; nothing was changed. Remove the whole "
                "store instead."
            )
        identity = only_checkpoints(now.spec.identity, places)
        gone = [
            f"{part.path}/{what}/{dropped}".lstrip("/")
            for part in now.spec.parts
            for what in ("checkpoints", "seals")
        ]
        return now.spec.model_copy(
            update={
                "identity": identity,
                "fingerprint": fingerprint(identity),
                "checkpoints": _weighed([now.spec.checkpoints[place] for place in places]),
                "retired": [*now.spec.retired, *gone],
            }
        )

    return commit(store, change)


def _weighed(checkpoints: list[CheckpointSpec]) -> list[CheckpointSpec]:
    """Checkpoints with η as the difference of learning rate sums, where all have one."""
    sums = [checkpoint.learning_rate_sum for checkpoint in checkpoints]
    known = [one for one in sums if one is not None]
    if len(known) < len(sums):
        return checkpoints
    return [
        checkpoint.model_copy(update={"eta": own - before})
        for checkpoint, before, own in zip(checkpoints, [0.0, *known], known, strict=False)
    ]


def add_checkpoint_arrays(store: Store, number: int) -> list[Part]:
    """Make room for a checkpoint in every part; it belongs to the store when it is committed.

    Args:
        store: the store.
        number: the new checkpoint's number.
    """
    try:
        for part in store.parts:
            _describe(part, [number])
    except OSError as error:
        raise _failed(store, error) from error
    return store.parts


def _describe(part: Part, numbers: Sequence[int]) -> None:
    """Write what Zarr says of some checkpoints' arrays."""
    for key, content in array_objects(part.layout, numbers).items():
        if key.startswith(tuple(f"checkpoints/{number}/" for number in numbers)):
            part.objects.write(part.key(key), content)


def with_checkpoint(
    spec: StoreSpec, checkpoint: CheckpointSpec, identity: dict[str, Any]
) -> StoreSpec:
    """The attributes of a store that has one checkpoint more.

    Args:
        spec: the attributes of the store without it.
        checkpoint: the new checkpoint.
        identity: the new identity, of all checkpoints.
    """
    return spec.model_copy(
        update={
            "identity": identity,
            "fingerprint": fingerprint(identity),
            "checkpoints": [*spec.checkpoints, checkpoint],
        }
    )
