"""Files of fitted metrics, named by their content and a generation of the store.

Two fits of one content may be written at different times. The generation keeps their names apart,
so that a vacuum that removes the first does not remove the second.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from gradstore.errors import StoreError

if TYPE_CHECKING:
    from gradstore.store.reader import Store


def metric_name(content: bytes, generation: int) -> str:
    """Name of a new file of this content."""
    return f"{sha256(content).hexdigest()}.{generation}"


def metric_key(name: str) -> str:
    """Key of the file of that name."""
    return f"metrics/{name}.safetensors"


def read_metric(store: Store, number: int) -> bytes | None:
    """The file of a checkpoint's metric; None if the root names none.

    Args:
        store: the store.
        number: number of the checkpoint.

    Raises:
        StoreError: if it is missing or differs from its name.
    """
    own = next((one for one in store.spec.checkpoints if one.number == number), None)
    if own is None or own.metric is None:
        return None
    name = own.metric
    where = f"{store.location}/{metric_key(name)}, the metric at checkpoint {number},"
    try:
        content = store.objects.read(metric_key(name))
    except OSError as error:
        raise StoreError(
            f"{where} cannot be read: {error.strerror or error}. Restore it from a copy of the "
            "store."
        ) from error
    if sha256(content).hexdigest() != own.metric_sha256:
        raise StoreError(
            f"{where} has changed since it was written. Restore it from a copy of the store."
        )
    return content
