"""Reading a store. Only sealed shards are ever returned."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from pydantic import ValidationError

from gradstore.errors import NotAStoreError, StoreError, UnsealedError
from gradstore.manifest import Manifest
from gradstore.rows import ARRAYS, Rows
from gradstore.spec import FORMAT_VERSION, StoreSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gradstore.layout import Layout


class Store:
    """A gradient store on disk: rows `[checkpoint, sample, slot]` of one sample set.

    Open one with `gradstore.open_store`. A store may be read while it is being collected: what is
    sealed can be read, the rest raises.

    Attributes:
        path: where it is.
        spec: its attributes.
        layout: shapes and partition of its arrays.
        root: its root Zarr group.
    """

    def __init__(self, path: Path, spec: StoreSpec, root: zarr.Group) -> None:
        self.path = path
        self.spec = spec
        self.layout: Layout = spec.layout.layout()
        self.root = root

    def __repr__(self) -> str:
        layout = self.layout
        return (
            f"Store({str(self.path)!r}, checkpoints={self.checkpoints}, "
            f"samples={layout.samples}, slots={layout.slots}, dim={layout.dim})"
        )

    @property
    def checkpoints(self) -> int:
        """Number of checkpoints."""
        return len(self.spec.checkpoints)

    @property
    def etas(self) -> list[float]:
        """Checkpoint weights η_k."""
        return [checkpoint.eta for checkpoint in self.spec.checkpoints]

    @cached_property
    def manifest(self) -> Manifest:
        """The samples, in row order."""
        manifest = Manifest.load(self.path / "samples")
        if len(manifest) != self.layout.samples:
            raise StoreError(
                f"{self.path}: the manifest lists {len(manifest)} samples, the layout says "
                f"{self.layout.samples}. Restore samples/manifest.parquet from a copy."
            )
        return manifest

    def sealed(self, checkpoint: int) -> set[int]:
        """Numbers of the sealed shards of a checkpoint, as they are on disk now."""
        # Listed, not opened: a store of a million samples has thousands of seals.
        try:
            names = [
                folder.name
                for folder in (self.path / "seals" / str(checkpoint)).iterdir()
                if (folder / "zarr.json").is_file()
            ]
        except OSError as error:
            raise StoreError(
                f"{self.path}: the seals of checkpoint {checkpoint} cannot be listed: "
                f"{error.strerror}. Restore the folder seals/{checkpoint} from a copy."
            ) from error
        return {int(name) for name in names if name.isdecimal()}

    def seal(self, checkpoint: int, shard: int) -> dict[str, Any]:
        """The seal of a shard: its fingerprint, row count and checksums."""
        if shard not in self.sealed(checkpoint):
            raise self._unsealed(checkpoint, {shard})
        try:
            return self.root[f"seals/{checkpoint}/{shard}"].attrs.asdict()
        except (OSError, KeyError, ValueError) as error:
            raise StoreError(
                f"{self.path}: the seal of checkpoint {checkpoint}, shard {shard} cannot be read. "
                f"Remove the folder seals/{checkpoint}/{shard} and run `gradstore collect` again."
            ) from error

    def missing(self) -> list[tuple[int, int]]:
        """Every (checkpoint, shard) that is not sealed yet."""
        return [
            (checkpoint, shard)
            for checkpoint in range(self.checkpoints)
            for shard in sorted(set(range(self.layout.shards)) - self.sealed(checkpoint))
        ]

    def require_complete(self) -> None:
        """Raise `UnsealedError` unless every shard of every checkpoint is sealed."""
        missing = self.missing()
        if missing:
            checkpoint = missing[0][0]
            raise self._unsealed(checkpoint, {s for k, s in missing if k == checkpoint})

    def _unsealed(self, checkpoint: int, shards: set[int]) -> UnsealedError:
        listed = ", ".join(map(str, sorted(shards)[:5])) + (", …" if len(shards) > 5 else "")
        return UnsealedError(
            f"{self.path}: checkpoint {checkpoint} lacks {len(shards)} of {self.layout.shards} "
            f"shards ({listed}). Run the `gradstore collect` that makes it once more: it goes on "
            "from what is sealed."
        )

    def rows(self, checkpoint: int, start: int = 0, stop: int | None = None) -> Rows:
        """Rows of samples `start` to `stop` (one past the last) at a checkpoint.

        Raises:
            UnsealedError: if a shard that holds one of them is not sealed.
            StoreError: if a chunk is damaged or missing.
        """
        stop = self.layout.samples if stop is None else stop
        needed = set(self.layout.shards_of(start, stop)) - self.sealed(checkpoint)
        if needed:
            raise self._unsealed(checkpoint, needed)
        rows = self.read_unchecked(checkpoint, start, stop)
        # A chunk that is missing reads as the fill value, silently. Chunks hold whole directions.
        for array in (rows.direction[:, :, 0], rows.norm, rows.loss, rows.timestep):
            self._require_written(array, checkpoint)
        return rows

    def read_unchecked(self, checkpoint: int, start: int, stop: int) -> Rows:
        """Like `rows`, without asking whether the shards are sealed. NaN where nothing is."""
        return Rows(**{name: self._read(checkpoint, name, start, stop) for name in ARRAYS})

    def _read(self, checkpoint: int, name: str, start: int, stop: int) -> NDArray[Any]:
        try:
            array: Any = self.root[f"checkpoints/{checkpoint}/{name}"]
            return np.asarray(array[start:stop])
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise StoreError(
                f"{self.path}: samples {start}:{stop} of checkpoint {checkpoint} cannot be read: "
                f"{error}. Run `gradstore verify {self.path}` to see what is damaged."
            ) from error

    def column(self, name: str, checkpoint: int) -> NDArray[Any]:
        """`norm`, `loss` or `timestep` of all samples at a checkpoint, `[samples, slots]`.

        Reads no direction, so it is cheap for any store.

        Raises:
            UnsealedError: if a shard is not sealed.
        """
        needed = set(range(self.layout.shards)) - self.sealed(checkpoint)
        if needed:
            raise self._unsealed(checkpoint, needed)
        array = self._read(checkpoint, name, 0, self.layout.samples)
        self._require_written(array, checkpoint)
        return array

    def _require_written(self, array: NDArray[Any], checkpoint: int) -> None:
        missing = np.isnan(array) if array.dtype.kind == "f" else array < 0
        if missing.any():
            raise StoreError(
                f"{self.path}: checkpoint {checkpoint} is sealed, but data is missing. Run "
                f"`gradstore verify {self.path}` to see what is damaged."
            )

    def iter_rows(self, checkpoint: int) -> Iterator[tuple[int, Rows]]:
        """All rows of a checkpoint, a shard at a time, as (first sample, rows)."""
        for shard in range(self.layout.shards):
            start, stop = self.layout.span(shard)
            yield start, self.rows(checkpoint, start, stop)

    @property
    def nbytes(self) -> int:
        """Bytes on disk, all overhead included."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


