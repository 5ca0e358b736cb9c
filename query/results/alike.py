"""Copies within a list: samples of equal digest, and images that hardly differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_SIDE: Final = 16


def mark(image: Image.Image | None) -> NDArray[np.float32]:
    """An image's grey at 16 × 16 places, which near copies share.

    Returns:
        float32 `[256]`, 0 (black) to 1; NaN without an image.

    Examples:
        >>> from PIL import Image
        >>> mark(Image.new("RGB", (300, 200), "white")).min()
        np.float32(1.0)
    """
    if image is None:
        return np.full(_SIDE**2, np.nan, np.float32)
    grey = image.convert("RGB").convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(grey, np.float32).ravel() / np.float32(255)


def firsts(digests: Sequence[str], marks: NDArray[np.float32] | None, near: float) -> list[int]:
    """For each sample of a list, the place of the first that it is a copy of: its own if of none.

    Args:
        digests: digest of each, best first.
        marks: `mark` of each, float32 `[samples, 256]`; may be None if `near` is 0.
        near: images are copies, too, if the root mean square of the difference of their marks is
            below so many percent of the range of grey.

    Examples:
        >>> firsts(["a", "b", "a"], None, 0)
        [0, 1, 0]
    """
    found: list[int] = []
    for place, digest in enumerate(digests):
        earlier = sorted(set(found))
        alike = np.array([digests[one] == digest for one in earlier], bool)
        if marks is not None and near > 0:
            apart = np.sqrt(np.square(marks[earlier] - marks[place]).mean(axis=1))
            alike |= 100 * apart < near
        found.append(earlier[int(alike.argmax())] if alike.any() else place)
    return found
