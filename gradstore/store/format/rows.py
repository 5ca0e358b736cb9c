"""Rows in memory: the projected gradients of some samples at one checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Rows:
    """Rows of some samples at one checkpoint.

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

    def stored(self, dtype: str) -> dict[str, NDArray[Any]]:
        """The arrays to store for directions of a dtype, by name.

        For int8, `scale` is the largest absolute entry of the row divided by 127, and each entry is
        rounded to a multiple of `scale`, with an error of at most `scale` / 2. If `scale` is below
        float32's smallest normal number, its multiples are not exact, and the direction is zero.
        """
        arrays: dict[str, NDArray[Any]] = {item.name: getattr(self, item.name) for item in ROWS}
        if dtype == "int8":
            exact = self.direction.astype(np.float32, copy=False)
            scale = np.abs(exact).max(axis=2) / np.float32(127)
            scale[scale < np.finfo(np.float32).tiny] = 0
            divisor = np.where(scale > 0, scale, np.float32(np.inf))
            arrays["direction"] = np.rint(exact / divisor[:, :, None]).astype(np.int8)
            arrays["scale"] = scale
        return arrays

    @classmethod
    def restored(cls, arrays: Mapping[str, NDArray[Any]]) -> Rows:
        """Rows from stored arrays. int8 directions become float32."""
        direction = restored_direction(arrays["direction"], arrays.get("scale"))
        return cls(direction, arrays["norm"], arrays["loss"], arrays["timestep"])


def restored_direction(direction: NDArray[Any], scale: NDArray[np.float32] | None) -> NDArray[Any]:
    """Directions from their stored form: int8 with its scale becomes float32."""
    return direction if scale is None else direction * scale[:, :, None]


ROWS = fields(Rows)
ARRAYS = tuple(item.name for item in ROWS)


def columns(dtype: str) -> dict[str, str]:
    """Name and dtype of the arrays `[samples, slots]` stored with directions of a dtype."""
    plain = {"norm": "float32", "loss": "float32", "timestep": "int32"}
    return {**plain, "scale": "float32"} if dtype == "int8" else plain


def given_dtype(dtype: str) -> str:
    """Dtype of `Rows.direction` for directions stored in `dtype`."""
    return "float32" if dtype == "int8" else dtype
