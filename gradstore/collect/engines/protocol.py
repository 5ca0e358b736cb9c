"""What a gradient engine is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from torch import Tensor, nn

from gradstore.collect.objectives.protocol import Batch, Objective

Receive: TypeAlias = Callable[[int, Tensor], None]
"""Takes a piece of the gradients: its position in the flattened parameters, and `[rows, n]`."""


class GradientEngine(Protocol):
    """Computes the gradient of each row's loss with respect to the trainable parameters."""

    def __call__(self, batch: Batch, receive: Receive) -> Tensor:
        """Differentiate a batch.

        Gradients are handed over in pieces as they are found, so that an engine which never holds
        whole gradients fits the same protocol as one which does.

        Args:
            batch: the rows.
            receive: called as `receive(start, gradients)` with `gradients` float `[rows, n]`, of
                parameters `start` to `start + n`, in any order; the pieces of a batch cover the
                flattened parameters exactly once. A piece is the receiver's only during the call.

        Returns:
            Losses `[rows]`.
        """


EngineMaker: TypeAlias = Callable[[nn.Module, Objective], GradientEngine]
"""Makes an engine of an objective at a model, which is in `eval()` mode and left as it is. An
engine's class is one."""
