"""Encoding of a shard's arrays as the bytes of Zarr objects, and decoding. Pure.

The codecs are those of Zarr v3, for the few shapes that a store has: `bytes` (little endian) and
`crc32c`, within `sharding_indexed` for directions. They are reimplemented here because zarr-python
takes about 0.1 ms of Python per chunk. A chunk here is a row or two, so that one row can be read
and its checksum checked without its neighbours. Chunks are stored in order, so that the position
of a row follows from its number and no index has to be read first.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Final

import google_crc32c
import numpy as np

from gradstore.errors import StoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.store.format.layout import Layout

_CRC_BYTES: Final = 4
# The CRC32C of any bytes followed by their own CRC32C.
_RESIDUE: Final = 0x48674BC7
_EMPTY: Final = np.uint64(2**64 - 1)


def encode_column(values: NDArray[Any], fill: float, length: int) -> bytes:
    """Encode values `[samples, …]` as one chunk, padded with `fill` to `length` samples."""
    padded = np.full((length, *values.shape[1:]), fill, values.dtype.newbyteorder("<"))
    padded[: len(values)] = values
    content = padded.tobytes()
    return content + _crc(content)


def decode_column(content: bytes, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Decode the values of a chunk of a shape.

    Raises:
        StoreError: if the bytes are too few or too many, or their checksum differs.
    """
    little = np.dtype(dtype).newbyteorder("<")
    _require_size(len(content), column_nbytes(shape, dtype))
    if _crc(content[:-_CRC_BYTES]) != content[-_CRC_BYTES:]:
        raise StoreError("its checksum differs")
    values = np.frombuffer(content, little, prod(shape)).reshape(shape)
    return values.astype(dtype, copy=False)


def column_nbytes(shape: tuple[int, ...], dtype: str) -> int:
    """Size in bytes of a chunk of a shape, with its checksum."""
    return prod(shape) * np.dtype(dtype).itemsize + _CRC_BYTES


def column_sum(content: bytes | bytearray) -> NDArray[np.uint32]:
    """The checksum that a chunk ends with, `[1]`."""
    return np.frombuffer(content[-_CRC_BYTES:], "<u4")


class ShardCodec:
    """Codec of the directions of a shard, `[samples, slots, dim]`, as one object.

    The object has all chunks in order, each followed by its CRC32C, then Zarr's shard index: offset
    and length of every chunk, and the CRC32C of the index.

    Args:
        layout: shapes and partition.

    Attributes:
        sample_bytes: bytes of the directions of a sample.
        stride: bytes of a chunk with its checksum.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._dtype = np.dtype(layout.dtype).newbyteorder("<")
        self.sample_bytes = layout.slots * layout.dim * self._dtype.itemsize
        self.stride = layout.chunk_samples * self.sample_bytes + _CRC_BYTES

    def chunks(self, samples: int) -> int:
        """Number of chunks of a shard with `samples` samples."""
        return -(-samples // self._layout.chunk_samples)

    def nbytes(self, samples: int) -> int:
        """Size in bytes of the object of a shard with `samples` samples."""
        index = self._layout.shard_samples // self._layout.chunk_samples * 16 + _CRC_BYTES
        return self.chunks(samples) * self.stride + index

    def most_bytes(self, samples: int) -> int:
        """Maximum bytes of the chunks that hold `samples` consecutive samples."""
        return (self.chunks(samples) + 1) * self.stride

    def encode(self, direction: NDArray[Any]) -> bytearray:
        """Encode `direction` as the object of a shard."""
        layout = self._layout
        chunks = self.chunks(len(direction))
        content = bytearray(self.nbytes(len(direction)))
        end = chunks * self.stride
        body = np.frombuffer(content, np.uint8, end).reshape(chunks, self.stride)
        samples = chunks * layout.chunk_samples
        whole = np.ascontiguousarray(direction, self._dtype)
        if samples > len(whole):
            fill = 0 if self._dtype.kind == "i" else np.nan
            rest = np.full((samples - len(whole), layout.slots, layout.dim), fill, self._dtype)
            whole = np.concatenate([whole, rest])
        source = whole.reshape(chunks, -1).view(np.uint8)
        body[:, :-_CRC_BYTES] = source
        sums = np.fromiter((google_crc32c.value(chunk) for chunk in source), "<u4", chunks)
        body[:, -_CRC_BYTES:] = sums[:, None].view(np.uint8)
        index = np.full((layout.shard_samples // layout.chunk_samples, 2), _EMPTY, "<u8")
        index[:chunks, 0] = np.arange(chunks) * self.stride
        index[:chunks, 1] = self.stride
        content[end:-_CRC_BYTES] = index.tobytes()
        content[-_CRC_BYTES:] = _crc(bytes(content[end:-_CRC_BYTES]))
        return content

    def sums(self, content: bytes | bytearray, samples: int) -> NDArray[np.uint32]:
        """Checksums of the chunks in the object of a shard with `samples` samples."""
        chunks = self.chunks(samples)
        body = np.frombuffer(content, np.uint8, chunks * self.stride)
        return self.stored_sums(body.reshape(chunks, self.stride))

    def stored_sums(self, chunks: NDArray[np.uint8]) -> NDArray[np.uint32]:
        """The checksums that whole chunks, uint8 `[chunks, stride]`, end with."""
        found: NDArray[np.uint32] = chunks[:, -_CRC_BYTES:].copy().view("<u4")[:, 0]
        return found

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """First byte and number of bytes of the chunks of a shard's samples `start` to `stop`."""
        first, last = start // self._layout.chunk_samples, self.chunks(stop)
        return first * self.stride, (last - first) * self.stride

    def checked(self, content: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The bytes of whole chunks as uint8 `[chunks, stride]`, if their checksums are right.

        Raises:
            StoreError: if the bytes are too few or too many, or a checksum differs.
        """
        chunks = self.whole(content)
        value = google_crc32c.value
        if any([value(chunk) != _RESIDUE for chunk in chunks]):  # noqa: C419, twice as fast
            raise StoreError("a checksum differs")
        return chunks

    def whole(self, content: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The bytes of whole chunks as uint8 `[chunks, stride]`, not checked.

        Raises:
            StoreError: if the bytes are too few or too many.
        """
        if len(content) % self.stride:
            raise StoreError(f"{len(content)} bytes are not whole chunks of {self.stride}")
        return content.reshape(-1, self.stride)

    def rows(self, chunks: NDArray[np.uint8]) -> NDArray[Any]:
        """Directions `[samples, slots, dim]` of checked chunks; a view if a chunk is one sample."""
        layout = self._layout
        rows = chunks[:, :-_CRC_BYTES].view(self._dtype)
        rows = rows.reshape(len(chunks) * layout.chunk_samples, layout.slots, layout.dim)
        return rows.astype(layout.dtype, copy=False)


def _crc(content: bytes) -> bytes:
    return int(google_crc32c.value(content)).to_bytes(_CRC_BYTES, "little")


def _require_size(found: int, expected: int) -> None:
    if found != expected:
        raise StoreError(f"it has {found} bytes instead of {expected}")
