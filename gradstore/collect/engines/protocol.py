"""The protocol of a gradient engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from torch import Tensor, nn

from gradstore.collect.objectives.protocol import Batch, Objective

Receive: TypeAlias = Callable[[int, Tensor], None]
"""Takes a piece of the gradients: its start in the flattened parameters, and `[rows, n]`."""


class GradientEngine(Protocol):
    """Computes the gradient of each row's loss with respect to the trainable parameters."""

    def __call__(self, batch: Batch, receive: Receive) -> Tensor:
        """Differentiate a batch.

        Gradients are passed on in pieces as they are computed. The protocol therefore fits
        engines with and without full gradients in memory.

        Args:
            batch: the rows.
            receive: called as `receive(start, gradients)` with `gradients` float `[rows, n]`, of
                parameters `start` to `start + n`, in any order. The pieces of a batch cover the
                flattened parameters exactly once. A piece is valid only during the call, in which
                it may be changed: no engine may pass on what it still needs.

        Returns:
            Losses `[rows]`.
        """


EngineMaker: TypeAlias = Callable[[nn.Module, Objective], GradientEngine]
"""Makes an engine from a model and an objective. The model is in `eval()` mode and is not changed.
An engine class is an `EngineMaker`."""
