"""Draws the noise of an event from its noise key alone."""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gradstore.store.format.spec import Identity


# Metadata key of the event file: the probe of the training run's noise stream.
_PROBE = b"gradstore noise probe"


def noise_key(*parts: str | int) -> int:
    """A 64-bit noise key from `parts`, the same on every machine."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def noise(key: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Standard normal noise of a noise key, float32 of `shape`, the same on every machine.

    Examples:
        >>> bool((noise(7, (2, 3)) == noise(7, (2, 3))).all())
        True
    """
    generator = np.random.Generator(np.random.Philox(key=int(key)))
    return generator.standard_normal(tuple(shape), dtype=np.float32)


@cache
def noise_identity() -> Identity:
    """The identity of the noise stream: a hash of some of its numbers, rounded to a thousandth.

    numpy does not promise that the stream of normal numbers stays the same. Rounding hides
    last-bit differences between C libraries.
    """
    drawn = np.stack([noise(noise_key("probe", part), (100,)) for part in range(10)])
    rounded = np.rint(1000 * drawn.astype(np.float64)).astype("<i4")
    return {
        "generator": "numpy.random.Philox, standard_normal of float32",
        "probe": blake2b(rounded.tobytes(), digest_size=8).hexdigest(),
    }
