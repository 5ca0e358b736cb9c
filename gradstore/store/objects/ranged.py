"""An object as a file that is read from any place on."""

from __future__ import annotations

import io
import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from gradstore.store.objects.protocol import Objects

# A request takes as long as the transfer of so many bytes.
_LEAST_BYTES: Final = 1 << 16


class RangedFile(io.RawIOBase):
    """An object as a file to read. It is not safe to use in several threads at once.

    The bytes that were read last are kept, so parts of them are not requested again.

    Args:
        objects: objects of a store.
        key: key of the object.
        nbytes: its bytes.
        reading: context of every read, which may raise other errors than `OSError`.
    """

    def __init__(
        self,
        objects: Objects,
        key: str,
        nbytes: int,
        reading: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__()
        self._reading = reading
        self._objects, self._key, self._nbytes = objects, key, nbytes
        self._place = self._start = 0
        self._content = memoryview(b"")

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.IOBase`."""
        before = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._nbytes}
        self._place = max(0, before[whence] + offset)
        return self._place

    def tell(self) -> int:
        """See `io.IOBase`."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`."""
        view = memoryview(buffer).cast("B")
        found = self._span(self._place, min(len(view), max(0, self._nbytes - self._place)))
        view[: len(found)] = found
        self._place += len(found)
        return len(found)

    def _span(self, start: int, length: int) -> memoryview:
        low = start - self._start
        if low < 0 or low + length > len(self._content):
            more = min(max(length, _LEAST_BYTES), self._nbytes - start)
            with self._reading():
                content = self._objects.read_ranges(self._key, [(start, more)])
            self._start, self._content, low = start, content.data, 0
        return self._content[low : low + length]
