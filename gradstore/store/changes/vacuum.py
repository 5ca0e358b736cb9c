"""Removing objects that no longer belong to a store."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np

from gradstore.errors import StoreError
from gradstore.progress import progress
from gradstore.store.changes.append import open_part
from gradstore.store.changes.commit import commit, failed, require_whole
from gradstore.store.format.layout import Layout, row_columns
from gradstore.store.format.spec import FORMAT_VERSION, LayoutSpec, PartSpec
from gradstore.store.metrics import metric_key
from gradstore.store.opening import as_store, open_store
from gradstore.store.verify import check
from gradstore.store.writer import write_arrays

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gradstore.store.format.spec import StoreSpec
    from gradstore.store.opening import StoreLike
    from gradstore.store.part import Part
    from gradstore.store.reader import Store


# Objects that may be left behind; other files in the folder are not touched.
_TABLE = re.compile(r"deleted/[0-9a-f]{32}\.parquet$")

_PART = re.compile("parts/[0-9a-f]{32}(?=/)")

_CHECKPOINT = re.compile("(parts/[0-9a-f]{32}/)?(checkpoints|seals)/(?P<number>[0-9]{1,7})(?=/)")

_METRIC = re.compile(r"metrics/[0-9a-f]{64}\.[0-9]{1,16}\.safetensors$")

_TEMPORARY = re.compile(
    r"(.*/)?\.[^/]+\.(building-)?[0-9a-f]{32}(?=/|$)"
    r"|(parts/[0-9a-f]{32}/)?seals/[0-9]{1,7}/[0-9]{1,19}\.lease$"
)


def vacuum(store: StoreLike, *, upgrade: bool = False) -> Store:
    """Permanently remove deleted samples, dropped checkpoints and leftovers of interrupted runs.

    Parts with deleted samples are rewritten without them, after every byte is compared with its
    seal. A concurrent append or collection may have to be run again, and readers may have to open
    the store again.

    Args:
        store: the store.
        upgrade: rewrite a store of an older format in the present one, which older versions of
            gradstore do not read.

    Raises:
        StoreError: if a shard is not sealed or is damaged, or the store cannot be written.

    Examples:
        >>> import gradstore as gs
        >>> store = gs.delete("train.gradstore", ["cat/0.png"])
        >>> len(store.deletions), len(gs.vacuum(store).deletions)
        (1, 0)
    """
    before = _clean(open_store(as_store(store).objects))
    version = FORMAT_VERSION if upgrade else before.spec.format_version
    old_format = version != before.spec.format_version
    lost = [
        part for part in before.parts if old_format or len(before.deletions.rows(part.spec.path))
    ]
    if lost:
        before.require_complete()
        made: dict[str, Part | None] = {}
        for part in lost:
            kept = np.setdiff1d(np.arange(len(part)), before.deletions.rows(part.spec.path))
            columns = row_columns(before.dtype) if old_format else None
            made[part.spec.path] = copy(before, part, kept, columns) if len(kept) else None
        old = before.spec

        def change(now: Store) -> StoreSpec:
            same = (now.spec.deleted, now.spec.identity) == (old.deleted, old.identity)
            same = same and now.spec.generation == old.generation
            if not same or (old_format and now.spec.parts != old.parts):
                raise StoreError(
                    f"{before.location} was changed by another process. Run vacuum again."
                )
            for new in filter(None, made.values()):
                for number in now.numbers:
                    require_whole(now, new, number)
            new_specs = {path: part and part.spec for path, part in made.items()}
            parts = [new_specs.get(part.path, part) for part in now.spec.parts]
            return now.spec.model_copy(
                update={
                    "parts": [part for part in parts if part is not None],
                    "deleted": None,
                    "format_version": version,
                    "retired": [*now.spec.retired, *(p for path in made for p in all_of(path))],
                }
            )

        return _clean(commit(before, "vacuum", change))
    return before


def all_of(path: str) -> list[str]:
    """The prefixes of all objects of a part."""
    return [path] if path else ["checkpoints", "seals", "samples"]


def _clean(store: Store) -> Store:
    """Remove objects that no longer belong to the store.

    Prefixes that the root does not name are added to its list `retired` before they are removed.
    A process that still writes below them then cannot replace the root, and gets an error.
    """
    objects = store.objects
    try:
        keys = [key for key, _ in objects.sizes()]  # before the root is read: no newer keys

        def retire(now: Store) -> StoreSpec:
            more = sorted(_left_behind(keys, now) - set(now.spec.retired))
            if not more:
                return now.spec
            return now.spec.model_copy(update={"retired": [*now.spec.retired, *more]})

        store = commit(store, "vacuum", retire)
        gone = store.spec.retired
        for prefix in gone:
            if prefix.startswith(("deleted/", "metrics/")):
                objects.remove(prefix)
            else:
                objects.remove_all(prefix)
        for temporary in {found[0] for found in map(_TEMPORARY.match, keys) if found}:
            remove = objects.remove_all if ".building-" in temporary else objects.remove
            remove(temporary)
    except OSError as error:
        raise failed(store, error) from error
    if not gone or store.spec.format_version == 1:  # which has no generations, see `part_path`
        return store
    return commit(
        store,
        "vacuum",
        lambda now: now.spec.model_copy(
            update={"retired": [prefix for prefix in now.spec.retired if prefix not in gone]}
        ),
    )


def left_inside(store: Store) -> list[str]:
    """What vacuum would remove: prefixes and keys of interrupted commands, or of running ones.

    Raises:
        StoreError: if the store cannot be listed.
    """
    try:
        keys = [key for key, _ in store.objects.sizes()]
    except OSError as error:
        raise StoreError(
            f"{store.location} cannot be listed: {error.strerror or error}. Check that the disk or "
            "network is available."
        ) from error
    temporary = {found[0] for found in map(_TEMPORARY.match, keys) if found}
    left = _left_behind(keys, open_store(store.objects)) | temporary
    return sorted(left.union(*(_below(prefix, keys) for prefix in store.spec.retired)))


def _below(prefix: str, keys: Sequence[str]) -> set[str]:
    """The prefix, if there still are objects of it."""
    return {prefix} if any(f"{key}/".startswith(f"{prefix}/") for key in keys) else set()


def _left_behind(keys: Sequence[str], now: Store) -> set[str]:
    """Prefixes that a store does not name: replaced or unfinished tables, parts, checkpoints, …."""
    paths = {part.path for part in now.spec.parts}
    metrics = {metric_key(one.metric) for one in now.spec.checkpoints if one.metric}
    found = set()
    for key in keys:
        table, checkpoint, part = (kind.match(key) for kind in (_TABLE, _CHECKPOINT, _PART))
        if table and table[0] != now.spec.deleted:
            found.add(table[0])
        elif _METRIC.match(key) and key not in metrics:
            found.add(key)
        elif part and part[0] not in paths:
            found.add(part[0])
        elif checkpoint and int(checkpoint["number"]) not in now.numbers:
            found.add(checkpoint[0])
    return found


def copy(
    store: Store,
    source: Part,
    rows: NDArray[np.int64],
    columns: tuple[str, ...] | None = None,
) -> Part:
    """Copy some rows of a part, of this store or another, into a new part of this one.

    Args:
        store: the store that gets the part.
        source: the part.
        rows: numbers of its samples, ascending.
        columns: columns of the new part's layout; by default those of the store.

    Raises:
        StoreError: if the rows differ from their seal: damaged rows are not sealed again.
    """
    manifest = source.manifest.chosen(rows)
    old = source.layout
    layout = Layout.choose(
        len(rows),
        old.slots,
        old.dim,
        old.dtype,
        old.shard_samples,
        columns=store.parts[0].layout.columns if columns is None else columns,
    )
    spec = PartSpec(
        # A unique path: concurrent copies do not collide, and an interrupted copy starts over.
        path=f"parts/{uuid4().hex}",
        layout=LayoutSpec.of(layout),
        made_by=source.spec.made_by,
    )
    part = open_part(store, spec, manifest)
    total = len(rows) * len(store.numbers)
    with progress(total, f"writing {spec.path}", "samples") as bar:
        for number in store.numbers:
            metrics = set()
            for shard in np.unique(rows // old.shard_samples).tolist():
                metrics.add(source.seal(number, shard).metric)
                problem = check(source, number, shard)
                if problem:
                    raise StoreError(
                        f"{source.location}: checkpoint {number}, shard {shard}: {problem}. "
                        f"Nothing was changed. Run: gradstore verify {source.objects.location} "
                        "--repair"
                    )
            if len(metrics) > 1:
                raise StoreError(
                    f"{source.location}: the rows of checkpoint {number} went through different "
                    "fits of the metric. Nothing was changed. Collect them again."
                )
            (metric,) = metrics
            for shard in range(layout.shards):
                start, stop = layout.span(shard)
                arrays = source.take(number, rows[start:stop])
                write_arrays(part, number, shard, arrays, metric)
                bar.update(stop - start)
    return part
