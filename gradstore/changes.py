"""Changing a store that stands: parts added, samples deleted, checkpoints added or dropped.

All that is new is written first, where nobody looks; then the root object is replaced, which makes
it so at once for everyone who opens the store afterwards; then what belongs to the store no more is
removed. Killed anywhere, a change has happened or it has not.
"""

from __future__ import annotations

import json
import re
from itertools import chain, count
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import numpy as np
from pydantic import ValidationError

from gradstore.errors import FingerprintError, StoreError
from gradstore.fingerprint import fingerprint, only_checkpoints, require_same
from gradstore.layout import Layout
from gradstore.objects import ChangedError, digest
from gradstore.part import Part
from gradstore.progress import progress
from gradstore.reader import ROOT, Store, open_store, root_object
from gradstore.spec import LayoutSpec, PartSpec
from gradstore.verify import check, unseal_unfit
from gradstore.writer import PART, array_objects, part_objects, write_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gradstore.manifest import Manifest
    from gradstore.objects import Objects
    from gradstore.spec import CheckpointSpec, Identity, StoreSpec

_TRIES = 5
# Attribute of the group of a checkpoint that is added: the digest of its weights.
_WEIGHTS: Final = "gradstore_weights"
# What may be left behind; whatever else somebody put into the folder is not touched.
_TABLE = re.compile(r"deleted/[0-9a-f]{32}\.parquet$")
_PART = re.compile("parts/[0-9a-f]{32}(?=/)")
_CHECKPOINT = re.compile("(parts/[0-9a-f]{32}/)?(checkpoints|seals)/(?P<number>[0-9]{1,7})(?=/)")
_TEMPORARY = re.compile(r"(.*/)?\.[^/]+\.(building-)?[0-9a-f]{32}(?=/|$)")


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


def next_number(store: Store, weights: str) -> int:
    """The number of a new checkpoint of these weights, the same at the next try.

    It is none that the store has, nor one that is to be removed, nor one that was begun with other
    weights and cut off, or that another process collects at this moment.

    Raises:
        StoreError: if it cannot be read.
    """
    names = [prefix.split("/")[-1] for prefix in store.spec.retired]
    retired = [int(name) for name in names if name.isdecimal()]
    try:
        return next(
            number
            for number in count(1 + max([*store.numbers, *retired]))
            if _begun_with(store.parts[0], number) in {None, weights}
        )
    except OSError as error:
        raise _failed(store, error) from error


def _begun_with(part: Part, number: int) -> Any:
    """The weights of the checkpoint whose arrays were made under a number; None if none were."""
    try:
        return _attributes(part.objects, part.key(f"checkpoints/{number}/zarr.json")).get(_WEIGHTS)
    except FileNotFoundError:
        return None


def _attributes(objects: Objects, key: str) -> dict[str, Any]:
    """Attributes of a Zarr group, as far as they can be read; of others, "" for each of ours."""
    try:
        found = json.loads(objects.read(key))["attributes"]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def begun_part(store: Store, path: str) -> PartSpec | None:
    """A part that was begun, and does not belong to the store yet, as its group describes it."""
    try:
        spec = PartSpec.model_validate(_attributes(store.objects, f"{path}/{ROOT}").get(PART))
    except (FileNotFoundError, ValidationError):
        return None
    except OSError as error:
        raise _failed(store, error) from error
    return spec if spec.path == path else None


