"""Arrays of a shard as the bytes of Zarr objects, and back. Pure.

These are Zarr v3's own codecs, for the few shapes that a store has: `bytes` (little endian) and
`crc32c`, within `sharding_indexed` for directions. They are written out here because zarr-python
takes about 0.1 ms of Python per chunk, and a chunk here is a row or two: so small, that one row can
be read and its checksum checked without reading its neighbours. Chunks stand in order, so that the
place of a row follows from its number and no index has to be read first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import google_crc32c
import numpy as np

from gradstore.errors import StoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.store.format.layout import Layout

_CRC_BYTES: Final = 4
# The CRC32C of anything that is followed by its own CRC32C.
_RESIDUE: Final = 0x48674BC7
_EMPTY: Final = np.uint64(2**64 - 1)


def encode_column(values: NDArray[Any], fill: float, length: int) -> bytes:
    """One chunk: values `[samples, slots]`, padded with `fill` to `length` samples."""
    padded = np.full((length, *values.shape[1:]), fill, values.dtype.newbyteorder("<"))
    padded[: len(values)] = values
    content = padded.tobytes()
    return content + _crc(content)


def decode_column(content: bytes, length: int, slots: int, dtype: str) -> NDArray[Any]:
    """Values `[length, slots]` of a chunk.

    Raises:
        StoreError: if the bytes are too few or too many, or their checksum differs.
    """
    little = np.dtype(dtype).newbyteorder("<")
    _require_size(len(content), length * slots * little.itemsize + _CRC_BYTES)
    if _crc(content[:-_CRC_BYTES]) != content[-_CRC_BYTES:]:
        raise StoreError("its checksum differs")
    values = np.frombuffer(content, little, length * slots).reshape(length, slots)
    return values.astype(dtype, copy=False)


class ShardCodec:
    """Directions of a shard, `[samples, slots, dim]`, as one object.

    The chunks, each with its CRC32C, one after the other; then Zarr's shard index: offset and
    length of every chunk, and a CRC32C of its own.

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

    def _chunks(self, samples: int) -> int:
        return -(-samples // self._layout.chunk_samples)

    def nbytes(self, samples: int) -> int:
        """Bytes of the object of a shard of so many samples."""
        index = self._layout.shard_samples // self._layout.chunk_samples * 16 + _CRC_BYTES
        return self._chunks(samples) * self.stride + index

    def most_bytes(self, samples: int) -> int:
        """Bytes of the chunks that hold so many neighbouring samples, wherever they begin."""
        return (self._chunks(samples) + 1) * self.stride

    def encode(self, direction: NDArray[Any]) -> bytearray:
        """The object of a shard that holds `direction`."""
        layout = self._layout
        chunks = self._chunks(len(direction))
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

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Where the chunks of samples `start` to `stop` of a shard lie: first byte, bytes."""
        first, last = start // self._layout.chunk_samples, self._chunks(stop)
        return first * self.stride, (last - first) * self.stride

    def checked(self, content: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The bytes of whole chunks as uint8 `[chunks, stride]`, if their checksums are right.

        Raises:
            StoreError: if the bytes are too few or too many, or a checksum differs.
        """
        chunks = self.whole(content)
        value = google_crc32c.value
        if any([value(chunk) != _RESIDUE for chunk in chunks]):  # noqa: C419, half the time
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
        """Directions `[samples, slots, dim]` of checked chunks; a view if a chunk is a sample."""
        layout = self._layout
        rows = chunks[:, :-_CRC_BYTES].view(self._dtype)
        rows = rows.reshape(len(chunks) * layout.chunk_samples, layout.slots, layout.dim)
        return rows.astype(layout.dtype, copy=False)


def _crc(content: bytes) -> bytes:
    return int(google_crc32c.value(content)).to_bytes(_CRC_BYTES, "little")


def _require_size(found: int, expected: int) -> None:
    if found != expected:
        raise StoreError(f"it has {found} bytes where {expected} belong")
