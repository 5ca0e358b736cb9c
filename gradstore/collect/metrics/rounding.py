"""Parameters whose gradients are nothing but rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gradstore.collect import devices

if TYPE_CHECKING:
    from torch import Tensor

# Attention does not depend on the bias of its keys, nor a normalised channel on a shift. Such a
# gradient is 0; computed, it is at most 2e-8 of the others' in float32, where the smallest true one
# of three trained UNets is 1e-2 (roots of mean squares). A metric that divides by a parameter's own
# size would make this noise as large as any gradient.
FLOORS: Final = {"float32": 1e-5, "bfloat16": 1e-3}


def is_rounding(moments: Tensor, whole: Tensor, precision: str) -> bool:
    """Whether the gradients of a parameter are rounding, or all 0. NaN is not.

    Args:
        moments: mean squares of its gradients.
        whole: those of all parameters.
        precision: arithmetic of the gradients, `float32` or `bfloat16`.
    """
    floor = FLOORS[precision] ** 2 * devices.exact(whole).mean()
    return bool(devices.exact(moments).mean() <= floor)
