"""Files of fitted metrics, named by their content."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from gradstore.errors import StoreError

if TYPE_CHECKING:
    from gradstore.store.reader import Store


def metric_key(digest: str) -> str:
    """Key of the file with this SHA-256."""
    return f"metrics/{digest}.safetensors"


def read_metric(store: Store, number: int) -> bytes | None:
    """The file of a checkpoint's metric; None if the root names none.

    Args:
        store: the store.
        number: number of the checkpoint.

    Raises:
        StoreError: if it is missing or differs from its name.
    """
    digest = next((one.metric for one in store.spec.checkpoints if one.number == number), None)
    if digest is None:
        return None
    where = f"{store.location}/{metric_key(digest)}, the metric at checkpoint {number},"
    try:
        content = store.objects.read(metric_key(digest))
    except OSError as error:
        raise StoreError(
            f"{where} cannot be read: {error.strerror or error}. Restore it from a copy of the "
            "store."
        ) from error
    if sha256(content).hexdigest() != digest:
        raise StoreError(
            f"{where} has changed since it was written. Restore it from a copy of the store."
        )
    return content
