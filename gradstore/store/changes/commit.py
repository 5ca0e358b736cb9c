"""The commit protocol of every change of a store that stands.

All that is new is written first, where no reader looks; then the root object is replaced, which
makes the change visible at once to every later reader; then what no longer belongs to the store is
removed. A change that is killed anywhere has happened or has not.
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
    """Attributes of a Zarr group, as far as they can be read; of others, "" for each of ours."""
    try:
        found = json.loads(objects.read(key))["attributes"]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


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
            raise failed(store, error) from error
        return open_store(store.objects, skip_unsealed=store.skip_unsealed)
    raise StoreError(
        f"{store.location} was changed by others {_TRIES} times meanwhile. Run the same command "
        "again."
    )


def failed(store: Store, error: OSError) -> StoreError:
    """The error to raise where a change cannot be written."""
    return StoreError(
        f"{store.location} cannot be changed: {error.strerror or error}. It is as it was; make "
        "room or get the right to write, and run the same command again."
    )


def require_whole(now: Store, part: Part, number: int) -> None:
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
        raise failed(now, error) from error
    part.require_sealed(number, range(part.layout.shards))