def commit(store: Store, change: Callable[[Store], StoreSpec]) -> Store:
    """Replace the root object by what `change` makes of the store as it is now.

    Raises:
        StoreError: if it cannot be written, or others change the store all the time.
    """
    for _ in range(_TRIES):
        now = open_store(store.objects)
        try:
            spec = change(now)
            if spec is now.spec:
                return now
            spec = spec.model_copy(update={"revision": now.spec.revision + 1})
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

    One that was begun before, or by another process, is gone on with as it was begun: with its
    layout. Its seals count as far as they can be right.

    Raises:
        StoreError: if it cannot be written.
    """
    known = next((part for part in store.parts if part.spec.path == spec.path), None)
    if known is not None:
        return known
    made, contents = part_objects(spec, store.numbers, manifest)
    try:
        try:
            store.objects.create(spec.path, contents)
        except FileExistsError:
            made = begun_part(store, spec.path) or made
        part = Part(store.objects, made, store.parts[0].fingerprints)
        _describe(part, store.numbers)  # the store may have other checkpoints by now
        for number in store.numbers:
            unseal_unfit(part, number)
    except OSError as error:
        raise _failed(store, error) from error
    return part


def add_parts(store: Store, parts: Sequence[Part]) -> Store:
    """Make finished parts belong to their store, all or none.

    Raises:
        UnsealedError: if one is not finished.
        StoreError: if one of their samples is in the store already.
    """

    def change(now: Store) -> StoreSpec:
        mine = {one.spec.path for one in now.parts}
        new = [part for part in parts if part.spec.path not in mine]
        if not new:
            return now.spec
        if now.spec.identity != store.spec.identity:
            raise StoreError(
                f"the checkpoints of {store.location} were changed meanwhile. Run the same command "
                "again: what is collected is kept."
            )
        for part in new:
            require_new(now, part.manifest)
            for number in now.numbers:
                _require_whole(now, part, number)
        return now.spec.model_copy(
            update={"parts": [*now.spec.parts, *(part.spec for part in new)]}
        )

    return commit(store, change)


def _require_whole(now: Store, part: Part, number: int) -> None:
    """Raise `StoreError` unless all of a part or a checkpoint that will belong to a store is there.

    Others may have written or removed some of it meanwhile. Whoever removes more from now on has
    changed the root before, so that it is not replaced by one that names what is gone.
    """
    retired = {part.spec.path, part.key(f"checkpoints/{number}"), part.key(f"seals/{number}")}
    if retired & set(now.spec.retired):
        raise StoreError(
            f"{part.location} is just being removed by vacuum. Run the same command again."
        )
    try:
        unseal_unfit(part, number)
    except OSError as error:
        raise _failed(now, error) from error
    part.require_sealed(number, range(part.layout.shards))


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
        content = now.deletions.with_more(more).content(now.spec.revision)
        key = f"deleted/{digest(content)}.parquet"
        store.objects.write(key, content)
        store.objects.flush([key])
        # The table that it replaces stays for those who opened the store before.
        return now.spec.model_copy(update={"deleted": key})

    return commit(store, change) if wanted else store


def vacuum(store: Store) -> Store:
    """Remove for good what was deleted, dropped, or left behind by what was cut off.

    Parts that lost samples are written anew without them, after every byte of them was compared
    with its seal. What appends or collects into the store meanwhile may have to be run again, and
    who reads it may have to open it again.

    Raises:
        StoreError: if a shard is not sealed or is damaged, or it cannot be written.
    """
    store = _clean(open_store(store.objects))
    lost = [part for part in store.parts if len(store.deletions.rows(part.spec.path))]
    if lost:
        store.require_complete()
        made: dict[str, Part | None] = {}
        for part in lost:
            kept = np.setdiff1d(np.arange(len(part)), store.deletions.rows(part.spec.path))
            made[part.spec.path] = _copy(store, part, kept) if len(kept) else None
        old = store.spec

        def change(now: Store) -> StoreSpec:
            if (now.spec.deleted, now.spec.identity) != (old.deleted, old.identity):
                raise StoreError(f"{store.location} was changed meanwhile. Run vacuum again.")
            for new in made.values():
                for number in now.numbers if new is not None else ():
                    _require_whole(now, new, number)  # type: ignore[arg-type]
            new_specs = {path: part and part.spec for path, part in made.items()}
            parts = [new_specs.get(part.path, part) for part in now.spec.parts]
            return now.spec.model_copy(
                update={
                    "parts": [part for part in parts if part is not None],
                    "deleted": None,
                    "retired": [*now.spec.retired, *(p for path in made for p in _all_of(path))],
                }
            )

        store = _clean(commit(store, change))
    return store


def _all_of(path: str) -> list[str]:
    """The prefixes of all that a part consists of."""
    return [path] if path else ["checkpoints", "seals", "samples"]


def _clean(store: Store) -> Store:
    """Remove what belongs to the store no more.

    What is not named by the root is put on its list of what is to be removed, before it is: who
    began it, and goes on, then cannot replace the root, and is told.
    """
    objects = store.objects
    try:
        keys = [key for key, _ in objects.sizes()]  # before the root is read: no newer ones

        def retire(now: Store) -> StoreSpec:
            more = sorted(_left_behind(keys, now) - set(now.spec.retired))
            if not more:
                return now.spec
            return now.spec.model_copy(update={"retired": [*now.spec.retired, *more]})

        store = commit(store, retire)
        gone = store.spec.retired
        for prefix in gone:
            if prefix.startswith("deleted/"):
                objects.remove(prefix)
            else:
                objects.remove_all(prefix)
        for temporary in {found[0] for found in map(_TEMPORARY.match, keys) if found}:
            remove = objects.remove_all if ".building-" in temporary else objects.remove
            remove(temporary)
    except OSError as error:
        raise _failed(store, error) from error
    if not gone:
        return store
    return commit(
        store,
        lambda now: now.spec.model_copy(
            update={"retired": [prefix for prefix in now.spec.retired if prefix not in gone]}
        ),
    )


def _left_behind(keys: Sequence[str], now: Store) -> set[str]:
    """What a store does not name: tables, parts and checkpoints that were replaced or cut off."""
    paths = {part.path for part in now.spec.parts}
    found = set()
    for key in keys:
        table, checkpoint, part = (kind.match(key) for kind in (_TABLE, _CHECKPOINT, _PART))
        if table and table[0] != now.spec.deleted:
            found.add(table[0])
        elif part and part[0] not in paths:
            found.add(part[0])
        elif checkpoint and int(checkpoint["number"]) not in now.numbers:
            found.add(checkpoint[0])
    return found


def _copy(store: Store, source: Part, rows: NDArray[np.int64]) -> Part:
    """Write some rows of a part, of this store or another, into a new part of this one.

    Raises:
        StoreError: if the rows are not what was sealed: they are not sealed anew.
    """
    manifest = source.manifest.chosen(rows)
    old = source.layout
    layout = Layout.choose(len(rows), old.slots, old.dim, old.dtype, old.shard_samples)
    spec = PartSpec(
        # Of its own: two who copy at once write nothing twice, and what was cut off begins anew.
        path=f"parts/{uuid4().hex}",
        layout=LayoutSpec.of(layout),
        made_by=source.spec.made_by,
    )
    part = open_part(store, spec, manifest)
    total = len(rows) * len(store.numbers)
    with progress(total, f"writing {spec.path}", "samples") as bar:
        for number in store.numbers:
            for shard in np.unique(rows // old.shard_samples).tolist():
                problem = check(source, number, shard)
                if problem:
                    raise StoreError(
                        f"{source.location}: checkpoint {number}, shard {shard}: {problem}. "
                        f"Nothing was changed. Run: gradstore verify {source.objects.location} "
                        "--repair"
                    )
            for shard in range(layout.shards):
                start, stop = layout.span(shard)
                arrays = source.take(number, rows[start:stop])
                write_arrays(part, number, shard, arrays)
                bar.update(stop - start)
    return part


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
    made = []
    for part in other.parts:
        kept = np.setdiff1d(np.arange(len(part)), other.deletions.rows(part.spec.path))
        if len(kept):
            made.append(_copy(store, part, kept))
    return add_parts(store, made)


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


def begin_checkpoint(store: Store, number: int, weights: str) -> None:
    """Make room for a checkpoint in every part; it belongs to the store when it is committed.

    Args:
        store: the store.
        number: the new checkpoint's number, from `next_number`.
        weights: the digest of its weights.

    Raises:
        StoreError: if another process has just begun another checkpoint under that number.
    """
    under = f"checkpoints/{number}"
    try:
        for part in store.parts:
            contents = {
                key.removeprefix(f"{under}/"): content
                for key, content in array_objects(part.layout, [number]).items()
                if key.startswith(f"{under}/")
            }
            group = json.loads(contents[ROOT])
            contents[ROOT] = json.dumps({**group, "attributes": {_WEIGHTS: weights}}).encode()
            try:
                part.objects.create(part.key(under), contents)
            except FileExistsError:
                if _begun_with(part, number) != weights:
                    raise StoreError(
                        f"{part.location}: another process has begun another checkpoint. Run the "
                        "same command again."
                    ) from None
    except OSError as error:
        raise _failed(store, error) from error


def commit_checkpoint(
    store: Store, parts: Sequence[Part], checkpoint: CheckpointSpec, identity: Identity
) -> Store:
    """Make a checkpoint that was collected in every part belong to its store.

    Args:
        store: the store without it.
        parts: its parts, with the fingerprints of the new rows.
        checkpoint: the new checkpoint.
        identity: the new identity, of all checkpoints.

    Raises:
        StoreError: if the store was changed meanwhile, or not all of it is there.
    """

    def change(now: Store) -> StoreSpec:
        if now.spec.parts != store.spec.parts or now.numbers != store.numbers:
            raise StoreError(
                f"{store.location} was changed meanwhile. Run the same command again: what is "
                "collected is kept."
            )
        for part in parts:
            _require_whole(now, part, checkpoint.number)
        return now.spec.model_copy(
            update={
                "identity": identity,
                "fingerprint": fingerprint(identity),
                "checkpoints": [*now.spec.checkpoints, checkpoint],
            }
        )

    return commit(store, change)


def _describe(part: Part, numbers: Sequence[int]) -> None:
    """Write what Zarr says of some checkpoints' arrays."""
    for key, content in array_objects(part.layout, numbers).items():
        if key.startswith(tuple(f"checkpoints/{number}/" for number in numbers)):
            part.objects.write(part.key(key), content)
