"""All contestants."""

from __future__ import annotations

import warnings
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    Scores: TypeAlias = NDArray[np.float32]


@contextmanager
def peers(*, vmap: bool = True) -> Iterator[None]:
    """What the peers need around them: they warn, and most differentiate by vmap.

    vmap has no fused attention; and under `no_grad` torch's own record of what vmap does, which
    nobody asks for, is not kept.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        if vmap:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(torch.no_grad())
        # captum says what it assumes of a loss that is a plain function: a value per sample. It is.
        warnings.filterwarnings("ignore", 'Since `(test_)?loss_fn` has no "reduction"', UserWarning)
        # dattri compiles functions as it is imported, and torch warns of its own code.
        warnings.filterwarnings(
            "ignore", "`torch.jit.script_method` is deprecated", DeprecationWarning
        )
        yield
