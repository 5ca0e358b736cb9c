"""Context shared by all peers."""

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
    """The context of the peers: it silences their warnings and prepares for vmap.

    vmap has no fused attention. `no_grad` prevents torch from recording vmap's operations for a
    backward pass that never runs.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        if vmap:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(torch.no_grad())
        # captum states its assumption for a plain loss function: a value per sample. It holds.
        warnings.filterwarnings("ignore", 'Since `(test_)?loss_fn` has no "reduction"', UserWarning)
        # The import of dattri compiles functions, and torch warns about its own code.
        warnings.filterwarnings(
            "ignore", "`torch.jit.script_method` is deprecated", DeprecationWarning
        )
        yield
