"""Writing a store: create it atomically, then fill it one sealed shard at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from gradstore.errors import StoreError
from gradstore.store.format.encoding import encode_column
from gradstore.store.format.layout import DTYPES, row_columns
from gradstore.store.format.manifest import manifest_spec
from gradstore.store.format.root import ROOT, root_object
from gradstore.store.format.rows import given_dtype
from gradstore.store.leases import LostError, leased
from gradstore.store.objects.local import LocalObjects
from gradstore.store.objects.location import objects_at
from gradstore.store.opening import looks_like_store, open_store
from gradstore.store.part import MANIFEST
from gradstore.store.seals import COLUMNS, Seal, SealedObject

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    from gradstore.store.format.layout import Layout
    from gradstore.store.format.manifest import Manifest
    from gradstore.store.format.rows import Rows
    from gradstore.store.format.spec import PartSpec, StoreSpec
    from gradstore.store.objects.protocol import Objects
    from gradstore.store.part import Part
    from gradstore.store.reader import Store


PART: Final = "gradstore_part"
"""Attribute of a part's group that describes the part."""

# `c.7.0.0`, not `c/7/0/0`: a folder per shard would have to be flushed as well.
_KEYS: Final[Any] = {"name": "default", "separator": "."}


def create(
    location: str | os.PathLike[str] | Objects, spec: StoreSpec, manifest: Manifest
) -> Store:
    """Create an empty store.

    Afterwards there is either a complete store or none.

    Args:
        location: folder or URL, which must not exist.
        spec: attributes of the store, with one part.
        manifest: its samples, in the number of the part's layout.

    Raises:
        StoreError: if the location exists or cannot be written.
    """
    objects = objects_at(location)
    refuse_existing(objects)
    part, contents = part_objects(spec.parts[0], [c.number for c in spec.checkpoints], manifest)
    known = manifest.hash() if spec.format_version > 1 else None
    spec = spec.model_copy(update={"parts": [part], "samples_hash": known})
    contents[ROOT] = root_object(spec)
    try:
        objects.create("", contents)
    except OSError as error:
        refuse_existing(objects)  # if another process created it first
        raise StoreError(
            f"{objects.location} cannot be created: {error.strerror or error}. Free disk space or "
            "get write permission, or choose another --store."
        ) from error
    return open_store(objects)


def refuse_existing(objects: Objects) -> None:
    """Raise `StoreError` if a location already exists."""
    store = looks_like_store(objects)
    local = isinstance(objects, LocalObjects) and (
        objects.root.exists() or objects.root.is_symlink()
    )
    if store or local:
        what = "a store" if store else "something that is not a store"
        raise StoreError(
            f"{objects.location} exists and is {what}; nothing was changed. Choose another "
            "--store, or move it away."
        )


def part_objects(
    spec: PartSpec, numbers: Iterable[int], manifest: Manifest
) -> tuple[PartSpec, dict[str, bytes]]:
    """An empty part and its objects by key below it: manifest and Zarr metadata of the arrays.

    Args:
        spec: the part.
        numbers: numbers of the checkpoints that have arrays in the part.
        manifest: its samples.

    Returns:
        The part with the digest of its manifest, and the objects. The attributes of the part's
        group also hold the part, so that another process resumes it with the same layout.

    Raises:
        StoreError: if the number of samples differs from the layout.
    """
    layout = spec.layout.layout()
    if len(manifest) != layout.samples:
        raise StoreError(f"{len(manifest)} samples for a layout of {layout.samples}")
    listed = manifest.content()
    more = {"manifest": manifest_spec(listed)} if layout.columns else {}
    spec = spec.model_copy(update={"manifest_sha256": sha256(listed).hexdigest(), **more})
    described = array_objects(layout, numbers, attributes={PART: spec.model_dump(mode="json")})
    return spec, {MANIFEST: listed, **described}


def array_objects(
    layout: Layout, numbers: Iterable[int], attributes: Mapping[str, Any] | None = None
) -> dict[str, bytes]:
    """Zarr metadata of the arrays of some checkpoints, by key below the part.

    Args:
        layout: shapes of the arrays.
        numbers: numbers of the checkpoints.
        attributes: attributes of the part's group.
    """
    found: dict[str, Any] = {}
    zarr.create_group(
        MemoryStore(found), zarr_format=3, attributes=dict(attributes) if attributes else None
    )
    group = {key: content.to_bytes() for key, content in found.items()}
    return {**_arrays(layout, tuple(numbers)), **group}


