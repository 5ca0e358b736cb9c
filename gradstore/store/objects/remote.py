"""Objects below a URL, through obstore: S3, Google Cloud Storage, Azure, HTTP.

Credentials, region and endpoint come from the environment, as for the provider's own tools
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …). An object store writes an object whole or not at all,
and keeps it once it has replied, so no flush is needed.
"""

from __future__ import annotations

import errno
import logging
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Lock, Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from gradstore.errors import DependencyError, StoreError
from gradstore.store.objects.protocol import ChangedError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

T = TypeVar("T")

_log = logging.getLogger("gradstore")

# Time of a request, and in which one that fails or hangs is repeated.
_TIMEOUT = timedelta(seconds=30)
_RETRIED = timedelta(seconds=180)
# A request without an answer for so long is told.
_TOLD_SECONDS = 20.0
# How often an answer is asked for again, and what such errors say.
_AGAIN: Final = 3
_PASSING: Final = ("body error", "TimedOut")


class _Waits:
    """Tells of requests without an answer; one thread watches all, since one each costs 0.2 ms."""

    def __init__(self) -> None:
        self._begun: dict[object, tuple[str, float]] = {}
        self._starting = Lock()
        self._thread: Thread | None = None

    @contextmanager
    def told(self, name: str) -> Iterator[None]:
        """Tell of the request in this context if it takes long."""
        with self._starting:
            if self._thread is None or not self._thread.is_alive():  # also in a forked process
                self._thread = Thread(target=self._watch, daemon=True, name="requests")
                self._thread.start()
        own = object()
        self._begun[own] = name, monotonic()
        try:
            yield
        finally:
            del self._begun[own]

    def _watch(self) -> None:
        told: set[object] = set()
        while True:
            sleep(min(1.0, _TOLD_SECONDS / 10))
            now, begun = monotonic(), dict(self._begun)
            told &= begun.keys()
            for own, (name, since) in begun.items():
                if own not in told and now - since >= _TOLD_SECONDS:
                    told.add(own)
                    _log.warning(
                        "%s: no answer for %.0f seconds; it is asked for again, for up to %.0f "
                        "seconds",
                        name,
                        _TOLD_SECONDS,
                        _RETRIED.total_seconds(),
                    )


_WAITS: Final = _Waits()


