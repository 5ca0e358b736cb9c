"""A part of a store: samples that were collected together, their arrays and seals.

Within a part a row is found by arithmetic. Which parts belong to a store, and which of their
samples were deleted, is the store's affair (`gradstore.store.reader`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
from pydantic import Field, ValidationError

from gradstore.errors import StoreError, UnsealedError
from gradstore.store.format.encoding import ShardCodec, decode_column
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.rows import columns
from gradstore.store.format.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from gradstore.store.format.layout import Layout
    from gradstore.store.format.spec import PartSpec
    from gradstore.store.objects.protocol import Objects

T = TypeVar("T")
R = TypeVar("R")
Arrays = dict[str, "NDArray[Any]"]

MANIFEST = "samples/manifest.parquet"
_MOST_REQUESTS = 16
_MOST_SEAL_BYTES = 65_536
_MOST_VERSIONS = 65_536


class SealedObject(Spec):
    """What a seal says of one object: its size, and the SHA-256 that `sha256sum` shows."""

    nbytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Seal(Spec):
    """The seal of a shard.

    Attributes:
        fingerprint: of the rows at this checkpoint, by `row_fingerprint`.
        rows: how many samples the shard holds.
        samples_sha256: which ones, by `Manifest.samples_sha256`: a fingerprint is shared by all
            shards, and by stores of other samples. None in seals made before it was kept.
        objects: the object of each array.
    """

    fingerprint: str
    rows: int
    samples_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    objects: dict[str, SealedObject]


class Part:
    """A part of a store.

    Attributes:
        objects: the whole store's objects.
        spec: its path, layout and origin.
        layout: shapes and partition.
        location: where it is, as people write it.
        fingerprints: fingerprint of the rows at each checkpoint, by the checkpoint's number.
    """

    def __init__(self, objects: Objects, spec: PartSpec, fingerprints: Mapping[int, str]) -> None:
        self.objects = objects
        self.spec = spec
        self.layout: Layout = spec.layout.layout()
        self.location = f"{objects.location}/{spec.path}".rstrip("/")
        self.fingerprints = fingerprints
        self.codec = ShardCodec(self.layout)
        self.columns = columns(self.layout.dtype)
        self._versions: dict[tuple[str, int, int], Hashable] = {}

    def __len__(self) -> int:
        return self.layout.samples

    def key(self, name: str) -> str:
        """Key of an object of this part."""
        return f"{self.spec.path}/{name}" if self.spec.path else name

    def array_key(self, number: int, name: str, shard: int) -> str:
        """Key of the object that holds a shard of an array."""
        rest = "0.0" if name == "direction" else "0"
        return self.key(f"checkpoints/{number}/{name}/c.{shard}.{rest}")

    def seal_key(self, number: int, shard: int) -> str:
        """Key of a shard's seal."""
        return self.key(f"seals/{number}/{shard}.json")

    @cached_property
    def manifest(self) -> Manifest:
        """All the part's samples, those that were deleted as well."""
        where = f"{self.location}/{MANIFEST}"
        try:
            content = self.objects.read(self.key(MANIFEST))
        except OSError as error:
            raise StoreError(
                f"{where} cannot be read: {_reason(error)}. Restore the file from a copy of the "
                "store, or collect again."
            ) from error
        if self.spec.manifest_sha256 not in {None, sha256(content).hexdigest()}:
            raise StoreError(
                f"{where} is not what was written when the part was made. Restore the file from a "
                "copy of the store, or collect again."
            )
        return Manifest.parse(content, where=where, samples=self.layout.samples)

    def sealed(self, number: int) -> set[int]:
        """The sealed shards of a checkpoint, as they are now."""
        try:
            names = self.objects.names(self.key(f"seals/{number}"))
        except OSError as error:
            raise StoreError(
                f"{self.location}: the seals of checkpoint {number} cannot be listed: "
                f"{_reason(error)}. Check that the disk or the network is there."
            ) from error
        stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return {int(stem) for stem in stems if stem.isdecimal() and len(stem) < 20}

    def seal(self, number: int, shard: int) -> Seal:
        """The seal of a shard."""
        where = f"{self.location}: the seal of checkpoint {number}, shard {shard}"
        try:
            content = self.objects.read(self.seal_key(number, shard))
        except FileNotFoundError:
            raise self.unsealed(number, {shard}) from None
        except OSError as error:
            raise StoreError(
                f"{where} cannot be read: {_reason(error)}. Check that the disk or the network "
                "is there."
            ) from error
        try:
            return Seal.model_validate_json(content[:_MOST_SEAL_BYTES])
        except ValidationError as error:
            raise StoreError(
                f"{where} is damaged. Make it and its shard anew: gradstore verify "
                f"{self.objects.location} --repair"
            ) from error

    def missing(self, number: int) -> list[int]:
        """The shards of a checkpoint that are not sealed."""
        return sorted(set(range(self.layout.shards)) - self.sealed(number))

    def unsealed(self, number: int, shards: Iterable[int]) -> UnsealedError:
        """What to raise where shards are not sealed."""
        listed = sorted(shards)
        shown = ", ".join(map(str, listed[:5])) + (", …" if len(listed) > 5 else "")
        return UnsealedError(
            f"{self.location}: checkpoint {number} lacks {len(listed)} of {self.layout.shards} "
            f"shards ({shown}). Run the `gradstore collect` that makes it once more: it goes on "
            "from what is sealed."
        )

    def require_sealed(self, number: int, shards: Iterable[int]) -> None:
        """Raise `UnsealedError` unless these shards of a checkpoint are sealed."""
        wanted = set(shards)
        if len(wanted) == 1 and self._has_seal(number, *wanted):
            return  # whoever reads shard after shard does not list all seals for each
        lacking = wanted - self.sealed(number)
        if lacking:
            raise self.unsealed(number, lacking)

    def _has_seal(self, number: int, shard: int) -> bool:
        try:
            self.objects.size(self.seal_key(number, shard))
        except OSError:  # of any kind: the list tells why
            return False
        return True

    def read(self, number: int, start: int, stop: int) -> Arrays:
        """The stored arrays of samples `start` to `stop` at a checkpoint, which must be sealed.

        Raises:
            UnsealedError: if a shard is not.
            StoreError: if an object is missing or damaged.
        """
        shards = self.layout.shards_of(start, stop)
        self.require_sealed(number, shards)

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
        """The stored arrays of some samples at a checkpoint, in the order asked for.

        Reads no more than the chunks that hold them.

        Args:
            number: the checkpoint.
            rows: numbers of samples, in any order, also twice.
            columns: which arrays beside the directions; by default all.

        Raises:
            UnsealedError: if a shard is not sealed.
            StoreError: if an object is missing or damaged.
        """
        layout, step = self.layout, self.layout.chunk_samples
        names = self.columns if columns is None else columns
        shard, place = divmod(int(rows[0]), layout.shard_samples)
        if place + len(rows) <= layout.shard_samples and (np.diff(rows) == 1).all():
            self.require_sealed(number, {shard})
            return self._shard(number, shard, slice(place, place + len(rows)), names)
        wanted, back = np.unique(rows, return_inverse=True)
        shards = np.unique(wanted // layout.shard_samples)
        self.require_sealed(number, shards.tolist())
        # Every chunk that is needed, once, side by side in one buffer.
        chunks = np.unique(wanted // step)
        ends = np.searchsorted(chunks, (shards + 1) * (layout.shard_samples // step))
        pieces = list(zip(shards.tolist(), pairwise([0, *ends.tolist()]), strict=True))
        buffer = self._chunks(number, pieces[0][0], chunks[: ends[0]])
        if len(pieces) > 1:  # made when the first shard has shown that chunks are of this size
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
        return {
            "direction": direction,
            **{name: self._picked(number, name, wanted)[back] for name in names},
        }

    def tiles(
        self, number: int, start: int, stop: int, scratch: NDArray[np.uint8]
    ) -> Iterator[NDArray[Any]]:
        """Stored directions of neighbours in one shard, some samples at a time, in order.

        Args:
            number: the checkpoint.
            start: the first sample.
            stop: one past the last.
            scratch: memory of some whole chunks, that the samples of a tile are read into.

        Yields:
            `[samples, slots, dim]`, until the next is asked for.

        Raises:
            UnsealedError: if the shard is not sealed.
            StoreError: if the object is missing, damaged, or changed while it is read.
        """
        layout = self.layout
        shard, first = divmod(start, layout.shard_samples)
        self.require_sealed(number, {shard})
        skip, left = first % layout.chunk_samples, stop - start
        place, nbytes = self.codec.span(first, first + left)
        with self._reading(number, "direction", shard) as key:
            for chunks in self._checked(key, place, nbytes, scratch):
                direction = self.codec.rows(chunks)[skip : skip + left]
                skip, left = 0, left - len(direction)
                yield direction

    def _checked(
        self, key: str, first: int, nbytes: int, out: NDArray[np.uint8] | None = None
    ) -> Iterator[NDArray[np.uint8]]:
        """Whole chunks of an object from byte `first` on, checked: as many at a time as `out` has.

        Checksums take as long as reading from the system's cache, so what is read again and again,
        as for query after query, is checked when it is read for the first time, and whenever the
        file has changed.
        """
        place = key, first, nbytes
        before = self.objects.version(key)
        known = before is not None and self._versions.get(place) == before
        pieces: Iterable[NDArray[np.uint8]] = (
            [self.objects.read_ranges(key, [(first, nbytes)])]
            if out is None
            else self.objects.read_pieces(key, first, nbytes, out)
        )
        for content in pieces:
            yield self.codec.whole(content) if known else self.codec.checked(content)
        if before is None:
            return
        if self.objects.version(key) == before:
            if len(self._versions) >= _MOST_VERSIONS:
                self._versions.clear()
            self._versions[place] = before
        elif known:  # what was yielded was not checked
            raise StoreError("it was changed while it was read")

    def _chunks(
        self,
        number: int,
        shard: int,
        chunks: NDArray[np.int64],
        out: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Some chunks of a shard, checked, with their checksums: uint8 `[chunks, bytes]`.

        Args:
            number: the checkpoint.
            shard: the shard.
            chunks: numbers of chunks within the part, rising.
            out: where they go; by default into a new array.
        """
        own = chunks - shard * (self.layout.shard_samples // self.layout.chunk_samples)
        stride = self.codec.stride
        spans: list[tuple[int, int]] = []
        for chunk in own.tolist():  # runs of neighbours: one read for each
            if spans and sum(spans[-1]) == chunk * stride:
                spans[-1] = spans[-1][0], spans[-1][1] + stride
            else:
                spans.append((chunk * stride, stride))
        with self._reading(number, "direction", shard) as key:
            flat = None if out is None else out.reshape(-1)
            return self.codec.checked(self.objects.read_ranges(key, spans, out=flat))

    def _shard(
        self,
        number: int,
        shard: int,
        here: slice,
        columns: Iterable[str],
    ) -> Arrays:
        """Arrays of neighbours in a shard, by their places in it."""
        first, nbytes = self.codec.span(here.start, here.stop)
        with self._reading(number, "direction", shard) as key:
            skip = here.start % self.layout.chunk_samples
            (chunks,) = self._checked(key, first, nbytes)
            direction = self.codec.rows(chunks)[skip : skip + here.stop - here.start]
        return {
            "direction": direction,
            **{name: self._column(number, name, shard)[here].copy() for name in columns},
        }

    def read_columns(self, number: int, names: Sequence[str], rows: NDArray[np.int64]) -> Arrays:
        """Arrays `[rows, slots]` of some samples at a checkpoint, whose numbers rise, by name.

        Raises:
            UnsealedError: if a shard is not sealed.
            StoreError: if an object is missing or damaged.
        """
        self.require_sealed(number, np.unique(rows // self.layout.shard_samples).tolist())
        return {name: self._picked(number, name, rows) for name in names}

    def _picked(self, number: int, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        size = self.layout.shard_samples
        shards, firsts = np.unique(rows // size, return_index=True)
        groups = list(zip(shards.tolist(), np.split(rows % size, firsts[1:]), strict=True))
        return np.concatenate(
            self.in_parallel(lambda group: self._column(number, name, group[0])[group[1]], groups)
        )

    def _column(self, number: int, name: str, shard: int) -> NDArray[Any]:
        layout = self.layout
        with self._reading(number, name, shard) as key:
            content = self.objects.read(key)
            return decode_column(content, layout.shard_samples, layout.slots, self.columns[name])

    def _reading(self, number: int, name: str, shard: int) -> _Reading:
        return _Reading(self, number, name, shard)

    def in_parallel(self, do: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`do` for each item: where a request takes milliseconds, several at once."""
        if not self.objects.remote or len(items) < 2:
            return [do(item) for item in items]
        with ThreadPoolExecutor(_MOST_REQUESTS) as pool:
            return list(pool.map(do, items))


class _Reading:
    """Says of an object that cannot be read which it is, and what to do."""

    def __init__(self, part: Part, number: int, name: str, shard: int) -> None:
        self._part, self._number, self._name, self._shard = part, number, name, shard

    def __enter__(self) -> str:
        return self._part.array_key(self._number, self._name, self._shard)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | StoreError):
            reason = _reason(error) if isinstance(error, OSError) else str(error)
            raise StoreError(
                f"{self._part.location}: {self._name} of checkpoint {self._number}, shard "
                f"{self._shard} cannot be read: {reason}. Run `gradstore verify "
                f"{self._part.objects.location}` to see what is damaged; if it was vacuumed "
                "meanwhile, open it again."
            ) from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
