"""The commit protocol of every change of an existing store.

New objects are written first, where no reader looks. Then the root object is replaced, which makes
the change visible at once to every later reader. Only vacuum removes objects, those that no root
object names any more. A change that is killed at any point is complete or has no effect.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gradstore.errors import StoreError
from gradstore.store.format.root import ROOT, root_object
from gradstore.store.objects.protocol import ChangedError
from gradstore.store.opening import open_store
from gradstore.store.verify import unseal_unfit

if TYPE_CHECKING:
    from collections.abc import Callable

    from gradstore.store.format.spec import StoreSpec
    from gradstore.store.objects.protocol import Objects
    from gradstore.store.part import Part
    from gradstore.store.reader import Store


_TRIES = 5


def attributes(objects: Objects, key: str) -> dict[str, Any]:
    """Attributes of a Zarr group; empty if the group's object cannot be parsed."""
    try:
        found = json.loads(objects.read(key))["attributes"]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def commit(store: Store, change: Callable[[Store], StoreSpec]) -> Store:
    """Replace the root object with the spec that `change` returns for the current store.

    Raises:
        StoreError: if it cannot be written, or other processes keep changing the store.
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
            raise failed(store, error) from error
        return open_store(store.objects, skip_unsealed=store.skip_unsealed)
    raise StoreError(
        f"{store.location} was changed by other processes {_TRIES} times in a row. Run the same "
        "command again."
    )


def failed(store: Store, error: OSError) -> StoreError:
    """The error to raise if a change cannot be written."""
    return StoreError(
        f"{store.location} cannot be changed: {error.strerror or error}. Nothing was changed. Free "
        "disk space or get write permission, and run the same command again."
    )


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
        unseal_unfit(part, number)
    except OSError as error:
        raise failed(now, error) from error
    part.require_sealed(number, range(part.layout.shards))
