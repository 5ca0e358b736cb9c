"""The loss of models with the preconditioning of EDM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from gradstore.collect import devices
from gradstore.collect.objectives.calling import along, at, distance, predict, require_kind
from gradstore.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from gradstore.store.format.spec import Identity


class EDMLoss:
    """The denoising loss of EDM (arXiv 2206.00364, table 1 and equations 7 and 8).

    A sample x is mixed with a noise n to x_σ = x + σ n. The network F denoises it:

        D(x_σ) = c_skip x_σ + c_out F(c_in x_σ, c_noise),
        c_skip = d² / (σ² + d²),  c_out = σ d / √(σ² + d²),  c_in = 1 / √(σ² + d²),
        c_noise = ¼ ln σ,

    with d = `sigma_data`; under `v_prediction` c_out has the other sign. The loss of an event is
    the mean over the sample's elements of |D(x_σ) − x| (`l1`) or its square (`l2`), times the
    weight (σ² + d²) / (σ d)². `square` is the mean of the square of F without a weight: not a
    loss, see `DiffusionLoss`.

    The timesteps of events are 0 … T − 1; σ grows with them over the scheduler's schedule. It is
    entry T − 1 − t of the `sigmas` and `timesteps` that a new scheduler has, which run from noise
    to sample.

    The model is called as `predict` in `objectives/calling.py` says, with c_noise as the timestep.

    Args:
        scheduler: an `EDMEulerScheduler`, or one of the same configuration and functions.
        loss: `l1`, `l2` or `square`.
        weighting: `edm`, the weight above; `none`, as diffusers' `--do_edm_style_training`.

    Examples:
        >>> import gradstore as gs
        >>> from diffusers import EDMEulerScheduler
        >>> loss = gs.EDMLoss(EDMEulerScheduler(sigma_max=80.0))
        >>> loss.num_train_timesteps, float(loss.sigmas[999])
        (1000, 80.0)
    """

    thread_safe = True

    def __init__(self, scheduler: Any, loss: str = "l2", weighting: str = "edm") -> None:
        config = scheduler.config
        if "sigma_data" not in config or not hasattr(scheduler, "precondition_noise"):
            raise CheckpointError(
                f"{type(scheduler).__name__} is not supported by EDMLoss, which needs a scheduler "
                "with sigma_data and preconditioning such as EDMEulerScheduler."
            )
        if weighting not in {"edm", "none"}:
            raise ConfigError(f"there is no weighting {weighting!r}; use 'edm' or 'none'.")
        if config.prediction_type not in {"epsilon", "v_prediction"}:
            raise CheckpointError(
                f"{type(scheduler).__name__} has prediction_type {config.prediction_type!r}; "
                "EDMLoss knows epsilon and v_prediction."
            )
        self.loss = require_kind(loss)
        self.weighting = weighting
        self.num_train_timesteps = int(config.num_train_timesteps)
        # A new one: the schedule of the given one may be that of a sampling run.
        fresh = type(scheduler).from_config(config)
        self.sigmas = devices.exact(fresh.sigmas[: self.num_train_timesteps].flip(0))
        self._schedule: Identity = {
            "sigma_min": float(config.sigma_min),
            "sigma_max": float(config.sigma_max),
            "sigma_data": float(config.sigma_data),
            "sigma_schedule": config.get("sigma_schedule"),
            "rho": config.get("rho"),
            "prediction_type": str(config.prediction_type),
        }
        data, sigma = float(config.sigma_data), self.sigmas
        both = sigma.square() + data**2
        self._skip = data**2 / both
        self._out = sigma * data / both.sqrt()
        if config.prediction_type == "v_prediction":
            self._out = -self._out
        self._in = both.rsqrt()
        self._told = sigma.log() / 4
        weights = both / (sigma * data).square()
        self._weights = weights if weighting == "edm" else torch.ones_like(weights)

    def identity(self) -> Identity:
        """Loss, weighting, and what determines σ and the preconditioning."""
        return {
            "name": "edm",
            "loss": self.loss,
            "weighting": self.weighting,
            "num_train_timesteps": self.num_train_timesteps,
            **self._schedule,
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
        sigma, skip, out, scale = (
            along(at(table, timesteps, inputs), inputs)
            for table in (self.sigmas, self._skip, self._out, self._in)
        )
        noisy = inputs + sigma * noise
        told = at(self._told, timesteps, inputs)
        found = predict(model, scale * noisy, told, conditions)
        if self.loss == "square":
            return distance("square", found, inputs)
        denoised = skip * noisy + out * found
        return at(self._weights, timesteps, inputs) * distance(self.loss, denoised, inputs)
