"""Parameters whose gradients are nothing but rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

# Attention does not depend on the bias of its keys, nor a normalised channel on a shift. Such a
# gradient is 0; computed, it is at most 2e-8 of the others' in float32, where the smallest true one
# of three trained UNets is 1e-2 (roots of mean squares). A metric that divides by a parameter's own
# size would make this noise as large as any gradient.
FLOORS: Final = {"float32": 1e-5, "bfloat16": 1e-3}


def rounding_floor(parts: Sequence[Tensor], precision: str) -> Tensor:
    """The largest mean square of gradients that are rounding alone, in a model.

    Args:
        parts: mean squares of the gradients of all parameters, in any number of tensors.
        precision: arithmetic of the gradients, `float32` or `bfloat16`.
    """
    total = torch.stack([one.sum() for one in parts]).sum()
    return FLOORS[precision] ** 2 * total / sum(one.numel() for one in parts)


def is_rounding(moments: Tensor, floor: Tensor) -> bool:
    """Whether a parameter's gradients are rounding alone, or all 0. NaN is not.

    Args:
        moments: their mean squares.
        floor: the model's `rounding_floor`.
    """
    return bool(moments.mean() <= floor)
