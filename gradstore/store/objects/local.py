"""Objects in a local folder."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import numpy as np

from gradstore.store import locks
from gradstore.store.objects.protocol import ChangedError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray


_FLUSHING = Lock()


class LocalObjects:
    """Files in a folder.

    A rename is atomic for readers, but the system writes to the disk in any order: after a power
    loss, a seal could exist without the data that it covers. So content is flushed before the
    rename, and `flush` flushes the folders that hold the names.

    A store may come from a stranger, so no symbolic link below the root is followed: it might lead
    a reader, or a removal, outside. The root itself may be one.

    Args:
        root: the folder.
    """

    remote = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self.location = str(root)
        self._unflushed: set[Path] = set()
        self._real: set[str] = {""}

    def _path(self, key: str) -> str:
        """The path of an object as a string: creating a `Path` takes ten times as long.

        Raises:
            OSError: if a folder above it is a symbolic link.
        """
        self._folder(key.rpartition("/")[0])
        return f"{self.location}/{key}"

    def _folder(self, prefix: str) -> str:
        """The path of a folder. Each is looked at once, since blocks are read from few folders.

        Raises:
            OSError: if it, or a folder above it, is a symbolic link.
        """
        path = f"{self.location}/{prefix}"
        if prefix not in self._real:
            self._folder(prefix.rpartition("/")[0])
            with suppress(FileNotFoundError):
                _require_no_link(path)
                self._real.add(prefix)
        return path

    def read(self, key: str, most: int | None = None) -> bytes:
        """See `Objects`."""
        with _open(self._path(key)) as file:
            size = os.fstat(file.fileno()).st_size
            if most is not None and size > most:
                raise TooLargeError(key, size, most)
            return file.readall()

    def read_ranges(
        self, key: str, ranges: Sequence[tuple[int, int]], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """See `Objects`."""
        # Not a memory map: if a file is truncated or its disk disappears, a map kills the process
        # with a signal, and a read raises an error.
        with _open(self._path(key)) as file:
            size = os.fstat(file.fileno()).st_size
            if any(start + length > size for start, length in ranges):
                raise OSError(errno.EIO, f"it has only {size} bytes")
            if out is None:
                out = np.empty(sum(length for _, length in ranges), np.uint8)
            view, place = memoryview(out.data), 0
            for start, length in ranges:
                _fill(file, view[place : place + length], start)
                place += length
            return out

    def read_pieces(
        self, key: str, start: int, length: int, out: NDArray[np.uint8]
    ) -> Iterator[NDArray[np.uint8]]:
        """See `Objects`."""
        with _open(self._path(key)) as file:
            for place in range(start, start + length, len(out)):
                piece = out[: start + length - place]
                _fill(file, memoryview(piece.data), place)
                yield piece

    def write(self, key: str, content: bytes | bytearray) -> None:
        """See `Objects`."""
        with self._writing(key, content) as (writing, file):
            writing.replace(file)

    def add(self, key: str, content: bytes) -> None:
        """See `Objects`."""
        with self._writing(key, content) as (writing, file):
            os.link(writing, file)
            writing.unlink()

    @contextmanager
    def _writing(self, key: str, content: bytes | bytearray) -> Iterator[tuple[Path, Path]]:
        """A file with an object's content under a temporary name, and the object's file."""
        file = self.root / key
        self._path(key)
        self._make(file.parent)
        writing = file.with_name(f".{file.name}.{uuid4().hex}")
        try:
            _write(writing, content)
            yield writing, file
            self._changed(file.parent)
        except BaseException:
            writing.unlink(missing_ok=True)
            raise

    def _make(self, folder: Path) -> None:
        if not folder.is_dir():
            if folder == self.root or not (self.root / "zarr.json").exists():
                # After a mount is lost, writes would go to the disk below the mount point.
                raise FileNotFoundError(errno.ENOENT, "the store's folder is gone", str(self.root))
            self._make(folder.parent)
            folder.mkdir(exist_ok=True)
            self._changed(folder.parent)

    def _changed(self, folder: Path) -> None:
        with _FLUSHING:
            self._unflushed.add(folder)

    def create(self, prefix: str, contents: Mapping[str, bytes]) -> None:
        """See `Objects`. Built under a temporary name and renamed, so never visible in part."""
        folder = self.root / prefix
        self._path(prefix)
        building = folder.with_name(f".{folder.name}.building-{uuid4().hex}")
        try:
            for key, content in contents.items():
                (building / key).parent.mkdir(parents=True, exist_ok=True)
                _write(building / key, content)
            for inner, _, _ in os.walk(building):
                _sync(Path(inner))
            folder.parent.mkdir(parents=True, exist_ok=True)
            building.rename(folder)
            _sync(folder.parent)
        except OSError as error:
            if folder.exists():
                raise FileExistsError(f"{folder} exists") from error
            raise
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def replace(self, key: str, content: bytes, *, seen: bytes) -> None:
        """See `Objects`."""
        file = self.root / key
        lock = file.with_name(locks.name_of(file.name))
        file.stat()  # raises if a mount is lost; a lock would create the missing folders
        with locks.locked(lock, wait=True):
            if self.read(key) != seen:
                raise ChangedError(f"{self.location}/{key} was changed by another process")
            self.write(key, content)
            self.flush([key])
            # A process that waits for the lock will find that the object differs from its `seen`.
            locks.discard(lock)

    def flush(self, keys: Iterable[str]) -> None:
        """See `Objects`."""
        wanted = {folder for key in keys for folder in (self.root / key).parents}
        with _FLUSHING:  # wait for folders that another thread is flushing
            folders = wanted & self._unflushed
            self._unflushed -= folders  # before the flush, which does not cover later writes
            try:
                for folder in folders:
                    _sync(folder)
            except BaseException:
                self._unflushed |= folders
                raise

    def remove(self, key: str) -> None:
        """See `Objects`."""
        Path(self._path(key)).unlink(missing_ok=True)

    def remove_all(self, prefix: str) -> None:
        """See `Objects`."""
        self._real = {""}  # removed folders may come back as links
        folder = Path(self._path(prefix))
        if folder.is_symlink():
            folder.unlink()
        elif folder.is_dir():
            shutil.rmtree(folder)

    def names(self, prefix: str) -> set[str]:
        """See `Objects`."""
        try:
            with os.scandir(self._folder(prefix)) as entries:
                return {
                    entry.name
                    for entry in entries
                    if not entry.is_dir() and not locks.is_lock(entry.name)
                }
        except FileNotFoundError:
            if not self.root.is_dir():  # the store is gone, not empty: for example a lost mount
                raise
            return set()

    def size(self, key: str) -> int:
        """See `Objects`."""
        return _require_no_link(self._path(key)).st_size

    def version(self, key: str) -> Hashable:
        """See `Objects`."""
        now = _require_no_link(self._path(key))
        return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """See `Objects`."""
        for folder, _, files in os.walk(self._folder(prefix)):
            below = Path(folder).relative_to(self.root).as_posix()
            for name in files:
                if locks.is_lock(name):
                    continue
                with suppress(FileNotFoundError):  # renamed or removed by another process
                    size = os.lstat(f"{folder}/{name}").st_size
                    yield name if below == "." else f"{below}/{name}", size


def _write(file: Path, content: bytes | bytearray) -> None:
    with file.open("xb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


# Windows has no pipes in folders, cannot open folders, and opens files as text by default.
_READING: Final = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NOFOLLOW", 0)
)

_FOLDER: Final[int | None] = getattr(os, "O_DIRECTORY", None)


def _open(file: str | Path) -> FileIO:
    """Open a regular file for reading. Anything else, such as a pipe, might block the reader."""
    if not hasattr(os, "O_NOFOLLOW") and os.path.islink(file):  # noqa: PTH114, it may be a string
        raise _linked(file)
    try:
        opened = os.open(file, _READING)
    except OSError as error:
        if os.path.islink(file):  # noqa: PTH114
            raise _linked(file) from error
        raise
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.EINVAL, "it is not a regular file", str(file))
    return FileIO(opened)


def _require_no_link(path: str) -> os.stat_result:
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        raise _linked(path)
    return found


def _linked(path: str | Path) -> OSError:
    return OSError(
        errno.ELOOP,
        "it is a symbolic link, and none below a store is followed (copy the store without links, "
        "for example with cp -rL)",
        str(path),
    )


def _fill(file: FileIO, view: memoryview, start: int) -> None:
    """Fill a view with the bytes of a file from `start` on."""
    file.seek(start)
    while len(view):
        count = file.readinto(view)
        if not count:
            raise OSError(errno.EIO, "it ends before the requested bytes")
        view = view[count:]


def _sync(folder: Path) -> None:
    """Wait until the names in a folder survive a power loss, if the system supports this."""
    if _FOLDER is None:
        return
    opened = os.open(folder, os.O_RDONLY | _FOLDER)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