@lru_cache(maxsize=8)
def _arrays(layout: Layout, numbers: tuple[int, ...]) -> Mapping[str, bytes]:
    """`array_objects` for a group without attributes, cached because layouts are few."""
    found: dict[str, Any] = {}
    root = zarr.create_group(MemoryStore(found), zarr_format=3)
    for number in numbers:
        _create_arrays(root.create_group(f"checkpoints/{number}"), layout)
    return {key: content.to_bytes() for key, content in found.items()}


def _create_arrays(group: zarr.Group, layout: Layout) -> None:
    group.create_array(
        "direction",
        shape=(layout.samples, layout.slots, layout.dim),
        chunks=(layout.chunk_samples, layout.slots, layout.dim),
        shards=(layout.shard_samples, layout.slots, layout.dim),
        dtype=layout.dtype,
        # NaN marks unwritten values: a missing chunk silently reads as the fill value.
        fill_value=0 if layout.dtype == "int8" else float("nan"),
        filters=None,
        # The sharding codec checks only its index, so each chunk has its own checksum. No
        # compression: zstd saves 8% and makes a scattered read eight times slower.
        compressors=Crc32cCodec(),
        dimension_names=["sample", "slot", "dim"],
        chunk_key_encoding=_KEYS,
    )
    if layout.columns:
        group.create_array(
            COLUMNS,
            shape=(layout.samples, layout.slots, len(layout.columns)),
            chunks=(layout.shard_samples, layout.slots, len(layout.columns)),
            dtype="float32",
            fill_value=float("nan"),
            filters=None,
            compressors=Crc32cCodec(),
            dimension_names=["sample", "slot", "column"],
            chunk_key_encoding=_KEYS,
            attributes={"columns": list(layout.columns)},
        )
        return
    for name in row_columns(layout.dtype):
        dtype = DTYPES[name]
        group.create_array(
            name,
            shape=(layout.samples, layout.slots),
            chunks=(layout.shard_samples, layout.slots),
            dtype=dtype,
            fill_value=_fill(dtype),
            filters=None,
            compressors=Crc32cCodec(),
            dimension_names=["sample", "slot"],
            chunk_key_encoding=_KEYS,
        )


def _fill(dtype: str) -> float:
    return -1 if dtype == "int32" else float("nan")


# Bytes: a smaller shard is written faster than a thread starts.
_SMALL: Final = 1 << 20

STEPS: Final = ("begun", "unsealed", "written", "flushed", "sealed", "seal flushed")
"""The steps of writing a shard, in order. A process may die at any of them."""


def reached(step: str) -> None:
    """Called at each of `STEPS`. Does nothing; tests replace it."""


def write_shard(
    part: Part, number: int, shard: int, rows: Rows, *, metric: str | None = None
) -> None:
    """Write one whole shard, then its seal.

    The seal is a single small object, written last and atomically. A shard without a seal does not
    count, so a crash at any point leaves the shard either finished or to be written again. The
    sealed objects are flushed to the disk before the seal, so this also holds after a power loss.

    Args:
        part: the part of the store.
        number: number of the checkpoint.
        shard: number of the shard.
        rows: exactly the rows of the shard.
        metric: SHA-256 of the fitted metric that they went through.

    Raises:
        StoreError: if the rows do not fit the shard, are not finite, or cannot be written.
    """
    layout = part.layout
    start, stop = layout.span(shard)
    where = f"{part.location}: checkpoint {number}, shard {shard}"
    # An int8 row gets its scale later.
    plain = {name: dtype for name, dtype in part.columns.items() if name != "scale"}
    for name in ("direction", *plain):
        array = getattr(rows, name)
        if array is None:
            raise StoreError(f"{where}: {name} is missing")
        shape = (stop - start, layout.slots) + ((layout.dim,) if name == "direction" else ())
        dtype = given_dtype(layout.dtype) if name == "direction" else plain[name]
        if array.shape != shape or array.dtype != dtype:
            raise StoreError(f"{where}: {name} is {array.dtype} {array.shape}, not {dtype} {shape}")
        if not _finite(array):
            raise StoreError(f"{where}: {name} is not finite")
    write_arrays(part, number, shard, rows.stored(layout.dtype), metric)


