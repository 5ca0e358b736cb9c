"""Deleting samples: they are hidden at once, and their bytes stay until vacuum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gradstore.errors import StoreError
from gradstore.store.changes.commit import commit
from gradstore.store.objects.protocol import digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradstore.store.format.spec import StoreSpec
    from gradstore.store.reader import Store


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
