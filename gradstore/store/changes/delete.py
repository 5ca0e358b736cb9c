"""Deleting samples: they are hidden at once, and their bytes stay until vacuum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gradstore.errors import StoreError
from gradstore.store.changes.commit import commit
from gradstore.store.objects.protocol import digest
from gradstore.store.opening import as_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradstore.store.format.spec import StoreSpec
    from gradstore.store.opening import StoreLike
    from gradstore.store.reader import Store


def delete(store: StoreLike, ids: Sequence[str]) -> Store:
    """Delete samples: the store hides them from everyone who opens it from now on.

    Their bytes stay until `vacuum`.

    Args:
        store: the store.
        ids: ids of samples in the store.

    Returns:
        The changed store.

    Raises:
        StoreError: if the store does not hold one of them, or if no sample would remain.

    Examples:
        >>> import gradstore as gs
        >>> store = gs.delete("train.gradstore", ["cat/0.png", "dog/1.png"])
        >>> len(store)
        5
    """
    store = as_store(store)
    wanted = set(ids)

    def change(now: Store) -> StoreSpec:
        unknown = wanted - now.manifest.find(wanted).keys()
        if unknown:
            raise StoreError(
                f"{store.location} holds no sample {min(unknown)!r} (and {len(unknown) - 1} more "
                "of the given ids); nothing was changed. `gradstore info` names the table of ids."
            )
        if len(wanted) == now.samples:
            raise StoreError(
                f"these are all {now.samples} samples of {store.location}; nothing was changed. "
                "Remove the whole store instead."
            )
        more = {}
        for part in now.parts:
            rows = part.manifest.find(wanted).values()
            # An id that was deleted here before may have been added again in another part.
            more[part.spec.path] = np.unique(np.array(list(rows), np.int64))
        content = now.deletions.with_more(more).content(now.spec.revision)
        key = f"deleted/{digest(content)}.parquet"
        store.objects.write(key, content)
        store.objects.flush([key])
        # The replaced table stays for readers that opened the store before.
        return now.spec.model_copy(update={"deleted": key})

    return commit(store, "delete", change) if wanted else store
