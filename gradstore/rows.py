"""Rows in memory: the projected gradients of some samples at one checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Rows:
    """Rows of consecutive samples at one checkpoint.

    Attributes:
        direction: projected unit gradients, float16 or float32 `[samples, slots, dim]`; zero where
            the gradient is zero.
        norm: L2 norm of the full gradient before projection, float32 `[samples, slots]`.
        loss: value of the objective, float32 `[samples, slots]`.
        timestep: diffusion timestep, int32 `[samples, slots]`.
    """

    direction: NDArray[Any]
    norm: NDArray[np.float32]
    loss: NDArray[np.float32]
    timestep: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.norm)

    def checksums(self) -> dict[str, str]:
        """BLAKE2b-128 of each array's little-endian bytes, by array name."""
        return {
            item.name: blake2b(
                np.ascontiguousarray(_little_endian(getattr(self, item.name))).data, digest_size=16
            ).hexdigest()
            for item in fields(self)
        }


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


ARRAYS = tuple(item.name for item in fields(Rows))
