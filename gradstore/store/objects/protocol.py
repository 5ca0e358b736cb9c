"""The protocol of a storage backend: named objects, each written whole.

A store needs few operations: write an object whole or not at all, read ranges of it, list names,
remove objects, and replace the root object only if no other process changed it. Code that reads or
writes rows uses disks and networks only through this protocol.
"""

from __future__ import annotations

import errno
from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol

from gradstore.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray


class ChangedError(StoreError):
    """An object has changed since it was read."""


class TooLargeError(OSError):
    """An object has more bytes than it may have.

    Attributes:
        size: its bytes.
    """

    def __init__(self, key: str, size: int, most: int) -> None:
        self.size = size
        super().__init__(errno.EFBIG, f"it has {size:,} bytes; at most {most:,} make sense", key)


class Objects(Protocol):
    """Named objects: keys are relative paths with `/`. All methods raise `OSError` when they fail.

    Attributes:
        location: path or URL, as users write it.
        remote: whether a request takes milliseconds, so that callers should send several at once.
    """

    location: str
    remote: bool

    def read(self, key: str, most: int | None = None) -> bytes:
        """A whole object.

        Args:
            key: key of the object.
            most: bytes that it may have; by default any number.

        Raises:
            TooLargeError: if it is larger; nothing of it is read then.
        """

    def read_ranges(
        self, key: str, ranges: Sequence[tuple[int, int]], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Byte ranges of an object, each (first byte, length), concatenated.

        Args:
            key: key of the object.
            ranges: the ranges.
            out: destination, of exactly the right size; by default a new array, which is allocated
                once the object is known to be large enough.

        Raises:
            OSError: also if the object ends before a range does.
        """

    def read_pieces(
        self, key: str, start: int, length: int, out: NDArray[np.uint8]
    ) -> Iterator[NDArray[np.uint8]]:
        """Consecutive bytes of an object, in order, one piece at a time.

        A small piece is still in the processor's cache when it is used.

        Args:
            key: key of the object.
            start: the first byte.
            length: number of bytes.
            out: buffer as long as a piece, for each piece of a local file; the next piece
                overwrites it. Bytes from a network come as one new piece.

        Raises:
            OSError: also if the object ends before the bytes do.
        """

    def write(self, key: str, content: bytes | bytearray) -> None:
        """Write an object whole or not at all, and replace an existing one."""

    def add(self, key: str, content: bytes) -> None:
        """Write an object whole, if none has its key: of several processes, one succeeds.

        Raises:
            FileExistsError: if it exists. It may be this one, if a reply was lost.
        """

    def create(self, prefix: str, contents: Mapping[str, bytes]) -> None:
        """Write several objects below a prefix, the one named `zarr.json` last.

        Raises:
            FileExistsError: if `zarr.json` already exists; nothing is changed.
        """

    def replace(self, key: str, content: bytes, *, seen: bytes) -> None:
        """Replace an object whose content is still `seen`.

        Raises:
            ChangedError: if the content has changed.
        """

    def flush(self, keys: Iterable[str]) -> None:
        """Wait until written objects and their names survive a power loss."""

    def remove(self, key: str) -> None:
        """Remove an object, if it exists."""

    def remove_all(self, prefix: str) -> None:
        """Remove every object whose key begins with `prefix/`."""

    def names(self, prefix: str) -> set[str]:
        """Names of the objects directly below a prefix, without folders."""

    def size(self, key: str) -> int:
        """Bytes of an object."""

    def version(self, key: str) -> Hashable:
        """A value that changes whenever the object does; None if there is no such value.

        Raises:
            OSError: if the object does not exist.
        """

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Key and bytes of every object below a prefix."""


def digest(content: bytes) -> str:
    """BLAKE2b-128 of some bytes as 32 hex digits, used as a name for the content."""
    return blake2b(content, digest_size=16).hexdigest()
