"""Images of a store's samples, for display."""

from __future__ import annotations

import base64
import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from gradstore.collect.provenance import Provenance, part_dataset
from gradstore.errors import ConfigError, DatasetError, GradstoreError
from gradstore.flags.dataset import DatasetSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from gradstore.collect import Samples
    from gradstore.store.reader import Store

_log = logging.getLogger("gradstore")

# Images of this side are drawn enlarged, so that any loss would show.
_FEW_PIXELS: Final = 64


class Pictures(Protocol):
    """Samples by number, in store order."""

    def __getitem__(self, row: int) -> Any:
        """Return the sample."""

    def image(self, row: int) -> Image.Image | None:
        """Return the sample as a displayable image, or None if it is not one."""


class Joined:
    """Several sets of samples, concatenated."""

    def __init__(self, sets: Sequence[Samples]) -> None:
        self._sets = sets
        self._starts = np.cumsum([0, *(len(one) for one in sets)])

    def _at(self, row: int) -> tuple[Samples, int]:
        place = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._sets[place], row - int(self._starts[place])

    def __getitem__(self, row: int) -> Any:
        """See `Pictures`."""
        samples, own = self._at(row)
        return samples[own]

    def image(self, row: int) -> Image.Image | None:
        """See `Pictures`."""
        samples, own = self._at(row)
        return samples.image(own)


def pictures(store: Store) -> Pictures | None:
    """Samples that a store was made from; None, with a warning, if they cannot be loaded.

    Raises:
        DatasetError: if the dataset exists but lacks a sample that the store was made from.
    """
    from gradstore.collect import Samples
    from gradstore.collect.data.encoding import as_collected

    sets = []
    for part, low, high in store.spans():
        try:
            spec = part_dataset(store, part.spec)
        except ConfigError as error:
            _log.warning("the report shows no image of %s: %s", part.location, error)
            return None
        if spec is None:
            _log.warning(
                "%s was collected from Python: the report shows no image of it", part.location
            )
            return None
        try:
            samples = Samples.from_spec(spec)
        except GradstoreError as error:
            _log.warning("the report shows no image of %s: %s", part.location, error)
            return None
        own = store.manifest.ids[low:high]
        sets.append(as_collected(samples.only(own), store.spec.identity))
    return sets[0] if len(sets) == 1 else Joined(sets)


def pictures_of(store: Store, dataset: Any) -> Pictures | None:
    """Samples that a store was made from, as it records them, or from another place.

    Args:
        store: the store.
        dataset: what `Samples` accepts, or None for the recorded dataset.

    Raises:
        DatasetError: if the dataset lacks a sample that the store was made from.
    """
    if dataset is None:
        return pictures(store)
    from gradstore.collect import Samples
    from gradstore.collect.data.encoding import as_collected

    identity = store.spec.identity
    if not isinstance(dataset, str | Path):
        reading = Provenance.of(store.spec.parts[0]).reading
        whole = Samples.of(dataset).read_as(reading)
        return as_collected(whole.only(store.manifest.ids), identity)
    # It moved: how it was read stays as it was.
    made_by = Provenance.of(store.spec.parts[0])
    spec = made_by.dataset() or DatasetSpec(dataset="", reading=made_by.reading)
    moved = spec.model_copy(update={"dataset": str(dataset)})
    return as_collected(Samples.from_spec(moved).only(store.manifest.ids), identity)


def image_of(samples: Pictures, store: Store, row: int) -> Image.Image | None:
    """A sample as a displayable image; None if it is not one.

    Raises:
        DatasetError: if it is not what the store was made from.
    """
    if samples[row].digest() != store.manifest.digests[row]:
        raise DatasetError(
            f"sample {store.manifest.ids[row]!r} has changed since {store.location} was made. "
            "Restore the dataset, or collect it into a new store."
        )
    return samples.image(row)


def thumbnail(image: Image.Image, side: int) -> bytes:
    """An image as WebP, at most `side` pixels a side; without loss if it is a few pixels.

    Examples:
        >>> from PIL import Image
        >>> thumbnail(Image.new("L", (8, 8)), 64)[8:12]
        b'WEBP'
    """
    image = image.convert("RGBA" if image.mode in {"RGBA", "LA", "PA"} else "RGB")
    few = max(image.size) <= _FEW_PIXELS
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=few, quality=75)
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    """An image as PNG, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(image: Image.Image, side: int) -> str:
    """An image as `thumbnail`, in a `data:` URI."""
    return "data:image/webp;base64," + base64.b64encode(thumbnail(image, side)).decode()
