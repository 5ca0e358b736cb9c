"""Filters that choose the training samples to search: by label, group or id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gradstore.errors import QueryError
from gradstore.store.format.columns import coded

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from gradstore.store.reader import Store


def matching_samples(
    store: Store,
    *,
    where: Mapping[str, Collection[Any]] | None = None,
    ids: Collection[str] | None = None,
) -> NDArray[np.int64] | None:
    """Ascending numbers of the samples that pass all filters; None without a filter.

    Args:
        store: the training store.
        where: allowed values by manifest column, such as `{"label": [3, 5]}`. They are compared as
            text, since flags and files contain text.
        ids: allowed ids.

    Raises:
        QueryError: if the store has no such column or id, or no sample is left.

    Examples:
        >>> import gradstore as gs
        >>> store = gs.open_store("train.gradstore")
        >>> keep = gs.matching_samples(store, where={"label": ["cat"]})
        >>> keep.tolist()
        [0, 1, 2, 3]
        >>> answer = gs.search(store, "asked.gradstore", 3, measure="retrac", keep=keep)
    """
    if not where and ids is None:
        return None
    manifest = store.manifest
    keep = np.ones(store.samples, bool)
    for name, values in (where or {}).items():
        if name not in manifest.metadata:
            known = ", ".join(sorted(manifest.metadata)) or "none"
            raise QueryError(f"{store.location} has no column {name!r}; it has {known}.")
        allowed = {str(value) for value in values}
        keep &= np.concatenate(
            [
                np.array([str(value) in allowed for value in found])[places]
                for found, places in coded(manifest.metadata[name])
            ]
        )
    if ids is not None:
        rows = manifest.find(ids)
        unknown = sorted(set(ids) - rows.keys())
        if unknown:
            raise QueryError(
                f"{store.location} has no sample {unknown[0]!r}"
                + (f" nor {len(unknown) - 1} more of the ids given." if len(unknown) > 1 else ".")
            )
        keep &= np.isin(np.arange(store.samples), np.array(list(rows.values()), np.int64))
    if not keep.any():
        raise QueryError(f"no sample of {store.location} is left by the filter.")
    return np.flatnonzero(keep)


chosen = matching_samples  # the earlier name
