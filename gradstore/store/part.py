"""A part of a store: samples that were collected together, their arrays and seals.

A part computes the position of a row. The store (`gradstore.store.reader`) decides which parts
belong to it, and which of their samples are deleted.
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
from gradstore.store.format.encoding import (
    ShardCodec,
    column_nbytes,
    column_sum,
    decode_column,
)
from gradstore.store.format.layout import DTYPES, row_columns
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.spec import Spec
from gradstore.store.objects.protocol import ChangedError

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
COLUMNS = "columns"
"""Name of the array that holds all numbers of the rows besides their directions."""
_MOST_REQUESTS = 16
_MOST_SEAL_BYTES = 65_536
_MOST_VERSIONS = 65_536


class SealedObject(Spec):
    """A seal's entry for one object.

    Attributes:
        nbytes: its size in bytes.
        sha256: its SHA-256, as `sha256sum` shows it.
        crc32c: the CRC32C of each of its chunks, in order, 8 hex digits each, little endian. A
            reader of a few chunks compares them. None in format 1.
    """

    nbytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    crc32c: Annotated[str, Field(pattern="^([0-9a-f]{8})+$")] | None = None

    @property
    def sums(self) -> NDArray[np.uint32] | None:
        """The checksums of its chunks."""
        return None if self.crc32c is None else np.frombuffer(bytes.fromhex(self.crc32c), "<u4")


class Seal(Spec):
    """The seal of a shard.

    Attributes:
        fingerprint: fingerprint of the rows at this checkpoint, from `row_fingerprint`.
        rows: number of samples in the shard.
        samples_sha256: hash of these samples, from `Manifest.samples_sha256`. The fingerprint does
            not identify them: all shards share it, and so do stores of other samples. None in
            older seals.
        metric: SHA-256 of the fitted metric that the rows went through; None without a metric.
        objects: entry for the object of each array.
    """

    fingerprint: str
    rows: int
    samples_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    metric: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    objects: dict[str, SealedObject]


class Part:
    """A part of a store.

    Attributes:
        objects: objects of the whole store.
        spec: its path, layout and provenance.
        layout: shapes and partition.
        location: path or URL, as users write it.
        fingerprints: fingerprint of the rows at each checkpoint, by the checkpoint's number.
        fits: SHA-256 of the fitted metric at each checkpoint that has one, by its number.

    Args:
        objects: see above.
        spec: see above.
        fingerprints: see above.
        is_current: whether the store is still as it was when the part was opened.
        fits: see above.
    """

    def __init__(
        self,
        objects: Objects,
        spec: PartSpec,
        fingerprints: Mapping[int, str],
        is_current: Callable[[], bool] = lambda: True,
        fits: Mapping[int, str] | None = None,
    ) -> None:
        self.fits = dict(fits or {})
        self._is_current = is_current
        self.objects = objects
        self.spec = spec
        self.layout: Layout = spec.layout.layout()
        self.location = f"{objects.location}/{spec.path}".rstrip("/")
        self.fingerprints = fingerprints
        self.codec = ShardCodec(self.layout)
        names = self.layout.columns or row_columns(self.layout.dtype)
        self.columns = {name: DTYPES[name] for name in names}
        self._versions: dict[tuple[str, int, int], Hashable] = {}
        self._seals: dict[tuple[int, int], dict[str, NDArray[np.uint32] | None]] = {}

    def __len__(self) -> int:
        return self.layout.samples

    def key(self, name: str) -> str:
        """Key of an object of this part."""
        return f"{self.spec.path}/{name}" if self.spec.path else name

    def array_key(self, number: int, name: str, shard: int) -> str:
        """Key of the object that holds a shard of an array."""
        rest = "0.0" if name in {"direction", COLUMNS} else "0"
        return self.key(f"checkpoints/{number}/{name}/c.{shard}.{rest}")

    def seal_key(self, number: int, shard: int) -> str:
        """Key of a shard's seal."""
        return self.key(f"seals/{number}/{shard}.json")

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of a checkpoint."""
        return ("direction", COLUMNS) if self.layout.columns else ("direction", *self.columns)

    @cached_property
    def manifest(self) -> Manifest:
        """All samples of the part, including deleted ones."""
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
                f"{where} has changed since the part was created. Restore the file from a copy of "
                "the store, or collect again."
            )
        return Manifest.parse(content, where=where, samples=self.layout.samples)

    def sealed(self, number: int) -> set[int]:
        """The currently sealed shards of a checkpoint."""
        try:
            names = self.objects.names(self.key(f"seals/{number}"))
        except OSError as error:
            raise StoreError(
                f"{self.location}: the seals of checkpoint {number} cannot be listed: "
                f"{_reason(error)}. Check that the disk or network is available."
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
                f"{where} cannot be read: {_reason(error)}. Check that the disk or network is "
                "available."
            ) from error
        try:
            most = _MOST_SEAL_BYTES + 8 * self.codec.chunks(self.layout.shard_samples)
            return Seal.model_validate_json(content[:most])
        except ValidationError as error:
            raise StoreError(
                f"{where} is damaged. Recreate it and its shard: gradstore verify "
                f"{self.objects.location} --repair"
            ) from error

    def problem(self, number: int, shard: int, seal: Seal) -> str | None:
        """Why a seal cannot be that of a shard, as far as the layout tells; None if it can."""
        start, stop = self.layout.span(shard)
        if seal.fingerprint != self.fingerprints[number]:
            return "its seal has another fingerprint: it comes from another run"
        if seal.rows != stop - start:
            return f"its seal counts {seal.rows} rows, the layout {stop - start}"
        if seal.metric != self.fits.get(number, seal.metric):
            return "its rows went through another fit of the metric"
        if set(seal.objects) != set(self.arrays):
            return f"its seal names {', '.join(seal.objects)}, not {', '.join(self.arrays)}"
        for name, one in seal.objects.items():
            chunks, nbytes = 1, self._column_nbytes(name)
            if name == "direction":
                chunks, nbytes = self.codec.chunks(seal.rows), self.codec.nbytes(seal.rows)
            if one.nbytes != nbytes or (one.crc32c is not None and len(one.crc32c) != 8 * chunks):
                return f"its seal is of another {name} than one of {nbytes} bytes"
        return None

    def _column_nbytes(self, name: str) -> int:
        shape = self.layout.shard_samples, self.layout.slots
        if name == COLUMNS:
            return column_nbytes((*shape, len(self.layout.columns)), "float32")
        return column_nbytes(shape, self.columns.get(name, "float32"))

    def _sums(self, number: int, shard: int, name: str) -> NDArray[np.uint32] | None:
        """Checksums of an object's chunks by its shard's seal, which is read once."""
        known = self._seals.get((number, shard))
        if known is None:
            seal = self.seal(number, shard)
            problem = self.problem(number, shard, seal)
            if problem is not None:
                raise StoreError(
                    f"{self.location}: checkpoint {number}, shard {shard}: {problem}. Collect it "
                    f"again: gradstore verify {self.objects.location} --repair"
                )
            known = {object_name: one.sums for object_name, one in seal.objects.items()}
            self._seals[number, shard] = known
        return known[name]

    def chunk_sums(self, name: str, content: bytes | bytearray, samples: int) -> NDArray[np.uint32]:
        """Checksums of the chunks in the object of an array, of a shard of `samples` samples."""
        if name == "direction":
            return self.codec.sums(content, samples)
        return column_sum(content)

    def _require_sealed_sums(
        self,
        number: int,
        shard: int,
        name: str,
        found: NDArray[np.uint32],
        chunks: NDArray[np.int64] | slice,
    ) -> None:
        """Raise `StoreError` unless chunks have the checksums that their shard's seal holds."""
        for _ in range(2):
            sums = self._sums(number, shard, name)
            if sums is None or np.array_equal(sums[chunks], found):
                return
            # Another process may have sealed the shard again since its seal was read.
            self._seals.pop((number, shard), None)
        raise StoreError("it is not the object that its seal describes")

    def missing(self, number: int) -> list[int]:
        """The shards of a checkpoint that are not sealed."""
        return sorted(set(range(self.layout.shards)) - self.sealed(number))

    def unsealed(self, number: int, shards: Iterable[int]) -> StoreError:
        """The error to raise if shards are not sealed: `ChangedError` if the store was changed."""
        if not self._is_current():
            return ChangedError(
                f"{self.objects.location} was changed by another process since it was opened. "
                "Open it again."
            )
        listed = sorted(shards)
        shown = ", ".join(map(str, listed[:5])) + (", …" if len(listed) > 5 else "")
        return UnsealedError(
            f"{self.location}: checkpoint {number} lacks {len(listed)} of {self.layout.shards} "
            f"shards ({shown}). Run the `gradstore collect` of this store again: it keeps the "
            "sealed shards."
        )

    def require_sealed(self, number: int, shards: Iterable[int]) -> None:
        """Raise `UnsealedError` unless these shards of a checkpoint are sealed."""
        wanted = set(shards)
        if len(wanted) == 1 and self._has_seal(number, *wanted):
            return  # a reader of single shards does not list all seals for each
        lacking = wanted - self.sealed(number)
        if lacking:
            raise self.unsealed(number, lacking)

    def _has_seal(self, number: int, shard: int) -> bool:
        try:
            self.objects.size(self.seal_key(number, shard))
        except OSError:  # of any kind: listing the seals reports the reason
            return False
        return True

    def _trust(self, number: int, shards: Sequence[int]) -> None:
        """Require seals, and read those of shards that are read for the first time.

        Raises:
            UnsealedError: if a shard is not sealed.
            StoreError: if a seal is not of its shard.
        """
        self.require_sealed(number, shards)
        new = [shard for shard in shards if (number, shard) not in self._seals]
        self.in_parallel(lambda shard: self._sums(number, shard, "direction"), new)

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
                    content = self.objects.read(key)
                    found[name] = decode_column(content, shape, self.columns[name])
            return found
        place = self.layout.columns.index
        with self._reading(number, COLUMNS, shard) as key:
            content = self.objects.read(key)
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

    def in_parallel(self, do: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Apply `do` to each item, in parallel if a request takes milliseconds."""
        if not self.objects.remote or len(items) < 2:
            return [do(item) for item in items]
        with ThreadPoolExecutor(_MOST_REQUESTS) as pool:
            return list(pool.map(do, items))


class _Reading:
    """Context of reading an object: errors name the object and the fix."""

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
                f"{self._part.objects.location}` to see what is damaged; if another process "
                "vacuumed the store, open it again."
            ) from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
