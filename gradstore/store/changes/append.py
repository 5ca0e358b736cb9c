"""Adding parts with more samples to a store."""

from __future__ import annotations

from itertools import chain, count
from typing import TYPE_CHECKING

from pydantic import ValidationError

from gradstore.errors import StoreError
from gradstore.store.changes.commit import (
    attributes,
    commit,
    failed,
    require_generation,
    require_whole,
)
from gradstore.store.format.root import ROOT
from gradstore.store.format.spec import PartSpec
from gradstore.store.objects.protocol import digest
from gradstore.store.part import Part
from gradstore.store.verify import unseal_unfit
from gradstore.store.writer import PART, array_objects, part_objects

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradstore.store.format.manifest import Manifest
    from gradstore.store.format.spec import ChangeName, StoreSpec
    from gradstore.store.reader import Store


def part_path(store: Store, manifest: Manifest) -> str:
    """Path of a part of these samples, the same in every process and at every attempt.

    The path is never that of a part with deleted samples, nor that of a part that was ever retired:
    every retirement begins a new generation. Format 1 keeps its list of retired names instead.
    """
    samples = list(manifest.ids), list(manifest.digests)
    for part in store.parts:
        if (
            part.spec.path
            and len(part) == len(manifest)
            and not len(store.deletions.rows(part.spec.path))
            and (part.manifest.ids, part.manifest.digests) == samples
        ):
            return part.spec.path
    taken = set(store.spec.retired) | {part.path for part in store.spec.parts}
    own = (*samples, store.spec.generation) if store.spec.generation else samples
    attempts = chain([own], ((*own, number) for number in count(1)))
    paths = (f"parts/{digest(repr(one).encode())}" for one in attempts)
    return next(path for path in paths if path not in taken)


def begun_part(store: Store, path: str) -> PartSpec | None:
    """The uncommitted part that the group at a path describes; None if there is none."""
    try:
        spec = PartSpec.model_validate(attributes(store.objects, f"{path}/{ROOT}").get(PART))
    except (FileNotFoundError, ValidationError):
        return None
    except OSError as error:
        raise failed(store, error) from error
    return spec if spec.path == path else None


def open_part(store: Store, spec: PartSpec, manifest: Manifest) -> Part:
    """Open a part that may be uncommitted, and create it if it does not exist.

    A part that was begun before, or by another process, is resumed with its own layout. Its invalid
    shards are unsealed.

    Raises:
        StoreError: if the part cannot be written.
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
        own = store.parts[0]
        part = Part(store.objects, made, own.fingerprints, fits=own.fits)
        describe(part, store.numbers)  # the store may have other checkpoints by now
        for number in store.numbers:
            unseal_unfit(part, number)
    except OSError as error:
        raise failed(store, error) from error
    return part


def add_parts(store: Store, parts: Sequence[Part], name: ChangeName = "append") -> Store:
    """Commit finished parts to their store, all or none.

    Args:
        store: the store, as it was when the parts were begun.
        parts: the parts.
        name: name of the change.

    Raises:
        UnsealedError: if a part is not finished.
        StoreError: if the store already holds one of their samples.
    """

    def change(now: Store) -> StoreSpec:
        mine = {one.spec.path for one in now.parts}
        new = [part for part in parts if part.spec.path not in mine]
        if not new:
            return now.spec
        if now.spec.identity != store.spec.identity:
            raise StoreError(
                f"the checkpoints of {store.location} were changed by another process. Run the "
                "same command again: collected rows are kept."
            )
        require_generation(now, store)
        for part in new:
            require_new(now, part.manifest)
            for number in now.numbers:
                require_whole(now, part, number)
        return now.spec.model_copy(
            update={"parts": [*now.spec.parts, *(part.spec for part in new)]}
        )

    return commit(store, name, change)


def require_new(store: Store, manifest: Manifest) -> None:
    """Raise `StoreError` if a store already holds one of these samples."""
    both = store.manifest.shared(manifest)
    if both:
        raise StoreError(
            f"{store.location} holds sample {min(both)!r} already (and {len(both) - 1} more of "
            "the new samples). Leave them out, give them other ids, or delete the old ones first: "
            f"gradstore delete {store.location} --ids {min(both)}"
        )


def describe(part: Part, numbers: Sequence[int]) -> None:
    """Write the Zarr metadata of the arrays of some checkpoints."""
    for key, content in array_objects(part.layout, numbers).items():
        if key.startswith(tuple(f"checkpoints/{number}/" for number in numbers)):
            part.objects.write(part.key(key), content)
