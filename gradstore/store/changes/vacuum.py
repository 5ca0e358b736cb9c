"""Removing what no longer belongs to a store."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np

from gradstore.errors import StoreError
from gradstore.progress import progress
from gradstore.store.changes.append import open_part
from gradstore.store.changes.commit import commit, failed, require_whole
from gradstore.store.format.layout import Layout
from gradstore.store.format.spec import LayoutSpec, PartSpec
from gradstore.store.opening import open_store
from gradstore.store.verify import check
from gradstore.store.writer import write_arrays

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gradstore.store.format.spec import StoreSpec
    from gradstore.store.part import Part
    from gradstore.store.reader import Store


# What may be left behind; whatever else somebody put into the folder is not touched.
_TABLE = re.compile(r"deleted/[0-9a-f]{32}\.parquet$")

_PART = re.compile("parts/[0-9a-f]{32}(?=/)")

_CHECKPOINT = re.compile("(parts/[0-9a-f]{32}/)?(checkpoints|seals)/(?P<number>[0-9]{1,7})(?=/)")

_TEMPORARY = re.compile(r"(.*/)?\.[^/]+\.(building-)?[0-9a-f]{32}(?=/|$)")


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
            made[part.spec.path] = copy(store, part, kept) if len(kept) else None
        old = store.spec

        def change(now: Store) -> StoreSpec:
            if (now.spec.deleted, now.spec.identity) != (old.deleted, old.identity):
                raise StoreError(f"{store.location} was changed meanwhile. Run vacuum again.")
            for new in made.values():
                for number in now.numbers if new is not None else ():
                    require_whole(now, new, number)  # type: ignore[arg-type]
            new_specs = {path: part and part.spec for path, part in made.items()}
            parts = [new_specs.get(part.path, part) for part in now.spec.parts]
            return now.spec.model_copy(
                update={
                    "parts": [part for part in parts if part is not None],
                    "deleted": None,
                    "retired": [*now.spec.retired, *(p for path in made for p in all_of(path))],
                }
            )

        store = _clean(commit(store, change))
    return store


def all_of(path: str) -> list[str]:
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
        raise failed(store, error) from error
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


def copy(store: Store, source: Part, rows: NDArray[np.int64]) -> Part:
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
