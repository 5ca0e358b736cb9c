"""Images of a store's samples, for display."""

from __future__ import annotations

import base64
import io
import logging
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gradstore.collect.recorded import part_dataset
from gradstore.errors import ConfigError, GradstoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from gradstore.collect import Samples
    from gradstore.store.reader import Store

_log = logging.getLogger("gradstore")


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

    sets = []
    shown = set(store.manifest.ids)
    for part in store.parts:
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
        own = [name for name in part.manifest.ids if name in shown]
        if own:
            sets.append(samples.only(own))
    return sets[0] if len(sets) == 1 else Joined(sets)


def data_uri(image: Image.Image, side: int) -> str:
    """An image as a PNG in a `data:` URI, at most `side` pixels a side."""
    image = image.copy()
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
