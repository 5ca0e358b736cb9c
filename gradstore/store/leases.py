"""Leases: under a URL, where nothing can be locked, a shard has one writer at a time.

Two processes whose threads or devices differ compute rows that differ by rounding. If both wrote
one shard, the seal of one could meet the objects of the other. So a writer first creates a lease,
an object with a text of its own, on the condition that it does not exist, and removes it when the
shard is sealed. Others wait. If a lease stays for a minute, its holder is taken for dead, and
another writer replaces the lease on the condition that it has not changed.

A holder that was only stopped finds its lease lost: it looks before it writes, before it seals, and
when it has ended. Then it writes the shard again, because it may have been stopped between looking
and writing. If it dies in just that moment, the shard contradicts its seal, which every reader and
`verify` find.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from gradstore.store.objects.protocol import ChangedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradstore.store.objects.protocol import Objects

PATIENCE_SECONDS = 60.0
"""How long an unchanged lease is respected. Writing a shard takes far less."""
_POLL_SECONDS: Final = 0.2
_MOST_BYTES: Final = 64


class LostError(Exception):
    """The lease was taken over by another process."""


class Lease:
    """A lease that this process holds.

    Attributes:
        waited: whether another process held it before.
    """

    def __init__(self, objects: Objects, key: str) -> None:
        self._objects = objects
        self._key = key
        self._mine = uuid4().hex.encode()
        self.waited = False

    def acquire(self) -> None:
        """Wait until it is held.

        Raises:
            OSError: if it cannot be written or read.
        """
        seen, since = b"", monotonic()
        while True:
            with suppress(FileExistsError):
                self._objects.add(self._key, self._mine)
                return
            with suppress(FileNotFoundError, ChangedError):  # its holder was faster
                now = self._objects.read(self._key, _MOST_BYTES)
                if now == self._mine:  # it was written, and the reply was lost
                    return
                self.waited = True
                if now != seen:
                    seen, since = now, monotonic()
                elif monotonic() - since >= PATIENCE_SECONDS:
                    self._objects.replace(self._key, self._mine, seen=now)
                    return
            sleep(_POLL_SECONDS)

    def require(self) -> None:
        """Raise `LostError` unless it is still held."""
        try:
            held = self._objects.read(self._key, _MOST_BYTES) == self._mine
        except FileNotFoundError:
            held = False
        if not held:
            raise LostError

    def release(self) -> None:
        """Remove it.

        Raises:
            LostError: if it is not held any more.
        """
        self.require()
        self._objects.remove(self._key)


@contextmanager
def leased(objects: Objects, key: str) -> Iterator[Lease]:
    """Hold a lease in this context.

    Args:
        objects: the objects of a store under a URL.
        key: key of the lease.

    Raises:
        LostError: if another process took it over in this context.
        OSError: if it cannot be written or read.
    """
    lease = Lease(objects, key)
    lease.acquire()
    try:
        yield lease
    except BaseException:
        with suppress(LostError, OSError):
            lease.release()
        raise
    with suppress(OSError):  # what is not removed is taken over after a while
        lease.release()
