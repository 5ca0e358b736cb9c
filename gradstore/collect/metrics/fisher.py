"""The diagonal of the empirical Fisher matrix as a metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gradstore.collect import devices
from gradstore.collect.metrics.whitening import Whitening
from gradstore.collect.models.parameters import num_parameters

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from gradstore.collect.engines import GradientEngine
    from gradstore.collect.metrics.protocol import Fitting
    from gradstore.store.format.spec import Identity

# Entries that are computed in float64 at once.
_AT_ONCE = 1 << 18


class Damped:
    """A metric that is fitted to events and damped; a base class.

    Args:
        damping: added to eigenvalues, relative to their mean.
    """

    name: str

    def __init__(self, damping: float = 0.1) -> None:
        self.damping = damping

    def identity(self) -> Identity:
        """Name and damping."""
        return {"name": self.name, "damping": self.damping}

    def source(self, folder: Path) -> None:
        """Nothing but the weights is read."""


class Fisher(Damped):
    """Multiplies a gradient by `(F + damping · mean F)^(−½)`; F is the mean of g² over events.

    Args:
        damping: added to F, relative to its mean over all parameters.
    """

    name = "fisher"
    layerwise = False
    passes = 1

    def fit(self, fitting: Fitting) -> Whitening:
        """See `Metric.fit`."""
        engine = fitting.engine(fitting.model, fitting.objective)
        return Whitening(inverse_root(second_moments(fitting, engine), self.damping))


def second_moments(fitting: Fitting, engine: GradientEngine) -> Tensor:
    """Means over events of the squares of an engine's gradients, float32 `[parameters]`."""
    moments = torch.zeros(num_parameters(fitting.model), device=fitting.device)
    events = 0

    def receive(start: int, piece: Tensor) -> None:
        moments[start : start + piece.shape[1]] += piece.float().square().sum(0)

    for batch in fitting.batches():
        engine(batch, receive)
        events += len(batch)
    return moments.div_(events)


def inverse_root(moments: Tensor, damping: float) -> Tensor:
    """`(m + damping · mean m)^(−½)`; 0 if all moments are 0, since there is no gradient then.

    NaN stays NaN, for the caller to find.
    """
    pieces = torch.split(moments, _AT_ONCE)
    mean = sum(float(devices.exact(one).sum()) for one in pieces) / len(moments)
    found = torch.empty_like(moments)
    for own, into in zip(pieces, torch.split(found, _AT_ONCE), strict=True):
        damped = devices.exact(own) + damping * mean
        into.copy_(torch.where(damped == 0, 0.0, damped.rsqrt()))
    return found
