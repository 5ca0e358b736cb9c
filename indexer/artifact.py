"""Artifacts: folders built from one store and refused for any other.

Indexes, kernels and maps are artifacts. Each is built in a temporary folder and renamed as a whole.
A JSON file records what it was built from and the SHA-256 of each file that is read back.
"""

from __future__ import annotations

import errno
import hashlib
import math
import re
import shutil
import time
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import uuid4

import numpy as np
from pydantic import ValidationError

from gradstore.errors import SearchIndexError
from gradstore.store import locks
from gradstore.store.format.spec import Spec
from gradstore.store.objects.location import objects_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gradstore.store.reader import Store

S = TypeVar("S", bound=Spec)

_TRIES: Final = 100
# A reader may look for the artifact and then for its replacement just between their renames, and
# see neither. So it looks again.
_LOOKS: Final = 4
_PAUSE_SECONDS: Final = 0.001
_LOCK: Final = locks.name_of("building")
_LEFT: Final = re.compile(r"\.(?P<whole>.+)\.(?P<kind>building|old)-[0-9a-f]{1,32}")
# NumPy's own limit of a header.
_HEADER_BYTES: Final = 10_000
_KINDS: Final = (".index", ".kernel", ".map")
MOST_SPEC_BYTES: Final = 1 << 20
"""Bytes that an artifact's JSON file may have."""


def file_hash(file: Path) -> str:
    """The SHA-256 digest of a file, 64 hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def require_file(file: Path, sha256: str, most: int) -> None:
    """Raise `OSError` unless `file` is a regular file with this digest, of at most `most` bytes.

    FAISS does not validate its input, and reading a pipe would block forever. A link could lead
    outside the artifact.
    """
    if file.is_symlink() or not file.is_file():
        raise OSError("it is not a regular file")
    size = file.stat().st_size
    if size > most:
        raise OSError(f"it has {size:,} bytes; at most {most:,} make sense")
    if file_hash(file) != sha256:
        raise OSError("it has changed since it was written")


def read_array(
    file: Path, sha256: str, shape: tuple[int, ...], dtype: type[np.generic]
) -> NDArray[Any]:
    """The array in a NumPy file; of a file of another array only the header is read.

    Raises:
        OSError: if the file has another digest.
        ValueError: if the array has another shape or dtype.
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    require_file(file, sha256, nbytes + _HEADER_BYTES)
    with file.open("rb") as opened:
        version = np.lib.format.read_magic(opened)
        if version != (1, 0):
            raise ValueError(f"its version is {version}")
        found, by_columns, kind = np.lib.format.read_array_header_1_0(opened)
        if kind != dtype or found != shape or by_columns:
            raise ValueError(f"it holds {kind} {found}")
        if file.stat().st_size - opened.tell() != nbytes:
            raise ValueError("it is not as long as it says")
        return np.fromfile(opened, dtype).reshape(shape)


def differing(found: Spec, wanted: Spec) -> str | None:
    """First attribute of `wanted` whose value differs in `found`; None if all are equal."""
    names = type(wanted).model_fields
    return next((name for name in names if getattr(found, name) != getattr(wanted, name)), None)


def read_spec(kind: str, path: Path, name: str, spec: type[S], build: str) -> S:
    """Read an artifact's JSON file.

    Args:
        kind: `index`, `kernel` or `map`, for error messages.
        path: the artifact's folder.
        name: name of the JSON file.
        spec: class of the content.
        build: command that builds the artifact.

    Raises:
        SearchIndexError: if the artifact is missing, damaged, or of another version.
    """
    if not stands(path):
        raise SearchIndexError(f"there is no {kind} {path}. Build it: {build}")
    try:
        return spec.model_validate_json(objects_at(path).read(name, MOST_SPEC_BYTES))
    except (OSError, ValidationError) as error:
        raise SearchIndexError(
            f"{path} exists and is not a whole {kind} ({name} is missing or damaged, or of "
            f"another version). Remove {path} and build it again: {build}"
        ) from error


