"""A part of a store: samples that were collected together, and their rows.

A part computes the position of a row. The store (`gradstore.store.reader`) decides which parts
belong to it, and which of their samples are deleted.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

import numpy as np

from gradstore.errors import StoreError
from gradstore.store.format.columns import readable
from gradstore.store.format.encoding import column_sum, decode_column
from gradstore.store.format.manifest import Manifest
from gradstore.store.objects.ranged import RangedFile
from gradstore.store.seals import COLUMNS, PartShards, reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

Arrays = dict[str, "NDArray[Any]"]

MANIFEST = "samples/manifest.parquet"
_MOST_VERSIONS = 65_536
# A manifest of so many bytes is read at once: one request, and its digest is compared.
_WHOLE_BYTES: Final = 8 << 20


class Part(PartShards):
    """A part of a store: its samples, and its rows as they are stored. See `PartShards`."""

    @cached_property
    def manifest(self) -> Manifest:
        """All samples of the part, including deleted ones.

        Of a long one only the footer is read and compared; its pieces are read when they are
        needed, and have checksums of their own.
        """
        where, key = f"{self.location}/{MANIFEST}", self.key(MANIFEST)
        with self._reading_manifest():
            if self.spec.manifest is not None and self.spec.manifest.nbytes > _WHOLE_BYTES:
                nbytes = self.spec.manifest.nbytes
                file = RangedFile(self.objects, key, nbytes, self._reading_manifest)
                source = cast("BinaryIO", file)  # as far as a reader of Parquet asks
                return Manifest.stored(source, self.spec.manifest, where=where, samples=len(self))
            content = self.objects.read(key, Manifest.most_bytes(len(self)))
        self._require_manifest(sha256(content).hexdigest())
        return Manifest.parse(content, where=where, samples=len(self))

    def check_manifest(self) -> None:
        """Raise `StoreError` unless every byte of the manifest is as it was, and ids are unique."""
        manifest, spec = self.manifest, self.spec.manifest
        if spec is None or spec.nbytes <= _WHOLE_BYTES:
            return  # all of it was read
        found = sha256()
        with self._reading_manifest():
            for start in range(0, spec.nbytes, _WHOLE_BYTES):
                piece = start, min(_WHOLE_BYTES, spec.nbytes - start)
                found.update(self.objects.read_ranges(self.key(MANIFEST), [piece]).data)
        self._require_manifest(found.hexdigest())
        with readable(f"{self.location}/{MANIFEST}"):
            manifest.require_unique()

    @contextmanager
    def _reading_manifest(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.require_current(error)
            raise StoreError(
                f"{self.location}/{MANIFEST} cannot be read: {reason(error)}. Restore the file "
                "from a copy of the store, or collect again."
            ) from error

    def _require_manifest(self, found: str) -> None:
        if self.spec.manifest_sha256 not in {None, found}:
            raise StoreError(
                f"{self.location}/{MANIFEST} has changed since the part was created. Restore the "
                "file from a copy of the store, or collect again."
            )

    def read(self, number: int, start: int, stop: int) -> Arrays:
        """Stored arrays of samples `start` to `stop` at a checkpoint; all must be sealed.

        Raises:
            UnsealedError: if a shard is not sealed.
            StoreError: if an object is missing or damaged.
        """
        shards = self.layout.shards_of(start, stop)
        self._trust(number, shards)

        def one(shard: int) -> Arrays:
            low, high = self.layout.span(shard)
            here = slice(max(start, low) - low, min(stop, high) - low)
            return self._shard(number, shard, here, self.columns)

        parts = self.in_parallel(one, shards)
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def take(
        self,
        number: int,
        rows: NDArray[np.int64],
        columns: Sequence[str] | None = None,
    ) -> Arrays:
        """Stored arrays of some samples at a checkpoint, in the given order.

        Only the chunks that hold them are read.

        Args:
            number: number of the checkpoint.
            rows: sample numbers, in any order; duplicates are allowed.
            columns: arrays to read in addition to the directions; by default all.

        Raises:
            UnsealedError: if a shard is not sealed.
            StoreError: if an object is missing or damaged.
        """
        layout, step = self.layout, self.layout.chunk_samples
        names = tuple(self.columns) if columns is None else columns
        shard, place = divmod(int(rows[0]), layout.shard_samples)
        if place + len(rows) <= layout.shard_samples and (np.diff(rows) == 1).all():
            self._trust(number, [shard])
            return self._shard(number, shard, slice(place, place + len(rows)), names)
        wanted, back = np.unique(rows, return_inverse=True)
        shards = np.unique(wanted // layout.shard_samples)
        self._trust(number, shards.tolist())
        # Each needed chunk once, contiguous in one buffer.
        chunks = np.unique(wanted // step)
        ends = np.searchsorted(chunks, (shards + 1) * (layout.shard_samples // step))
        pieces = list(zip(shards.tolist(), pairwise([0, *ends.tolist()]), strict=True))
        buffer = self._chunks(number, pieces[0][0], chunks[: ends[0]])
        if len(pieces) > 1:  # allocated after the first shard confirmed the size of chunks
            head, buffer = buffer, np.empty((len(chunks), self.codec.stride), np.uint8)
            buffer[: ends[0]] = head

            def read(piece: tuple[int, tuple[int, int]]) -> None:
                shard, (low, high) = piece
                self._chunks(number, shard, chunks[low:high], out=buffer[low:high])

            self.in_parallel(read, pieces[1:])
        places = np.searchsorted(chunks, wanted // step) * step + wanted % step
        direction = self.codec.rows(buffer)
        if len(places) != len(direction) or len(rows) != len(wanted) or (np.diff(back) < 0).any():
            direction = direction[places[back]]
        picked = self._picked(number, names, wanted)
        return {"direction": direction, **{name: picked[name][back] for name in names}}

    def tiles(
        self, number: int, start: int, stop: int, scratch: NDArray[np.uint8]
    ) -> Iterator[NDArray[Any]]:
        """Stored directions of consecutive samples in one shard, in order, a few at a time.

        Args:
            number: number of the checkpoint.
            start: the first sample.
            stop: one past the last sample.
            scratch: buffer of some whole chunks, which each tile is read into.

        Yields:
            `[samples, slots, dim]`, valid until the next tile is requested.

        Raises:
            UnsealedError: if the shard is not sealed.
            StoreError: if the object is missing, damaged, or changed while it is read.
        """
        layout = self.layout
        shard, first = divmod(start, layout.shard_samples)
        self._trust(number, [shard])
        skip, left = first % layout.chunk_samples, stop - start
        place, nbytes = self.codec.span(first, first + left)
        with self._reading(number, "direction", shard):
            for chunks in self._checked(number, shard, place, nbytes, scratch):
                direction = self.codec.rows(chunks)[skip : skip + left]
                skip, left = 0, left - len(direction)
                yield direction

    def _checked(
        self,
        number: int,
        shard: int,
        first: int,
        nbytes: int,
        out: NDArray[np.uint8] | None = None,
    ) -> Iterator[NDArray[np.uint8]]:
        """Checked whole chunks of directions from byte `first` on, as many at a time as fit `out`.

        A checksum takes as long as a read from the system's cache. So data that every query reads
        is checked when it is first read, and again after its file has changed.
        """
        key = self.array_key(number, "direction", shard)
        place = key, first, nbytes
        before = self.objects.version(key)
        known = before is not None and self._versions.get(place) == before
        pieces: Iterable[NDArray[np.uint8]] = (
            [self.objects.read_ranges(key, [(first, nbytes)])]
            if out is None
            else self.objects.read_pieces(key, first, nbytes, out)
        )
        chunk = first // self.codec.stride
        for content in pieces:
            if known:
                yield self.codec.whole(content)
                continue
            chunks = self.codec.checked(content)
            here = slice(chunk, chunk + len(chunks))
            sums = self.codec.stored_sums(chunks)
            self._require_sealed_sums(number, shard, "direction", sums, here)
            chunk = here.stop
            yield chunks
        if before is None:
            return
        if self.objects.version(key) == before:
            if len(self._versions) >= _MOST_VERSIONS:
                self._versions.clear()
            self._versions[place] = before
        elif known:  # the yielded chunks were not checked
            raise StoreError("it was changed while it was read")

    def _chunks(
        self,
        number: int,
        shard: int,
        chunks: NDArray[np.int64],
        out: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Checked chunks of a shard, including their checksums: uint8 `[chunks, bytes]`.

        Args:
            number: number of the checkpoint.
            shard: number of the shard.
            chunks: chunk numbers within the part, ascending.
            out: destination; by default a new array.
        """
        own = chunks - shard * (self.layout.shard_samples // self.layout.chunk_samples)
        stride = self.codec.stride
        spans: list[tuple[int, int]] = []
        for chunk in own.tolist():  # one read per run of consecutive chunks
            if spans and sum(spans[-1]) == chunk * stride:
                spans[-1] = spans[-1][0], spans[-1][1] + stride
            else:
                spans.append((chunk * stride, stride))
        with self._reading(number, "direction", shard) as key:
            flat = None if out is None else out.reshape(-1)
            found = self.codec.checked(self.objects.read_ranges(key, spans, out=flat))
            sums = self.codec.stored_sums(found)
            self._require_sealed_sums(number, shard, "direction", sums, own)
            return found

    def _shard(
        self,
        number: int,
        shard: int,
        here: slice,
        columns: Iterable[str],
    ) -> Arrays:
        """Arrays of consecutive samples in a shard, by their positions in it."""
        first, nbytes = self.codec.span(here.start, here.stop)
        with self._reading(number, "direction", shard):
            skip = here.start % self.layout.chunk_samples
            (chunks,) = self._checked(number, shard, first, nbytes)
            direction = self.codec.rows(chunks)[skip : skip + here.stop - here.start]
        found = self._columns(number, tuple(columns), shard)
        return {"direction": direction, **{name: one[here].copy() for name, one in found.items()}}

    def read_columns(self, number: int, names: Sequence[str], rows: NDArray[np.int64]) -> Arrays:
        """Arrays `[rows, slots]`, by name, of samples with ascending numbers at a checkpoint.

        Raises:
            UnsealedError: if a shard is not sealed.
            StoreError: if an object is missing or damaged.
        """
        self._trust(number, np.unique(rows // self.layout.shard_samples).tolist())
        unknown = sorted(set(names) - {*self.columns, "raw_norm"})
        if unknown:
            raise StoreError(
                f"{self.location} has no column {unknown[0]!r}; it has {', '.join(self.columns)}."
            )
        # Without a metric, a gradient has one norm.
        stored = {name: name if name in self.columns else "norm" for name in names}
        picked = self._picked(number, tuple(dict.fromkeys(stored.values())), rows)
        return {name: picked[own] for name, own in stored.items()}

    def _picked(self, number: int, names: Sequence[str], rows: NDArray[np.int64]) -> Arrays:
        size = self.layout.shard_samples
        shards, firsts = np.unique(rows // size, return_index=True)
        groups = list(zip(shards.tolist(), np.split(rows % size, firsts[1:]), strict=True))

        def one(group: tuple[int, NDArray[np.int64]]) -> Arrays:
            found = self._columns(number, names, group[0])
            return {name: column[group[1]] for name, column in found.items()}

        parts = self.in_parallel(one, groups)
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def _columns(self, number: int, names: Sequence[str], shard: int) -> Arrays:
        """Columns of a whole shard, `[shard_samples, slots]`, by name."""
        shape: tuple[int, ...] = (self.layout.shard_samples, self.layout.slots)
        if not names:
            return {}
        if not self.layout.columns:
            found = {}
            for name in names:
                with self._reading(number, name, shard) as key:
                    content = self.objects.read(key, self.column_nbytes(name))
                    found[name] = decode_column(content, shape, self.columns[name])
            return found
        place = self.layout.columns.index
        with self._reading(number, COLUMNS, shard) as key:
            content = self.objects.read(key, self.column_nbytes(COLUMNS))
            whole = decode_column(content, (*shape, len(self.layout.columns)), "float32")
            found_sum = column_sum(content)
            self._require_sealed_sums(number, shard, COLUMNS, found_sum, slice(None))
        filled = {name: whole[..., place(name)] for name in names}
        return {
            name: np.nan_to_num(values, nan=-1).astype(np.int32)
            if self.columns[name] == "int32"
            else values
            for name, values in filled.items()
        }

    def _reading(self, number: int, name: str, shard: int) -> _Reading:
        return _Reading(self, number, name, shard)


class _Reading:
    """Context of reading an object: errors name the object and the fix."""

    def __init__(self, part: Part, number: int, name: str, shard: int) -> None:
        self._part, self._number, self._name, self._shard = part, number, name, shard

    def __enter__(self) -> str:
        return self._part.array_key(self._number, self._name, self._shard)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | StoreError):
            self._part.require_current(error)
            found = reason(error) if isinstance(error, OSError) else str(error)
            raise StoreError(
                f"{self._part.location}: {self._name} of checkpoint {self._number}, shard "
                f"{self._shard} cannot be read: {found}. Run `gradstore verify "
                f"{self._part.objects.location}` to see what is damaged."
            ) from error