class RemoteObjects:
    """Objects below a URL.

    Args:
        url: `s3://bucket/prefix` and the like.

    Raises:
        StoreError: if obstore does not support such URLs.
        DependencyError: if obstore is not installed.
    """

    remote = True

    def __init__(self, url: str) -> None:
        try:
            import obstore
            import obstore.store
        except ImportError as error:
            raise DependencyError(
                f"{url} is a URL, and obstore, which reads it, is not installed. "
                "Run: pip install 'gradstore[remote]'"
            ) from error
        self._obstore: Any = obstore
        self.location = url.rstrip("/")
        options = {"allow_http": True} if "http://" in _endpoint(url) else {}
        try:
            self._store = self._obstore.store.from_url(
                self.location,
                client_options={**options, "timeout": _TIMEOUT},
                retry_config={"retry_timeout": _RETRIED},
            )
        except (obstore.exceptions.BaseError, ValueError) as error:
            raise StoreError(
                f"{url} cannot be used: {_first_line(error)}. Give a path, or a URL like "
                "s3://BUCKET/NAME.gradstore, gs://… or az://…"
            ) from error

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        exceptions = self._obstore.exceptions
        try:
            with _WAITS.told(f"{self.location}/{key}"):
                yield
        except (FileNotFoundError, exceptions.NotFoundError) as error:
            raise FileNotFoundError(2, "there is no such object", key) from error
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
            raise FileExistsError(17, "it exists, or was changed", key) from error
        except exceptions.BaseError as error:
            raise OSError(5, _first_line(error), f"{self.location}/{key}") from error

    def _whole(self, key: str, answer: Callable[[], T]) -> T:
        """An answer, asked for again if it is cut off or does not come.

        obstore repeats requests that fail, but no answers that end early, and no writes that hang.
        """
        until = monotonic() + _RETRIED.total_seconds()
        with self._errors(key):
            for _ in range(_AGAIN):
                try:
                    return answer()
                except self._obstore.exceptions.GenericError as error:
                    told = str(error)
                    if monotonic() > until or not any(sign in told for sign in _PASSING):
                        raise
            return answer()

    def _put(self, key: str, content: bytes | bytearray, mode: Any = None) -> None:
        options = {} if mode is None else {"mode": mode}
        self._whole(key, lambda: self._obstore.put(self._store, key, content, **options))

    def read(self, key: str, most: int | None = None) -> bytes:
        """See `Objects`."""

        def answer() -> bytes:
            found = self._obstore.get(self._store, key)
            if most is not None and found.meta["size"] > most:
                raise TooLargeError(key, found.meta["size"], most)
            return bytes(found.bytes())

        return self._whole(key, answer)

    def read_ranges(
        self, key: str, ranges: Sequence[tuple[int, int]], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """See `Objects`."""
        starts, lengths = [start for start, _ in ranges], [length for _, length in ranges]
        # obstore merges adjacent ranges into one request and sends requests in parallel.
        parts: list[Any] = self._whole(
            key,
            lambda: self._obstore.get_ranges(self._store, key, starts=starts, lengths=lengths),
        )
        whole = np.concatenate([np.frombuffer(part, np.uint8) for part in parts])
        if len(whole) != sum(lengths):
            raise OSError(errno.EIO, "it ends early", key)
        if out is None:
            return whole
        out[:] = whole
        return out

    def read_pieces(
        self,
        key: str,
        start: int,
        length: int,
        out: NDArray[np.uint8],  # noqa: ARG002
    ) -> Iterator[NDArray[np.uint8]]:
        """See `Objects`."""
        yield self.read_ranges(key, [(start, length)])

    def write(self, key: str, content: bytes | bytearray) -> None:
        """See `Objects`."""
        self._put(key, content)

    def add(self, key: str, content: bytes) -> None:
        """See `Objects`."""
        self._put(key, content, "create")

    def create(self, prefix: str, contents: Mapping[str, bytes]) -> None:
        """See `Objects`. Objects without `zarr.json` come from an unfinished `create`.

        They are reused if their content is the same; nothing is overwritten.
        """
        under = f"{prefix}/" if prefix else ""
        last = f"{under}zarr.json"
        if self._exists(last):
            raise FileExistsError(17, "it exists", last)
        for key, content in contents.items():
            if key != "zarr.json" and not self._is_new(under + key, content):
                raise OSError(
                    errno.EIO,
                    f"{under + key} already exists with other content, from another process or an "
                    "interrupted one. If it was interrupted, remove its objects",
                )
        if not self._is_new(last, contents["zarr.json"]):
            raise FileExistsError(17, "it exists", last)

    def _is_new(self, key: str, content: bytes) -> bool:
        """Write an object unless it exists; False if it exists with other content."""
        try:
            self._put(key, content, "create")
        except FileExistsError:  # perhaps this one, whose reply was lost
            return self.read(key) == content
        return True

    def size(self, key: str) -> int:
        """See `Objects`."""
        with self._errors(key):
            return int(self._obstore.head(self._store, key)["size"])

    def version(self, key: str) -> None:
        """See `Objects`. None, because a request would take as long as reading."""

    def _exists(self, key: str) -> bool:
        try:
            self.size(key)
        except FileNotFoundError:
            return False
        return True

    def replace(self, key: str, content: bytes, *, seen: bytes) -> None:
        """See `Objects`."""

        def now() -> tuple[bytes, Any]:
            found = self._obstore.get(self._store, key)
            return bytes(found.bytes()), found.meta["e_tag"]

        present, version = self._whole(key, now)
        if present != seen:
            raise ChangedError(f"{self.location}/{key} was changed by another process")
        try:
            self._put(key, content, {"e_tag": version})
        except FileExistsError as error:
            if self.read(key) == content:  # the write succeeded and its reply was lost
                return
            raise ChangedError(f"{self.location}/{key} was changed by another process") from error

    def flush(self, keys: Iterable[str]) -> None:
        """Do nothing: an object store keeps what it has confirmed."""

    def remove(self, key: str) -> None:
        """See `Objects`."""
        with suppress(FileNotFoundError):
            self._whole(key, lambda: self._obstore.delete(self._store, key))

    def remove_all(self, prefix: str) -> None:
        """See `Objects`."""
        keys = [key for key, _ in self.sizes(prefix)]
        if keys:
            self._whole(prefix, lambda: self._obstore.delete(self._store, keys))

    def names(self, prefix: str) -> set[str]:
        """See `Objects`."""
        listed = self._whole(prefix, lambda: self._obstore.list_with_delimiter(self._store, prefix))
        return {item["path"].rsplit("/", 1)[-1] for item in listed["objects"]}

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """See `Objects`."""

        def answer() -> list[tuple[str, int]]:
            batches = self._obstore.list(self._store, prefix or None)
            return [(item["path"], item["size"]) for batch in batches for item in batch]

        yield from self._whole(prefix, answer)


def _endpoint(url: str) -> str:
    """The endpoint from the environment, else the URL itself."""
    import os

    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next((os.environ[name] for name in names if name in os.environ), url)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