def _finite(array: NDArray[Any]) -> bool:
    if array.dtype == np.float16:  # tests the bits: numpy's own test takes six times longer
        return bool((array.view(np.uint16) & 0x7FFF).max(initial=0) < 0x7C00)
    return bool(np.isfinite(array).all())


def write_arrays(
    part: Part,
    number: int,
    shard: int,
    arrays: Mapping[str, NDArray[Any]],
    metric: str | None = None,
) -> None:
    """`write_shard` for arrays in their stored form."""
    where = f"{part.location}: checkpoint {number}, shard {shard}"
    objects, layout = part.objects, part.layout
    contents: dict[str, bytes | bytearray] = {"direction": part.codec.encode(arrays["direction"])}
    if layout.columns:
        joined = np.stack([arrays[name] for name in layout.columns], axis=-1).astype(np.float32)
        contents[COLUMNS] = encode_column(joined, float("nan"), layout.shard_samples)
    else:
        for name, dtype in part.columns.items():
            contents[name] = encode_column(arrays[name], _fill(dtype), layout.shard_samples)
    encoded = _Encoded(contents, len(arrays["direction"]), metric)
    try:
        if objects.remote:
            _write_leased(part, number, shard, encoded)
        else:
            _write(part, number, shard, encoded)
    except OSError as error:
        raise StoreError(
            f"{where} cannot be written: {error.strerror or error}. Sealed shards are safe. Free "
            "disk space or restore the disk, and run the same command again to resume."
        ) from error


@dataclass(frozen=True)
class _Encoded:
    """A shard as it is written.

    Attributes:
        contents: object of each array.
        samples: number of samples.
        metric: SHA-256 of the fitted metric that the rows went through.
    """

    contents: Mapping[str, bytes | bytearray]
    samples: int
    metric: str | None


def _write_leased(part: Part, number: int, shard: int, encoded: _Encoded) -> None:
    """Write a shard under a lease, and again if another process took it over meanwhile."""
    while True:
        with suppress(LostError), leased(part.objects, part.lease_key(number, shard)) as lease:
            if lease.waited and part.has_seal(number, shard):
                return  # the holder before wrote it
            _write(part, number, shard, encoded, lease.require)
            return


def _write(
    part: Part,
    number: int,
    shard: int,
    encoded: _Encoded,
    require: Callable[[], None] = lambda: None,
) -> None:
    """Write a shard's objects, then its seal; `require` may raise before either."""
    objects, contents, samples = part.objects, encoded.contents, encoded.samples
    keys = {name: part.array_key(number, name, shard) for name in contents}
    reached("begun")
    unseal(part, number, shard)
    reached("unsealed")
    require()
    if objects.remote or len(contents["direction"]) > _SMALL:
        with ThreadPoolExecutor(len(contents)) as pool:  # disks and networks have latency
            sums = pool.map(sha256, contents.values())
            list(pool.map(objects.write, keys.values(), contents.values()))
    else:
        sums = map(sha256, contents.values())
        for name, content in contents.items():
            objects.write(keys[name], content)
    reached("written")
    objects.flush(keys.values())
    reached("flushed")
    require()
    seal = Seal(
        fingerprint=part.fingerprints[number],
        rows=samples,
        samples_sha256=part.manifest.samples_sha256(*part.layout.span(shard)),
        metric=encoded.metric,
        objects={
            name: SealedObject(
                nbytes=len(content),
                sha256=found.hexdigest(),
                crc32c=_chunk_sums(part, name, content, samples),
            )
            for (name, content), found in zip(contents.items(), sums, strict=True)
        },
    )
    sealed = seal.model_dump_json(indent=1, exclude_none=True).encode()
    objects.write(part.seal_key(number, shard), sealed)
    reached("sealed")
    objects.flush([part.seal_key(number, shard)])
    reached("seal flushed")


def _chunk_sums(part: Part, name: str, content: bytes | bytearray, samples: int) -> str | None:
    if not part.layout.columns:
        return None  # readers of format 1 refuse them
    return part.chunk_sums(name, content, samples).astype("<u4").tobytes().hex()


def unseal(part: Part, number: int, shard: int) -> None:
    """Remove a shard's seal, if any: its rows no longer count and can be written again.

    Raises:
        OSError: if the seal cannot be removed.
    """
    part.objects.remove(part.seal_key(number, shard))
