"""The metric of Adam: gradients times the step that Adam takes along each parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from gradstore.collect.metrics.rounding import is_rounding, rounding_floor
from gradstore.collect.metrics.whitening import Whitening
from gradstore.collect.models.optimizer import load_moments, moments_digest
from gradstore.collect.models.parameters import trainable
from gradstore.collect.objectives.wrappers import precision

if TYPE_CHECKING:
    from pathlib import Path

    from gradstore.collect.metrics.protocol import Fitting
    from gradstore.store.format.spec import Identity

# An entry that never had a gradient has v̂ = 0 and a step of 1/ε = 10⁸. It would hold all of a
# row's length, so steps above this quantile of all steps are cut to it.
CLAMP: Final = 0.99


class Adam:
    """Multiplies a gradient by `D = 1 / (√v̂ + ε)`, with the v̂ of training at the checkpoint.

    A step of training moves the weights by `−lr · D g` (arXiv 1412.6980, without momentum), so rows
    `D g` are what a sample did to the weights. D is 0 for parameters that moved by rounding only
    (see `rounding`): such a step does not change what the model computes.
    """

    name = "adam"
    layerwise = False
    passes = 0

    def identity(self) -> Identity:
        """Name and quantile."""
        return {"name": self.name, "clamp": CLAMP}

    def source(self, folder: Path) -> str:
        """Digest of the optimiser's state."""
        return moments_digest(folder)

    def fit(self, fitting: Fitting) -> Whitening:
        """See `Metric.fit`."""
        found = load_moments(fitting.folder, fitting.model)
        known = [found[name] for name in trainable(fitting.model)]
        floor = rounding_floor([moments for moments, _ in known], precision(fitting.objective))
        steps = [
            torch.zeros_like(moments)
            if is_rounding(moments, floor)
            else 1 / (moments.sqrt() + epsilon)
            for moments, epsilon in known
        ]
        flat = torch.cat([one.flatten() for one in steps])
        most = flat.kthvalue(max(1, int(CLAMP * len(flat)))).values
        return Whitening(flat.clamp(max=most.item()))
