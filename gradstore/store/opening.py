"""Opening a store: its root object is read and checked first."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import ValidationError

from gradstore.errors import NotAStoreError, StoreError
from gradstore.store.format.fingerprint import fingerprint
from gradstore.store.format.root import ROOT, root_digest
from gradstore.store.format.spec import FORMAT_VERSION, StoreSpec
from gradstore.store.objects.location import objects_at
from gradstore.store.part import MANIFEST
from gradstore.store.reader import Store

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from gradstore.store.format.spec import PartSpec
    from gradstore.store.objects.protocol import Objects

StoreLike: TypeAlias = "Store | str | os.PathLike[str]"
"""A store, or its path or URL."""

_MOST_ROOT_BYTES = 64 * 2**20
_BELIEVED_SAMPLES = 1 << 20


def open_store(location: str | os.PathLike[str] | Objects, *, skip_unsealed: bool = False) -> Store:
    """Open a store.

    Args:
        location: its folder or URL.
        skip_unsealed: leave out samples whose shards are not all sealed yet, and log their number.
            By default, reading such samples raises an error.

    Raises:
        NotAStoreError: if there is no store.
        StoreError: if this version cannot read its format, or its attributes are wrong.

    Examples:
        >>> import gradstore as gs
        >>> gs.open_store("train.gradstore")
        Store('train.gradstore', checkpoints=2, samples=7, slots=10, dim=64)
    """
    objects = objects_at(location)
    where = objects.location
    try:
        root = objects.read(ROOT, _MOST_ROOT_BYTES)
        attributes: Any = json.loads(root)["attributes"]["gradstore"]
        version = attributes["format_version"]
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, OSError) and not isinstance(
            error, FileNotFoundError | NotADirectoryError
        ):
            raise StoreError(
                f"{where} cannot be read: {error.strerror or error}. Check that the disk or "
                "network is available and that you have read permission."
            ) from error
        raise NotAStoreError(
            f"{where} is not a gradient store: it has no zarr.json with a 'gradstore' "
            "attribute. Give the folder that `gradstore collect` wrote (NAME.gradstore)."
        ) from error
    if version not in range(1, FORMAT_VERSION + 1):
        raise StoreError(
            f"{where} has store format {repr(version)[:20]}; this gradstore reads formats 1 "
            f"to {FORMAT_VERSION}. Install a gradstore that reads it (pip install -U gradstore)."
        )
    try:
        spec = StoreSpec.model_validate(attributes)
        _require_unchanged(spec, attributes)
        _require_plausible(objects, spec.parts)
        return Store(objects, spec, root, skip_unsealed=skip_unsealed)
    except ValidationError as error:
        first = error.errors()[0]
        what, found = ".".join(map(str, first["loc"])) or "gradstore", first["msg"]
    except (StoreError, RecursionError, ValueError) as error:
        what, found = "gradstore", str(error)
    raise StoreError(
        f"{where}/zarr.json: attribute {what} is wrong: {found}. Restore zarr.json from a copy of "
        "the store."
    )


def as_store(store: StoreLike) -> Store:
    """Return a store, after opening it if a path or URL is given."""
    return store if isinstance(store, Store) else open_store(store)


def _require_unchanged(spec: StoreSpec, attributes: dict[str, Any]) -> None:
    """Raise `StoreError` if a root object does not have its own digests."""
    if fingerprint(spec.identity) != spec.fingerprint:
        raise StoreError("fingerprint is not that of identity")
    if spec.format_version > 1 and spec.digest != root_digest(attributes):
        raise StoreError("digest is not that of the other attributes: one was changed by hand")


def _require_plausible(objects: Objects, parts: Sequence[PartSpec]) -> None:
    """Raise `StoreError` if parts claim more samples than their manifests can list.

    Claims of up to a million samples in total are accepted: larger ones could exhaust the memory.
    """
    believed = 0
    for part in sorted(parts, key=lambda part: part.layout.samples):
        believed += part.layout.samples
        if believed <= _BELIEVED_SAMPLES:
            continue
        key = f"{part.path}/{MANIFEST}".lstrip("/")
        try:
            size = objects.size(key)
        except OSError as error:
            raise StoreError(f"{key} cannot be read: {error.strerror}") from error
        if size < part.layout.samples:
            raise StoreError(
                f"{part.layout.samples} samples are not listed in {size} bytes of {key}"
            )


def looks_like_store(location: str | os.PathLike[str] | Objects) -> bool:
    """Whether a location holds a store, of any format and in any state."""
    try:
        open_store(location)
    except NotAStoreError:
        return False
    except StoreError:
        return True
    return True
