"""The commit protocol of every change of an existing store.

New objects are written first, where no reader looks. Then the root object is replaced, which makes
the change visible at once to every later reader. Only vacuum removes objects, those that no root
object names any more. A change that is killed at any point is complete or has no effect.

A vacuum that was stopped long ago may go on at any time and remove what it retired then. So no
retired name is ever used again. Checkpoints get numbers that were never used. Each change that
retires a part or a metric begins a new generation; new names of these contain their generation, and
what was begun in an earlier one is not committed.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from gradstore.errors import StoreError
from gradstore.store.commits import record, require_latest
from gradstore.store.format.root import ROOT, root_object
from gradstore.store.objects.protocol import ChangedError, digest
from gradstore.store.opening import open_store
from gradstore.store.verify import unseal_unfit

if TYPE_CHECKING:
    from collections.abc import Callable

    from gradstore.store.format.spec import ChangeName, StoreSpec
    from gradstore.store.objects.protocol import Objects
    from gradstore.store.part import Part
    from gradstore.store.reader import Store


_TRIES = 5
_NUMBER: Final = re.compile(r"(?:^|/)(?:checkpoints|seals)/([0-9]{1,7})$")
_GENERATED: Final = re.compile(r"parts/[0-9a-f]{32}$|samples$|metrics/")
_MOST_BYTES: Final = 1 << 20
_MOST_NUMBER: Final = 1 << 20


def attributes(objects: Objects, key: str) -> dict[str, Any]:
    """Attributes of a Zarr group; empty if the group's object cannot be parsed."""
    try:
        found = json.loads(objects.read(key, _MOST_BYTES))["attributes"]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def commit(store: Store, name: ChangeName, change: Callable[[Store], StoreSpec]) -> Store:
    """Replace the root object with the spec that `change` returns for the current store.

    Args:
        store: the store.
        name: name of the change.
        change: the change; it may be called several times.

    Raises:
        StoreError: if it cannot be written, other processes keep changing the store, or its root
            object was edited or replaced by an older one.
    """
    for _ in range(_TRIES):
        now = open_store(store.objects)
        try:
            spec = change(now)
            if spec is now.spec:
                return now
            if spec.format_version > 1 and now.spec.format_version > 1:
                require_latest(now)
            content = root_object(_successor(now, spec, name))
            store.objects.replace(ROOT, content, seen=now.root)
        except ChangedError:
            continue
        except OSError as error:
            raise failed(store, error) from error
        after = open_store(store.objects, skip_unsealed=store.skip_unsealed)
        if after.spec.format_version > 1 and after.root == content:
            with suppress(OSError):  # the change is effective; the next one records it
                record(after.objects, after.spec)
        return after
    raise StoreError(
        f"{store.location} was changed by other processes {_TRIES} times in a row. Run the same "
        "command again."
    )


def _successor(before: Store, spec: StoreSpec, name: ChangeName) -> StoreSpec:
    """The spec of a change, as the successor of the present one."""
    now = before.spec
    retired = set(spec.retired) - set(now.retired)
    found = [_NUMBER.search(prefix) for prefix in spec.retired]
    numbers = [int(one[1]) for one in found if one]
    numbers += [one.number for one in (*now.checkpoints, *spec.checkpoints)]
    chain = {
        "change": name,
        "previous": now.digest,
        # Numbers of checkpoints and tables of deleted rows have other unique names.
        "generation": now.generation + any(_GENERATED.match(one) for one in retired),
        "next_number": max(now.next_number, 1 + max(n for n in numbers if n < _MOST_NUMBER)),
    }
    if spec.format_version > 1:
        chain["samples_hash"] = _samples_hash(before, spec, name)
    more = {"revision": now.revision + 1, **(chain if spec.format_version > 1 else {})}
    try:
        return type(spec).model_validate({**spec.model_dump(), **more})
    except ValidationError as error:
        raise StoreError(
            f"a store of {now.revision} changes cannot be changed: {error.errors()[0]['msg']}. "
            "Copy its samples into a new one with gradstore merge."
        ) from error


def _samples_hash(before: Store, spec: StoreSpec, name: ChangeName) -> str:
    """The hash of the samples after a change, from the one before it."""
    if name not in {"append", "merge", "delete"}:
        return before.samples_hash
    old = {part.path for part in before.spec.parts}
    new = [part.manifest_sha256 or part.path for part in spec.parts if part.path not in old]
    return digest(json.dumps([before.samples_hash, new, spec.deleted]).encode())


def failed(store: Store, error: OSError) -> StoreError:
    """The error to raise if a change cannot be written."""
    return StoreError(
        f"{store.location} cannot be changed: {error.strerror or error}. Free disk space, "
        "restore the network or get write permission, and run the same command again."
    )


def require_generation(now: Store, begun: Store) -> None:
    """Raise `StoreError` if names were retired since a store was opened to begin something."""
    if now.spec.generation != begun.spec.generation:
        raise StoreError(f"{now.location} was vacuumed while this ran. Run the same command again.")


def require_whole(now: Store, part: Part, number: int) -> None:
    """Raise `StoreError` unless a part or a checkpoint to be committed is complete.

    Other processes may have written or removed some of its objects. A process that removes more of
    them changes the root first, so that this commit fails and names no removed objects.
    """
    retired = {part.spec.path, part.key(f"checkpoints/{number}"), part.key(f"seals/{number}")}
    if retired & set(now.spec.retired):
        raise StoreError(
            f"{part.location} is just being removed by vacuum. Run the same command again."
        )
    try:
        every = range(part.layout.shards)
        lacking = set(every) - unseal_unfit(part, number, every)
    except OSError as error:
        raise failed(now, error) from error
    if lacking:
        raise part.unsealed(number, lacking)
