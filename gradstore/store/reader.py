"""Reading a store: its samples, checkpoints and rows.

Only objects that the store's root names are read, and only sealed rows are returned.
"""

from __future__ import annotations

import logging
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

import gradstore
from gradstore.errors import StoreError, UnsealedError
from gradstore.store.format.deletions import Deletions
from gradstore.store.format.fingerprint import row_fingerprint
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.root import ROOT
from gradstore.store.format.rows import Rows, restored_direction
from gradstore.store.objects.local import LocalObjects
from gradstore.store.objects.protocol import Objects, digest
from gradstore.store.part import Part

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gradstore.store.format.spec import StoreSpec
    from gradstore.store.part import Arrays


_log = logging.getLogger("gradstore")


class Store:
    """A gradient store: rows `[checkpoint, sample, slot]` of one sample set.

    Open one with `gradstore.open_store`. Samples are numbered 0 … `samples` − 1, in the order of
    collection and appending, without deleted ones. The object shows the store as it was when it
    was opened; `is_current` tells whether the store is unchanged. A store can be read during its
    collection: sealed rows can be read, other rows raise an error.

    Attributes:
        objects: objects of the store.
        location: path or URL, as users write it.
        spec: its attributes.
        parts: its parts, in order.
        samples: number of samples.
        slots: rows per sample and checkpoint.
        dim: length of a direction.
        dtype: stored dtype of the directions: float16, float32 or int8.

    Examples:
        >>> import gradstore as gs
        >>> store = gs.open_store("train.gradstore")
        >>> len(store), store.checkpoints, store.manifest.ids[:2]
        (7, 2, ['cat/0.png', 'cat/2.png'])
        >>> rows = store.rows(checkpoint=0)
        >>> rows.direction.shape, rows.norm.shape
        ((7, 10, 64), (7, 10))
    """

    def __init__(
        self, objects: Objects, spec: StoreSpec, root: bytes, *, skip_unsealed: bool = False
    ) -> None:
        self.objects = objects
        self.location = objects.location
        self.spec = spec
        self.root = root
        layout = spec.parts[0].layout
        self.slots, self.dim, self.dtype = layout.slots, layout.dim, layout.dtype
        fingerprints = {
            checkpoint.number: row_fingerprint(spec.identity, place)
            for place, checkpoint in enumerate(spec.checkpoints)
        }
        fits = {one.number: one.metric_sha256 for one in spec.checkpoints}
        known = {number: fit for number, fit in fits.items() if fit is not None}
        self.parts = [
            Part(objects, part, fingerprints, self.is_current, known) for part in spec.parts
        ]
        self._starts = np.cumsum([0, *(len(part) for part in self.parts)])
        self.skip_unsealed = skip_unsealed

    def __repr__(self) -> str:
        return (
            f"Store({self.location!r}, checkpoints={self.checkpoints}, "
            f"samples={self.samples}, slots={self.slots}, dim={self.dim})"
        )

    def __len__(self) -> int:
        return self.samples

    @property
    def num_samples(self) -> int:
        """Number of samples, without deleted ones."""
        return self.samples

    @property
    def num_checkpoints(self) -> int:
        """Number of checkpoints."""
        return self.checkpoints

    def info(self) -> dict[str, Any]:
        """Contents and provenance of the store; see `gradstore.examine`."""
        return gradstore.examine(self)

    def append(self, dataset: Any, **options: Any) -> Store:
        """Append samples and return the new store; see `gradstore.append`."""
        return gradstore.append(dataset, self, **options)

    def delete(self, ids: Sequence[str]) -> Store:
        """Delete samples and return the new store; see `gradstore.delete`."""
        return gradstore.delete(self, ids)

    @property
    def name(self) -> str:
        """Last component of the location, without `.gradstore`."""
        return self.location.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gradstore")

    @property
    def path(self) -> Path:
        """Folder of the store.

        Raises:
            StoreError: if the store is below a URL and has no folder.
        """
        if not isinstance(self.objects, LocalObjects):
            raise StoreError(f"{self.location} is not a local folder. Give one to write to.")
        return self.objects.root

    @property
    def checkpoints(self) -> int:
        """Number of checkpoints."""
        return len(self.spec.checkpoints)

    @property
    def numbers(self) -> list[int]:
        """The checkpoints' numbers, which name their arrays."""
        return [checkpoint.number for checkpoint in self.spec.checkpoints]

    @property
    def etas(self) -> list[float]:
        """Checkpoint weights η_k."""
        return [checkpoint.eta for checkpoint in self.spec.checkpoints]

    @cached_property
    def deletions(self) -> Deletions:
        """Deleted samples that are not vacuumed yet."""
        if self.spec.deleted is None:
            return Deletions({})
        where = f"{self.location}/{self.spec.deleted}"
        try:
            content = self.objects.read(self.spec.deleted, Deletions.most_bytes(self.spec.parts))
        except OSError as error:
            self.require_current(error)
            raise StoreError(
                f"{where}, the table of deleted rows, cannot be read: {error.strerror}. "
                "Restore it from a copy of the store."
            ) from error
        if self.spec.deleted != f"deleted/{digest(content)}.parquet":
            raise StoreError(
                f"{where}, the table of deleted rows, has changed since it was written. Restore it "
                "from a copy of the store."
            )
        return Deletions.parse(content, where=where, parts=self.spec.parts)

    @cached_property
    def _kept(self) -> NDArray[np.int64] | None:
        """Positions of the samples among all samples of all parts; None if all are kept."""
        kept = np.ones(self._starts[-1], bool)
        for part, start in zip(self.parts, self._starts, strict=False):
            kept[start + self.deletions.rows(part.spec.path)] = False
        if self.skip_unsealed:
            left = int(kept.sum())
            for part, start in zip(self.parts, self._starts, strict=False):
                for shard in {s for number in self.numbers for s in part.missing(number)}:
                    low, high = part.layout.span(shard)
                    kept[start + low : start + high] = False
            if kept.sum() < left:
                _log.warning(
                    "%s: %s of %s samples are skipped because their shards are not sealed yet",
                    self.location,
                    f"{left - kept.sum():,}",
                    f"{left:,}",
                )
        if not kept.any():
            raise UnsealedError(
                f"{self.location} has no sample to read. Run the `gradstore collect` of this store."
            )
        return None if kept.all() else np.flatnonzero(kept)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return int(self._starts[-1]) if self._kept is None else len(self._kept)

    def _pieces(self, start: int, stop: int) -> list[tuple[Part, NDArray[np.int64]]]:
        """Parts that hold samples `start` to `stop`, with the sample numbers within each part."""
        if not 0 <= start < stop <= self.samples:
            raise StoreError(
                f"{self.location} holds samples 0:{self.samples}; {start}:{stop} were asked for"
            )
        kept = self._kept
        return self._by_part(np.arange(start, stop) if kept is None else kept[start:stop])

    def _by_part(self, places: NDArray[np.int64]) -> list[tuple[Part, NDArray[np.int64]]]:
        """Convert ascending positions among samples of all parts to numbers within each part."""
        cuts = np.searchsorted(places, self._starts)
        return [
            (part, places[low:high] - first)
            for part, first, (low, high) in zip(
                self.parts, self._starts, pairwise(cuts), strict=False
            )
            if low < high
        ]

    @cached_property
    def manifest(self) -> Manifest:
        """Manifest of the samples, in order."""
        if self._kept is None:
            whole = [part.manifest for part in self.parts]
            return whole[0] if len(whole) == 1 else Manifest.joined(whole)
        pieces = self._by_part(self._kept)
        return Manifest.joined([part.manifest.chosen(rows) for part, rows in pieces])

    @cached_property
    def samples_hash(self) -> str:
        """Names the samples and their order, 32 hex digits."""
        whole = int(self._starts[-1]) - len(self.deletions) == self.samples  # none is skipped
        known = self.spec.samples_hash if whole else None
        return known or self.manifest.hash()

    def number(self, checkpoint: int) -> int:
        """Number of the checkpoint at a position; the number names its arrays."""
        if not 0 <= checkpoint < self.checkpoints:
            raise StoreError(
                f"{self.location} has checkpoints 0 … {self.checkpoints - 1}, no {checkpoint}"
            )
        return self.spec.checkpoints[checkpoint].number

    def missing(self) -> list[tuple[int, int, int]]:
        """Every unsealed shard as (position of the checkpoint, position of the part, shard)."""
        return [
            (checkpoint, place, shard)
            for checkpoint, number in enumerate(self.numbers)
            for place, part in enumerate(self.parts)
            for shard in part.missing(number)
        ]

    def require_complete(self) -> None:
        """Raise `UnsealedError` unless every shard of every checkpoint is sealed.

        A store that was opened with `skip_unsealed` is complete, because it leaves out the rest.
        """
        if self.skip_unsealed:
            return
        for number in self.numbers:
            for part in self.parts:
                lacking = part.missing(number)
                if lacking:
                    raise part.unsealed(number, lacking)

    def rows(self, checkpoint: int, start: int = 0, stop: int | None = None) -> Rows:
        """Rows of samples `start` to `stop` (one past the last) at a checkpoint.

        Raises:
            UnsealedError: if a shard that holds one of them is not sealed.
            StoreError: if data is damaged or missing.
        """
        number = self.number(checkpoint)
        found = []
        for part, rows in self._pieces(start, self.samples if stop is None else stop):
            first, last = int(rows[0]), int(rows[-1]) + 1
            whole = last - first == len(rows)
            found.append(part.read(number, first, last) if whole else part.take(number, rows))
        return Rows.restored(_joined(found))

    def take(self, checkpoint: int, samples: Sequence[int] | NDArray[np.int64]) -> Rows:
        """Rows of some samples at a checkpoint, in the given order.

        Only the chunks that hold them are read, those of a shard together. Ascending numbers are
        fastest: any other order costs one more copy of all directions.

        Args:
            checkpoint: position of the checkpoint.
            samples: sample numbers, in any order; duplicates are allowed.

        Raises:
            UnsealedError: if a shard that holds one of them is not sealed.
            StoreError: if data is damaged or missing.
        """
        return Rows.restored(self._taken(checkpoint, samples, None))

    def directions(
        self,
        checkpoint: int,
        samples: Sequence[int] | NDArray[np.int64],
    ) -> NDArray[Any]:
        """Only the directions of some samples at a checkpoint, `[samples, slots, dim]`.

        For a few samples in many shards, this reads a quarter of the objects that `take` reads. It
        raises the same errors as `take`.

        Args:
            checkpoint: position of the checkpoint.
            samples: sample numbers, in any order; duplicates are allowed.
        """
        columns = ("scale",) if self.dtype == "int8" else ()
        arrays = self._taken(checkpoint, samples, columns)
        return restored_direction(arrays["direction"], arrays.get("scale"))

    def tiles(
        self, checkpoint: int, samples: NDArray[np.int64], scratch: NDArray[np.uint8]
    ) -> Iterator[NDArray[Any]]:
        """`directions` of some samples, in order, a few at a time.

        A tile has as many samples as `scratch` holds, so that it is still in the processor's cache
        when it is used. From an object store, consecutive samples in one shard form one tile.

        Args:
            checkpoint: position of the checkpoint.
            samples: sample numbers, ascending.
            scratch: buffer to read into, from `scratch`.

        Yields:
            `[samples, slots, dim]`, valid until the next tile is requested.
        """
        number, places = self.number(checkpoint), self._places(samples)
        owners = np.searchsorted(self._starts, places, side="right") - 1
        sizes = np.array([part.layout.shard_samples for part in self.parts])
        local = places - self._starts[owners]
        shards = local // sizes[owners]
        ends = np.flatnonzero((np.diff(owners) != 0) | (np.diff(shards) != 0)) + 1
        for low, high in pairwise([0, *ends.tolist(), len(places)]):
            part, first, last = self.parts[owners[low]], int(local[low]), int(local[high - 1])
            # int8 directions also need scales from another object.
            if self.dtype != "int8" and last - first == high - low - 1:
                whole = len(scratch) // part.codec.stride * part.codec.stride
                yield from part.tiles(number, first, last + 1, scratch[:whole])
                continue
            step = max(1, len(scratch) // part.codec.sample_bytes)
            for start in range(low, high, step):
                yield self.directions(checkpoint, samples[start : min(start + step, high)])

    def scratch(self, nbytes: int) -> NDArray[np.uint8]:
        """Buffer of about `nbytes` bytes for `tiles`, at least one chunk long."""
        return np.empty(max(nbytes, *(part.codec.stride for part in self.parts)), np.uint8)

    def _taken(
        self,
        checkpoint: int,
        samples: Sequence[int] | NDArray[np.int64],
        columns: Sequence[str] | None,
    ) -> Arrays:
        number, places = self.number(checkpoint), self._places(np.asarray(samples))
        if len(self.parts) == 1:
            return self.parts[0].take(number, places, columns)
        owner = np.searchsorted(self._starts, places, side="right") - 1
        if owner.min() == owner.max():
            only = int(owner[0])
            return self.parts[only].take(number, places - self._starts[only], columns)
        order = np.argsort(owner, kind="stable")
        found = [
            self.parts[place].take(number, (places - self._starts[place])[owner == place], columns)
            for place in np.unique(owner).tolist()
        ]
        back = np.argsort(order)
        return {name: array[back] for name, array in _joined(found).items()}

    def _places(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        if samples.size and samples.dtype.kind not in "iu":
            raise StoreError(f"samples are given by number, not as {samples.dtype}")
        if samples.size == 0 or samples.min() < 0 or samples.max() >= self.samples:
            raise StoreError(
                f"{self.location} holds samples 0 … {self.samples - 1}; others were asked for"
            )
        samples = samples.astype(np.int64, copy=False)
        return samples if self._kept is None else self._kept[samples]

    def spans(self) -> Iterator[tuple[Part, int, int]]:
        """Each part that has samples, with their numbers in the store: first, one past the last."""
        starts, kept = self._starts, self._kept
        edges = starts if kept is None else np.searchsorted(kept, starts)
        for part, (low, high) in zip(self.parts, pairwise(edges.tolist()), strict=True):
            if low < high:
                yield part, low, high

    def column(
        self, name: str, checkpoint: int, samples: NDArray[np.int64] | None = None
    ) -> NDArray[Any]:
        """`norm`, `loss`, `timestep` or `sigma` at a checkpoint, `[samples, slots]`.

        No direction is read, so this is cheap for any store. See `columns` for the arguments and
        the errors.
        """
        return self.columns((name,), checkpoint, samples)[name]

    def columns(
        self, names: Sequence[str], checkpoint: int, samples: NDArray[np.int64] | None = None
    ) -> Arrays:
        """Several of `norm`, `loss`, `timestep` and `sigma` at a checkpoint, by name.

        Each is `[samples, slots]`.

        The seals are listed once for all of them.

        Args:
            names: names of the arrays.
            checkpoint: position of the checkpoint.
            samples: sample numbers, ascending; by default all.

        Raises:
            UnsealedError: if a shard is not sealed.
            StoreError: if data is damaged or missing.
        """
        number = self.number(checkpoint)
        pieces = (
            self._pieces(0, self.samples)
            if samples is None
            else self._by_part(self._places(samples))
        )
        return _joined([part.read_columns(number, names, rows) for part, rows in pieces])

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges that cover all samples, each within one shard."""
        kept = np.arange(self._starts[-1]) if self._kept is None else self._kept
        edges = [
            start + edge
            for part, start in zip(self.parts, self._starts, strict=False)
            for edge in range(0, len(part), part.layout.shard_samples)
        ]
        cuts = np.searchsorted(kept, [*edges, self._starts[-1]])
        for low, high in pairwise(cuts.tolist()):
            if low < high:
                yield low, high

    def iter_rows(self, checkpoint: int) -> Iterator[tuple[int, Rows]]:
        """All rows of a checkpoint as (first sample, rows), one shard at a time."""
        for start, stop in self.blocks():
            yield start, self.rows(checkpoint, start, stop)

    def require_current(self, cause: Exception | None = None) -> None:
        """Raise `ChangedError` if the store was changed since it was opened."""
        self.parts[0].require_current(cause)

    def is_current(self) -> bool:
        """Whether nothing was appended, deleted or dropped since the store was opened."""
        try:
            return self.objects.read(ROOT, len(self.root)) == self.root
        except OSError:
            return False

    @property
    def nbytes(self) -> int:
        """Bytes on disk, including all overhead."""
        return sum(size for _, size in self.objects.sizes())


def _joined(found: list[Arrays]) -> Arrays:
    if len(found) == 1:
        return found[0]
    return {name: np.concatenate([arrays[name] for arrays in found]) for name in found[0]}