def stands(path: Path) -> bool:
    """Whether there is an artifact; if its replacement was cut off, the earlier one is put back."""
    missing = 0
    for _ in range(_TRIES):  # as long as other processes replace it
        if path.exists():
            return True
        if any(path.parent.glob(f".{escape(path.name)}.*")):
            missing = 0
            _put_back(path)
        elif (missing := missing + 1) == _LOOKS:
            break
        else:
            time.sleep(_PAUSE_SECONDS)
    return path.exists()


def beside(store: Store) -> Path:
    """The folder of a store's artifacts: the present one if the store lies under a URL."""
    return Path() if store.objects.remote else store.path.parent


def leftovers(store: Store) -> list[Path]:
    """Folders beside a store that killed commands left: unfinished indexes, kernels and stores.

    What a process is just building is none of them. An earlier artifact whose replacement was cut
    off is put back first.
    """
    left = []
    for found in sorted(beside(store).glob(f".{escape(store.name)}.*")):
        match = _LEFT.fullmatch(found.name)
        if match is None or found.is_symlink() or not found.is_dir():
            continue
        whole = match["whole"]
        artifact = whole.startswith(f"{store.name}.") and whole.endswith(_KINDS)
        if not (artifact or (not store.objects.remote and whole == store.path.name)):
            continue
        if artifact and match["kind"] == "old":
            stands(found.with_name(whole))
        if found.exists() and not locks.is_held(found / _LOCK):
            left.append(found)
    return left


def _put_back(path: Path) -> None:
    for old in _replaced(path)[:1]:
        with suppress(OSError):  # the replacement ended, or another process was first
            old.rename(path)


def _replaced(path: Path) -> list[Path]:
    """Earlier artifacts that a process moved away and did not remove, the newest first."""
    found = {}
    for old in path.parent.glob(f".{escape(path.name)}.old-*"):
        with suppress(OSError):
            found[old] = old.stat().st_ctime_ns
    return sorted(found, key=lambda old: -found[old])


@contextmanager
def exchanged(kind: str, path: Path) -> Iterator[Path]:
    """Provide a temporary folder that replaces the artifact on success.

    A partly written artifact never has an artifact's name.

    Args:
        kind: `index`, `kernel` or `map`, for error messages.
        path: the artifact's folder.

    Yields:
        An empty folder beside `path`.

    Raises:
        SearchIndexError: if the artifact cannot be written.
    """
    building = path.with_name(f".{path.name}.building-{uuid4().hex}")
    try:
        building.mkdir(parents=True)
        with locks.locked(building / _LOCK, wait=True):  # a killed process would lose it
            yield building
            locks.discard(building / _LOCK)
        _exchange(building, path)
    except (OSError, RuntimeError) as error:  # FAISS raises RuntimeError if the disk is full
        raise SearchIndexError(
            f"{kind} {path} cannot be written: {error}. Free disk space or choose another path, "
            "then run the same command again."
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _exchange(building: Path, path: Path) -> None:
    """Give a finished folder the artifact's name, and remove the earlier artifact.

    Only what this process moved away is removed: what another one did may be the only artifact for
    a moment, which readers put back.
    """
    moved = []
    try:
        for again in reversed(range(_TRIES)):
            old = path.with_name(f".{path.name}.old-{uuid4().hex}")
            with suppress(FileNotFoundError):
                path.rename(old)
                moved.append(old)
            try:
                building.rename(path)
                break
            except OSError as error:  # another process, or a reader, was faster
                if error.errno not in {errno.EEXIST, errno.ENOTEMPTY} or not again:
                    raise
    finally:
        if stands(path):
            for left in moved:
                removing = path.with_name(f".{path.name}.building-{uuid4().hex}")
                with suppress(OSError):  # a reader put it back
                    left.rename(removing)  # so that no reader puts back a part of it
                    if removing.is_symlink():  # to a folder on another disk, which stays
                        removing.unlink()
                    shutil.rmtree(removing, ignore_errors=True)
