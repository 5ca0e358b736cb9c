"""The shards of a part: names of their objects, and seals, which tell what the objects must be."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import numpy as np
from pydantic import Field, ValidationError

from gradstore.errors import StoreError, UnsealedError
from gradstore.store.format.encoding import ShardCodec, column_nbytes, column_sum
from gradstore.store.format.layout import DTYPES, row_columns
from gradstore.store.format.spec import Sha256, Spec
from gradstore.store.objects.protocol import ChangedError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from gradstore.store.format.layout import Layout
    from gradstore.store.format.spec import PartSpec
    from gradstore.store.objects.protocol import Objects

T = TypeVar("T")
R = TypeVar("R")

COLUMNS: Final = "columns"
"""Name of the array that holds all numbers of the rows besides their directions."""
_MOST_REQUESTS: Final = 16
_MOST_SEAL_BYTES: Final = 65_536


class SealedObject(Spec):
    """A seal's entry for one object.

    Attributes:
        nbytes: its size in bytes.
        sha256: its SHA-256, as `sha256sum` shows it.
        crc32c: the CRC32C of each of its chunks, in order, 8 hex digits each, little endian. A
            reader of a few chunks compares them. None in format 1.
    """

    nbytes: Annotated[int, Field(ge=0)]
    sha256: Sha256
    crc32c: Annotated[str, Field(pattern="^([0-9a-f]{8})+$")] | None = None

    @cached_property
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
    samples_sha256: Sha256 | None = None
    metric: Sha256 | None = None
    objects: dict[str, SealedObject]


class PartShards:
    """The shards of a part of a store.

    Attributes:
        objects: objects of the whole store.
        spec: the part's path, layout and provenance.
        layout: shapes and partition.
        location: path or URL, as users write it.
        fingerprints: fingerprint of the rows at each checkpoint, by the checkpoint's number.
        fits: SHA-256 of the fitted metric at each checkpoint that has one, by its number.

    Args:
        is_current: whether the store is still as it was when the part was opened.
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
        self._seals: dict[tuple[int, int], Seal] = {}

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

    def lease_key(self, number: int, shard: int) -> str:
        """Key of the lease of a shard's writer, under a URL."""
        return self.key(f"seals/{number}/{shard}.lease")

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of a checkpoint."""
        return ("direction", COLUMNS) if self.layout.columns else ("direction", *self.columns)

    def sealed(self, number: int) -> set[int]:
        """The currently sealed shards of a checkpoint."""
        try:
            names = self.objects.names(self.key(f"seals/{number}"))
        except OSError as error:
            raise StoreError(
                f"{self.location}: the seals of checkpoint {number} cannot be listed: "
                f"{reason(error)}. Check that the disk or network is available."
            ) from error
        stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return {int(stem) for stem in stems if stem.isdecimal() and len(stem) < 20}

    def seal(self, number: int, shard: int) -> Seal:
        """The seal of a shard."""
        where = f"{self.location}: the seal of checkpoint {number}, shard {shard}"
        most = _MOST_SEAL_BYTES + 8 * self.codec.chunks(self.layout.shard_samples)
        try:
            content = self.objects.read(self.seal_key(number, shard), most)
        except FileNotFoundError:
            raise self.unsealed(number, {shard}) from None
        except TooLargeError:
            content = b""  # a damaged one
        except OSError as error:
            raise StoreError(
                f"{where} cannot be read: {reason(error)}. Check that the disk or network is "
                "available."
            ) from error
        try:
            return Seal.model_validate_json(content)
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
            chunks, nbytes = 1, self.column_nbytes(name)
            if name == "direction":
                chunks, nbytes = self.codec.chunks(seal.rows), self.codec.nbytes(seal.rows)
            sums = 8 * chunks if self.layout.columns else 0
            if one.nbytes != nbytes or len(one.crc32c or "") != sums:
                return f"its seal is of another {name} than one of {nbytes} bytes"
        return None

    def column_nbytes(self, name: str) -> int:
        """Bytes of the object of an array besides the directions."""
        shape = self.layout.shard_samples, self.layout.slots
        if name == COLUMNS:
            return column_nbytes((*shape, len(self.layout.columns)), "float32")
        return column_nbytes(shape, self.columns.get(name, "float32"))

    def metrics(self, number: int) -> set[str | None]:
        """The metrics that the sealed rows of a checkpoint went through; see `Seal.metric`."""
        return {self._trusted(number, shard).metric for shard in self.sealed(number)}

    def _trusted(self, number: int, shard: int) -> Seal:
        """The seal of a shard, if it can be that; it is read once."""
        known = self._seals.get((number, shard))
        if known is None:
            known = self.seal(number, shard)
            problem = self.problem(number, shard, known)
            if problem is not None:
                raise StoreError(
                    f"{self.location}: checkpoint {number}, shard {shard}: {problem}. Collect it "
                    f"again: gradstore verify {self.objects.location} --repair"
                )
            self._seals[number, shard] = known
        return known

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
            sums = self._trusted(number, shard).objects[name].sums
            if sums is None or np.array_equal(sums[chunks], found):
                return
            # Another process may have sealed the shard again since its seal was read.
            self._seals.pop((number, shard), None)
        raise StoreError("it is not the object that its seal describes")

    def missing(self, number: int) -> list[int]:
        """The shards of a checkpoint that are not sealed."""
        return sorted(set(range(self.layout.shards)) - self.sealed(number))

    def require_current(self, cause: Exception | None = None) -> None:
        """Raise `ChangedError` if the store was changed: then something may well be missing."""
        if not self._is_current():
            raise ChangedError(
                f"{self.objects.location} was changed by another process since it was opened. "
                "Open it again, or run the same command again."
            ) from cause

    def unsealed(self, number: int, shards: Iterable[int]) -> UnsealedError:
        """The error to raise if shards are not sealed.

        Raises:
            ChangedError: if the store was changed.
        """
        self.require_current()
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
        if len(wanted) == 1 and self.has_seal(number, *wanted):
            return  # a reader of single shards does not list all seals for each
        lacking = wanted - self.sealed(number)
        if lacking:
            raise self.unsealed(number, lacking)

    def has_seal(self, number: int, shard: int) -> bool:
        """Whether a shard is sealed, by one request."""
        try:
            self.objects.size(self.seal_key(number, shard))
        except OSError:  # of any kind: what follows meets it again, and reports the reason
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
        self.in_parallel(lambda shard: self._trusted(number, shard), new)

    def in_parallel(self, do: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Apply `do` to each item, in parallel if a request takes milliseconds."""
        if not self.objects.remote or len(items) < 2:
            return [do(item) for item in items]
        with ThreadPoolExecutor(_MOST_REQUESTS) as pool:
            return list(pool.map(do, items))


def reason(error: OSError) -> str:
    """What went wrong, in words."""
    return error.strerror or str(error)
