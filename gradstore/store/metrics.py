"""Files of fitted metrics, named by their content and a generation of the store.

Two fits of one content may be written at different times. The generation keeps their names apart,
so that a vacuum that removes the first does not remove the second.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import numpy as np

from gradstore.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradstore.store.reader import Store

_PIECE_BYTES: Final = 1 << 22


def metric_name(content: bytes, generation: int) -> str:
    """Name of a new file of this content."""
    return f"{sha256(content).hexdigest()}.{generation}"


def metric_key(name: str) -> str:
    """Key of the file of that name."""
    return f"metrics/{name}.safetensors"


@dataclass(frozen=True)
class _Fit:
    """The file of a checkpoint's metric."""

    store: Store
    number: int
    name: str

    @contextmanager
    def read(self) -> Iterator[str]:
        """Provide the file's key, and name it in errors of reading it."""
        try:
            yield metric_key(self.name)
        except OSError as error:
            self.store.require_current(error)
            raise StoreError(
                f"{self._where()} cannot be read: {error.strerror or error}. Restore it from a "
                "copy of the store."
            ) from error

    def require(self, found: str) -> None:
        """Compare a SHA-256 with the file's name."""
        if found != self.name.split(".")[0]:
            raise StoreError(
                f"{self._where()} has changed since it was written. Restore it from a copy of the "
                "store."
            )

    def _where(self) -> str:
        key = metric_key(self.name)
        return f"{self.store.location}/{key}, the metric at checkpoint {self.number},"


def _fit(store: Store, number: int) -> _Fit | None:
    name = next((one.metric for one in store.spec.checkpoints if one.number == number), None)
    return None if name is None else _Fit(store, number, name)


def read_metric(store: Store, number: int, most: int) -> bytes | None:
    """The file of a checkpoint's metric; None if the root names none.

    Args:
        store: the store.
        number: number of the checkpoint.
        most: bytes that it may have; a larger one is not read.

    Raises:
        StoreError: if it is missing, too large, or differs from its name.
    """
    fit = _fit(store, number)
    if fit is None:
        return None
    with fit.read() as key:
        content = store.objects.read(key, most)
    fit.require(sha256(content).hexdigest())
    return content


def check_metric(store: Store, number: int) -> None:
    """Compare the file of a checkpoint's metric with its name, a piece at a time.

    Raises:
        StoreError: if it is missing or differs.
    """
    fit = _fit(store, number)
    if fit is None:
        return
    found, out = sha256(), np.empty(_PIECE_BYTES, np.uint8)
    with fit.read() as key:
        size = store.objects.size(key)
        for start in range(0, size, len(out)):
            length = min(len(out), size - start)
            for piece in store.objects.read_pieces(key, start, length, out):
                found.update(piece.data)
    fit.require(found.hexdigest())
