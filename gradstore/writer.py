"""Writing a store: create it whole or not at all, then fill it a sealed shard at a time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from gradstore.durable import flush
from gradstore.errors import StoreError
from gradstore.reader import Store, looks_like_store, open_store
from gradstore.rows import ARRAYS, Rows

if TYPE_CHECKING:
    from gradstore.layout import Layout
    from gradstore.manifest import Manifest
    from gradstore.spec import StoreSpec

# NaN marks what was never written: a missing chunk reads as the fill value, silently.
_DTYPES = {"norm": "float32", "loss": "float32", "timestep": "int32"}


def create(path: str | Path, spec: StoreSpec, manifest: Manifest) -> Store:
    """Create an empty store.

    It is built beside `path` and renamed into place, so that `path` either is a whole store or does
    not exist.

    Args:
        path: where; it must not exist.
        spec: attributes of the store.
        manifest: its samples, as many as the spec's layout says.

    Raises:
        StoreError: if `path` exists, or cannot be written.
    """
    path = Path(path)
    refuse_existing(path)
    layout = spec.layout.layout()
    if len(manifest) != layout.samples:
        raise StoreError(f"{path}: {len(manifest)} samples for a layout of {layout.samples}")
    building = path.with_name(f".{path.name}.building-{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        root = zarr.create_group(
            building, zarr_format=3, attributes={"gradstore": spec.model_dump(mode="json")}
        )
        root.create_group("samples")
        root.create_group("seals")
        manifest.save(building / "samples")
        for checkpoint in range(len(spec.checkpoints)):
            _create_arrays(root.create_group(f"checkpoints/{checkpoint}"), layout)
            root.create_group(f"seals/{checkpoint}")
        building.rename(path)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be created: {error.strerror or error}. Check that the disk has room "
            "and that the folder is writable, or choose another --store."
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return open_store(path, writable=True)


def refuse_existing(path: Path) -> None:
    """Raise `StoreError` if something stands at `path` already."""
    if path.exists() or path.is_symlink():
        what = "a store" if looks_like_store(path) else "something that is not a store"
        raise StoreError(
            f"{path} exists and is {what}; nothing was changed. Choose another --store, or move "
            "it away."
        )


def _create_arrays(group: zarr.Group, layout: Layout) -> None:
    group.create_array(
        "direction",
        shape=(layout.samples, layout.slots, layout.dim),
        chunks=(layout.chunk_samples, layout.slots, layout.dim),
        shards=(layout.shard_samples, layout.slots, layout.dim),
        dtype=layout.dtype,
        fill_value=float("nan"),
        filters=None,
        # Sharding checks only its own index: the chunks bring their own checksum. No compression:
        # zstd saves 8% and makes a scattered read eight times slower.
        compressors=Crc32cCodec(),
        dimension_names=["sample", "slot", "dim"],
    )
    for name, dtype in _DTYPES.items():
        group.create_array(
            name,
            shape=(layout.samples, layout.slots),
            chunks=(layout.shard_samples, layout.slots),
            dtype=dtype,
            fill_value=-1 if dtype == "int32" else float("nan"),
            filters=None,
            compressors=Crc32cCodec(),
            dimension_names=["sample", "slot"],
        )


STEPS: Final = ("begun", "unsealed", "written", "flushed", "sealed", "seal flushed")
"""The steps of writing a shard, in order. A process may die at any of them."""


def reached(step: str) -> None:
    """Called at each of `STEPS`. Does nothing; tests put something in its place."""


def write_shard(store: Store, checkpoint: int, shard: int, rows: Rows) -> None:
    """Write one whole shard, then its seal.

    The seal is a single small object, written last and atomically: a shard without one does not
    count, so a crash at any point leaves the shard either finished or to be done again. What the
    seal vouches for is flushed to the disk before it, so that this holds after a loss of power.

    Args:
        store: the store.
        checkpoint: number of the checkpoint in the store.
        shard: number of the shard.
        rows: exactly the shard's rows.

    Raises:
        StoreError: if the rows do not fit the shard, are not finite, or cannot be written.
    """
    layout = store.layout
    start, stop = layout.span(shard)
    where = f"{store.path}: checkpoint {checkpoint}, shard {shard}"
    for name in ARRAYS:
        array = getattr(rows, name)
        shape = (stop - start, layout.slots) + ((layout.dim,) if name == "direction" else ())
        dtype = layout.dtype if name == "direction" else _DTYPES[name]
        if array.shape != shape or array.dtype != dtype:
            raise StoreError(f"{where}: {name} is {array.dtype} {array.shape}, not {dtype} {shape}")
        if not np.isfinite(array).all():
            raise StoreError(f"{where}: {name} is not finite")
    reached("begun")
    try:
        # Where a shard is written again its old seal must go first, for it vouches for other bytes;
        # and the bytes after it: of a damaged object nothing may be read.
        unseal(store, checkpoint, shard)
        reached("unsealed")
        files = _files(store, checkpoint, shard)
        for file in files:
            file.unlink(missing_ok=True)
        group = store.root[f"checkpoints/{checkpoint}"]
        for name in ARRAYS:
            group[name][start:stop] = getattr(rows, name)  # type: ignore[index]
        reached("written")
        flush(files)
        reached("flushed")
        store.root.create_group(
            f"seals/{checkpoint}/{shard}",
            attributes={
                "fingerprint": store.spec.fingerprint,
                "rows": stop - start,
                "checksums": rows.checksums(),
            },
            overwrite=True,
        )
        reached("sealed")
        seal = store.path / f"seals/{checkpoint}/{shard}"
        flush([seal / "zarr.json", seal])
        reached("seal flushed")
    except OSError as error:
        raise StoreError(
            f"{where} cannot be written: {error.strerror or error}. What was sealed before is "
            "safe; make room or restore the disk and run the same command again to go on."
        ) from error


def unseal(store: Store, checkpoint: int, shard: int) -> None:
    """Remove a shard's seal, if it has one: its rows do not count any more, and can be made anew.

    Raises:
        OSError: if it cannot be removed.
    """
    seal = store.path / f"seals/{checkpoint}/{shard}"
    (seal / "zarr.json").unlink(missing_ok=True)  # at once; a folder takes several steps
    shutil.rmtree(seal, ignore_errors=True)


def _files(store: Store, checkpoint: int, shard: int) -> list[Path]:
    """The files that hold a shard's rows: one for each array."""
    group = store.path / f"checkpoints/{checkpoint}"
    zeros = {name: "0/0" if name == "direction" else "0" for name in ARRAYS}
    return [group / name / f"c/{shard}/{rest}" for name, rest in zeros.items()]
