"""The loss of flow matching, as SD3 and Flux are trained."""

from __future__ import annotations

from math import pi
from typing import TYPE_CHECKING, Any, Final

import torch

from gradstore.collect import devices
from gradstore.collect.objectives.calling import along, at, distance, predict, require_kind
from gradstore.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from gradstore.store.format.spec import Identity

_WEIGHTINGS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "none": torch.ones_like,
    "sigma_sqrt": lambda sigma: sigma**-2,
    "cosmap": lambda sigma: 2 / (pi * (1 - 2 * sigma + 2 * sigma**2)),
    "sample": torch.square,
}


class FlowLoss:
    """The loss of rectified flow, whose model predicts the velocity from sample to noise.

    A sample x and a noise n are mixed to x_σ = (1 − σ) x + σ n. The model is given x_σ and the
    timestep σ · T, and predicts n − x (arXiv 2209.03003; 2403.03206, section 2). The loss of an
    event is the mean over the sample's elements of |prediction − (n − x)| (`l1`) or its square
    (`l2`), times the weight of σ. `square` is the mean of the prediction's square without a
    weight: not a loss, see `DiffusionLoss`.

    The timesteps of events are 0 … T − 1 with σ = s u / (1 + (s − 1) u), u = (t + 1) / T, where s
    is the scheduler's `shift`, or 1 if it shifts dynamically, as in training. That is entry
    T − 1 − t of the scheduler's own `sigmas` and `timesteps`, which run from noise to sample.

    The model is called as `predict` in `objectives/calling.py` says. Flux's transformer takes
    latents `[channels, height, width]`, and with guidance a condition `guidance` per sample.

    Args:
        scheduler: a `FlowMatchEulerDiscreteScheduler`, or one whose configuration has
            `num_train_timesteps` and `shift`.
        loss: `l1`, `l2` or `square`.
        weighting: `none`; `sigma_sqrt`, σ⁻²; `cosmap`, 2 / (π (1 − 2σ + 2σ²)) (arXiv 2403.03206,
            section 3.1); `sample`, σ², which is the error of the predicted sample x_σ − σ ·
            prediction and what diffusers' scripts for SD3 do unless `--precondition_outputs 0`. The
            script's `logit_normal` and `mode` are densities of timesteps; their weight is `none`.

    Examples:
        >>> import gradstore as gs
        >>> from diffusers import FlowMatchEulerDiscreteScheduler
        >>> loss = gs.FlowLoss(FlowMatchEulerDiscreteScheduler(shift=3.0))
        >>> loss.num_train_timesteps, round(float(loss.sigmas[499]), 3)
        (1000, 0.75)
    """

    thread_safe = True

    def __init__(self, scheduler: Any, loss: str = "l2", weighting: str = "none") -> None:
        config = scheduler.config
        if "shift" not in config:
            raise CheckpointError(
                f"{type(scheduler).__name__} is not supported by FlowLoss, which needs a scheduler "
                "of flow matching such as FlowMatchEulerDiscreteScheduler."
            )
        if weighting not in _WEIGHTINGS:
            raise ConfigError(
                f"there is no weighting {weighting!r}; use one of {', '.join(_WEIGHTINGS)}."
            )
        self.loss = require_kind(loss)
        self.weighting = weighting
        self.num_train_timesteps = int(config.num_train_timesteps)
        self.shift = 1.0 if config.get("use_dynamic_shifting") else float(config.shift)
        steps = torch.arange(1, self.num_train_timesteps + 1)
        part = devices.exact(steps) / self.num_train_timesteps
        self.sigmas = self.shift * part / (1 + (self.shift - 1) * part)
        self._told = self.sigmas * self.num_train_timesteps
        self._weights = _WEIGHTINGS[weighting](self.sigmas)

    def identity(self) -> Identity:
        """Loss, weighting, and what determines σ."""
        return {
            "name": "flow",
            "loss": self.loss,
            "weighting": self.weighting,
            "num_train_timesteps": self.num_train_timesteps,
            "shift": self.shift,
        }

    def losses(
        self,
        model: Callable[..., Any],
        inputs: Tensor,
        timesteps: Tensor,
        noise: Tensor,
        conditions: Mapping[str, Tensor],
    ) -> Tensor:
        """See `Objective.losses`."""
        sigma = along(at(self.sigmas, timesteps, inputs), inputs)
        noisy = (1 - sigma) * inputs + sigma * noise
        predicted = predict(model, noisy, at(self._told, timesteps, inputs), conditions)
        found = distance(self.loss, predicted, noise - inputs)
        return found if self.loss == "square" else at(self._weights, timesteps, inputs) * found
