"""Rows in memory: the projected gradients of some samples at one checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

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
        norm: L2 norm of the full gradient before projection, mapped by the metric if there is one,
            float32 `[samples, slots]`.
        loss: value of the objective, float32 `[samples, slots]`.
        timestep: diffusion timestep, int32 `[samples, slots]`.
        raw_norm: L2 norm of the gradient without the metric, float32 `[samples, slots]`; None if
            there is no metric, because then it is `norm`.
        sigma: noise level σ of the timestep, float32 `[samples, slots]`; None if the objective's
            level is the timestep itself.
    """

    direction: NDArray[Any]
    norm: NDArray[np.float32]
    loss: NDArray[np.float32]
    timestep: NDArray[np.int32]
    raw_norm: NDArray[np.float32] | None = None
    sigma: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.norm)

    def stored(self, dtype: str) -> dict[str, NDArray[Any]]:
        """The arrays to store for directions of a dtype, by name.

        For int8, `scale` is the largest absolute entry of the row divided by 127, and each entry is
        rounded to a multiple of `scale`, with an error of at most `scale` / 2. If `scale` is below
        float32's smallest normal number, its multiples are not exact, and the direction is zero.
        """
        arrays: dict[str, NDArray[Any]] = {
            item.name: value for item in ROWS if (value := getattr(self, item.name)) is not None
        }
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
        return cls(
            direction,
            arrays["norm"],
            arrays["loss"],
            arrays["timestep"],
            raw_norm=arrays.get("raw_norm"),
            sigma=arrays.get("sigma"),
        )


def restored_direction(direction: NDArray[Any], scale: NDArray[np.float32] | None) -> NDArray[Any]:
    """Directions from their stored form: int8 with its scale becomes float32."""
    return direction if scale is None else direction * scale[:, :, None]


ROWS = fields(Rows)

# Fields that the rows of every store have.
ARRAYS: Final = ("direction", "norm", "loss", "timestep")


def given_dtype(dtype: str) -> str:
    """Dtype of `Rows.direction` for directions stored in `dtype`."""
    return "float32" if dtype == "int8" else dtype
