"""Merging stores with the same checkpoints and different samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gradstore.errors import FingerprintError
from gradstore.store.changes.append import add_parts, require_new
from gradstore.store.changes.vacuum import copy
from gradstore.store.format.fingerprint import require_same
from gradstore.store.opening import as_store, open_store

if TYPE_CHECKING:
    from gradstore.store.opening import StoreLike
    from gradstore.store.reader import Store


def merge(store: StoreLike, other: StoreLike) -> Store:
    """Copy all samples of another store into this one; the other store is not changed.

    Args:
        store: the store that grows.
        other: a complete store with the same fingerprint and checkpoint weights and other samples.

    Returns:
        The changed store.

    Raises:
        FingerprintError: if the rows of the two stores cannot be compared.
        StoreError: if a sample is in both.

    Examples:
        >>> import gradstore as gs
        >>> store = gs.merge("train.gradstore", "more.gradstore")
        >>> len(store)
        9
    """
    other = as_store(other)
    store = open_store(as_store(store).objects)
    require_same(
        store.spec.identity,
        other.spec.identity,
        expected_name=store.location,
        found_name=other.location,
        sections=tuple(store.spec.identity.keys() | other.spec.identity.keys()),
        mend="collect the other store's samples with this store's configuration: gradstore append",
    )
    if (store.etas, store.numbers) != (other.etas, other.numbers):
        raise FingerprintError(
            f"{other.location} has checkpoint weights {other.etas}, {store.location} has "
            f"{store.etas}. Collect both with the same --etas."
        )
    fits = [[one.metric_sha256 for one in each.spec.checkpoints] for each in (store, other)]
    if fits[0] != fits[1]:
        raise FingerprintError(
            f"{other.location} and {store.location} hold different fits of their metric. Collect "
            f"the other store's samples into {store.location}: gradstore append"
        )
    other.require_complete()
    require_new(store, other.manifest)
    made = []
    for part in other.parts:
        kept = np.setdiff1d(np.arange(len(part)), other.deletions.rows(part.spec.path))
        if len(kept):
            made.append(copy(store, part, kept))
    return add_parts(store, made, "merge")