def open_store(path: str | Path, *, writable: bool = False) -> Store:
    """Open the store at `path`.

    Args:
        path: the store's folder.
        writable: whether shards may be written through the object.

    Raises:
        StoreError: if there is no store, or one of a format that this version cannot read.
    """
    path = Path(path)
    try:
        root = zarr.open_group(path, mode="r+" if writable else "r")
        attributes: Any = root.attrs["gradstore"]
        version = attributes["format_version"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise NotAStoreError(
            f"{path} is not a gradient store: it has no zarr.json with a 'gradstore' "
            "attribute. Give the folder that `gradstore collect` wrote (NAME.gradstore)."
        ) from error
    if version != FORMAT_VERSION:
        raise StoreError(
            f"{path} has store format {version!r}; this gradstore reads format "
            f"{FORMAT_VERSION}. Install a gradstore that reads it (pip install -U gradstore)."
        )
    try:
        spec = StoreSpec.model_validate(attributes)
    except ValidationError as error:
        first = error.errors()[0]
        raise StoreError(
            f"{path}/zarr.json: attribute {'.'.join(map(str, first['loc']))} is wrong: "
            f"{first['msg']}. Restore zarr.json from a copy of the store."
        ) from error
    return Store(path, spec, root)


def looks_like_store(path: Path) -> bool:
    """Whether a store stands at `path`, whatever its format or state."""
    try:
        open_store(path)
    except NotAStoreError:
        return False
    except StoreError:
        return True
    return True
