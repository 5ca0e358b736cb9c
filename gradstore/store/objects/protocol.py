"""The protocol of a place where a store's bytes lie: named objects, each read and written whole.

A store needs little of its place: to write an object whole or not at all, to read parts of one, to
list names, to remove, and to replace its root object only if nobody else changed it. Code that
reads or writes rows knows nothing else of disks and networks.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol

from gradstore.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray


class ChangedError(StoreError):
    """An object is not what it was when it was read."""


class Objects(Protocol):
    """Named objects: keys are relative paths with `/`. All methods raise `OSError` when they fail.

    Attributes:
        location: path or URL, as people write it.
        remote: whether a request takes milliseconds, so that several had better be under way.
    """

    location: str
    remote: bool

    def read(self, key: str) -> bytes:
        """A whole object."""

    def read_ranges(
        self, key: str, ranges: Sequence[tuple[int, int]], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Parts of an object, each (first byte, length), one after the other.

        Args:
            key: the object.
            ranges: the parts.
            out: where they go, of just the right size; by default a new array, which is made
                when the object is known to be large enough.

        Raises:
            OSError: also where the object ends before a part does.
        """

    def read_pieces(
        self, key: str, start: int, length: int, out: NDArray[np.uint8]
    ) -> Iterator[NDArray[np.uint8]]:
        """Neighbouring bytes of an object, a piece at a time, in order.

        What was just read is still in the processor's cache when it is worked on, where pieces are
        small.

        Args:
            key: the object.
            start: the first byte.
            length: how many bytes.
            out: where every piece of a local file goes, as long as a piece; the next piece
                overwrites it. What comes over a network comes as one piece.

        Raises:
            OSError: also where the object ends before the bytes do.
        """

    def write(self, key: str, content: bytes | bytearray) -> None:
        """Write an object, whole or not at all. It replaces one of that name."""

    def create(self, prefix: str, contents: Mapping[str, bytes]) -> None:
        """Write several objects below a prefix, of which the one named `zarr.json` comes last.

        Raises:
            FileExistsError: if `zarr.json` is there already; nothing is changed.
        """

    def replace(self, key: str, content: bytes, *, seen: bytes) -> None:
        """Write an object that was `seen` when it was read.

        Raises:
            ChangedError: if it is something else by now.
        """

    def flush(self, keys: Iterable[str]) -> None:
        """Wait until objects that were written, and their names, outlast a loss of power."""

    def remove(self, key: str) -> None:
        """Remove an object, if it is there."""

    def remove_all(self, prefix: str) -> None:
        """Remove every object whose key begins with `prefix/`."""

    def names(self, prefix: str) -> set[str]:
        """Names of the objects, but not of the folders, right below a prefix."""

    def size(self, key: str) -> int:
        """Bytes of an object."""

    def version(self, key: str) -> Hashable:
        """What stays the same only as long as an object does; None if that cannot be told.

        Raises:
            OSError: if it is not there.
        """

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Key and bytes of every object below a prefix."""


def digest(content: bytes) -> str:
    """BLAKE2b-128 of some bytes, 32 hex digits: a name for what they say."""
    return blake2b(content, digest_size=16).hexdigest()
