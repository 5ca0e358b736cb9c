"""Objectives: the function of model and event whose per-sample gradient becomes a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from torch import nn

from gradstore.collect import devices
from gradstore.errors import CheckpointError, ConfigError, DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from gradstore.spec import Identity


@dataclass(frozen=True)
class Batch:
    """Events ready for the model.

    A row is the gradient of the mean loss over `draws` noises at one timestep of one sample.

    Attributes:
        inputs: clean samples, `[rows, *shape]`.
        timesteps: int64 `[rows]`.
        noise: standard normal, `[rows, draws, *shape]`.
        conditions: further inputs of the model by keyword, each `[rows, …]`.
    """

    inputs: Tensor
    timesteps: Tensor
    noise: Tensor
    conditions: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.inputs)


class Objective(Protocol):
    """What is differentiated. It must not mix samples: each loss depends on its own sample."""

    num_train_timesteps: int

    def identity(self) -> Identity:
        """What identifies the objective, as JSON."""

    def losses(
        self,
        model: Callable[..., Any],
        inputs: Tensor,
        timesteps: Tensor,
        noise: Tensor,
        conditions: Mapping[str, Tensor],
    ) -> Tensor:
        """Loss of each event.

        Args:
            model: the model, called as `model(noisy, timesteps, **conditions)`.
            inputs: clean samples `[events, *shape]`.
            timesteps: int64 `[events]`.
            noise: standard normal `[events, *shape]`.
            conditions: further inputs by keyword, `[events, …]` each.

        Returns:
            float `[events]`.
        """


class DiffusionLoss:
    """The denoising loss of a diffusers model and scheduler.

    The target is what the scheduler's `prediction_type` says: the noise (`epsilon`), the clean
    sample (`sample`) or the velocity (`v_prediction`, arXiv 2202.00512). The loss of an event is
    the mean over the sample's elements of |prediction − target| (`l1`) or its square (`l2`); or of
    the prediction's own square (`square`), which is no loss but D-TRAK's output function, ‖ε_θ‖²
    (arXiv 2311.00500, equation 7, up to the constant number of elements).
    """

    def __init__(self, scheduler: Any, loss: str = "l2") -> None:
        predicted = getattr(scheduler.config, "prediction_type", None)
        known = predicted in {"epsilon", "sample", "v_prediction"}
        if not known or not hasattr(scheduler, "alphas_cumprod"):
            raise CheckpointError(
                f"{type(scheduler).__name__} (prediction_type {predicted!r}) is not a scheduler "
                "that DiffusionLoss knows: one with alphas_cumprod that predicts epsilon, sample "
                "or v_prediction. Pass an objective of your own to collect()."
            )
        if loss not in {"l1", "l2", "square"}:
            raise ConfigError(f"there is no loss {loss!r}; use 'l1', 'l2' or 'square'.")
        self.prediction_type = str(predicted)
        self.loss = loss
        self.num_train_timesteps = int(scheduler.config.num_train_timesteps)
        level = devices.exact(scheduler.alphas_cumprod)
        self._signal, self._spread = level.sqrt(), (1 - level).sqrt()
        betas = scheduler.config.get("trained_betas")
        self._noise_levels: Identity = {
            "beta_schedule": scheduler.config.get("beta_schedule"),
            "beta_start": scheduler.config.get("beta_start"),
            "beta_end": scheduler.config.get("beta_end"),
            "trained_betas": None if betas is None else [float(beta) for beta in betas],
            "rescale_betas_zero_snr": bool(scheduler.config.get("rescale_betas_zero_snr")),
        }

    def identity(self) -> Identity:
        """Loss, target, and what defines the scheduler's noise levels."""
        return {
            "name": "diffusion",
            "loss": self.loss,
            "prediction_type": self.prediction_type,
            "num_train_timesteps": self.num_train_timesteps,
            **self._noise_levels,
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
        # Cast before they are moved: not every device has float64.
        shape = -1, *[1] * (inputs.ndim - 1)
        signal, spread = (
            table.to(inputs.dtype).to(inputs.device)[timesteps].reshape(shape)
            for table in (self._signal, self._spread)
        )
        noisy = signal * inputs + spread * noise
        if self.prediction_type == "epsilon":
            target = noise
        elif self.prediction_type == "sample":
            target = inputs
        else:
            target = signal * noise - spread * inputs
        output = model(noisy, timesteps, **conditions)
        predicted = output.sample if hasattr(output, "sample") else output
        if predicted.shape != target.shape:
            raise CheckpointError(
                f"the model predicts {tuple(predicted.shape[1:])} for samples of "
                f"{tuple(target.shape[1:])}: it is not a plain denoiser (a learned variance?). "
                "Pass an objective of your own to collect()."
            )
        error = predicted if self.loss == "square" else predicted - target
        distance: Tensor = error.abs() if self.loss == "l1" else error.square()
        return distance.flatten(1).mean(1)


class Autocast:
    """An objective whose forward pass torch computes in bfloat16 where that is deemed safe.

    Mixed precision as in training: weights, activations between layers and gradients as torch's
    autocast has them, the loss in float32.
    """

    precision: Final = "bfloat16"

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.num_train_timesteps = objective.num_train_timesteps

    def identity(self) -> Identity:
        """The objective's: arithmetic is recorded elsewhere, and not compared."""
        return self._objective.identity()

    def losses(
        self,
        model: Callable[..., Any],
        inputs: Tensor,
        timesteps: Tensor,
        noise: Tensor,
        conditions: Mapping[str, Tensor],
    ) -> Tensor:
        """See `Objective.losses`."""

        def cast(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast(inputs.device.type, torch.bfloat16):
                return model(*args, **kwargs)

        return self._objective.losses(cast, inputs, timesteps, noise, conditions)


def precision(objective: Objective) -> str:
    """What an objective computes in: `float32`, or `bfloat16` under `Autocast`."""
    return getattr(objective, "precision", "float32")


class Compiled:
    """An objective whose model is compiled by `torch.compile`, where an engine calls it whole."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.precision = precision(objective)
        self._models: dict[nn.Module, Callable[..., Any]] = {}
        self.num_train_timesteps = objective.num_train_timesteps

    def identity(self) -> Identity:
        """The objective's: what is computed is the same."""
        return self._objective.identity()

    def losses(
        self,
        model: Callable[..., Any],
        inputs: Tensor,
        timesteps: Tensor,
        noise: Tensor,
        conditions: Mapping[str, Tensor],
    ) -> Tensor:
        """See `Objective.losses`."""
        if isinstance(model, nn.Module):
            if model not in self._models:
                self._models = {model: torch.compile(model)}
            model = self._models[model]
        return self._objective.losses(model, inputs, timesteps, noise, conditions)


def class_count(model: Any) -> int | None:
    """How many classes a diffusers model is conditioned on; None if it is not."""
    config = getattr(model, "config", None)
    for name in ("num_class_embeds", "num_embeds_ada_norm"):
        count = getattr(config, name, None)
        if isinstance(count, int):
            return count
    return None


def check_fits(model: Any, shape: tuple[int, ...], name: str) -> None:
    """Raise `DatasetError` unless a diffusers image model takes samples of `shape`.

    Models without `in_channels` in their configuration, and samples that are not images, are not
    checked: what an objective of one's own makes of them is its business.
    """
    config = getattr(model, "config", None)
    channels = getattr(config, "in_channels", None)
    if channels is None or len(shape) != 3:
        return
    if shape[0] != channels:
        modes = {1: "L", 3: "RGB", 4: "RGBA"}
        mode = modes.get(channels)
        mend = f"Convert with --mode {mode}." if mode else "Use a dataset of the model's own kind."
        raise DatasetError(
            f"sample {name!r} has {shape[0]} channel(s), the model takes {channels}. {mend}"
        )
    size = getattr(config, "sample_size", None)
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        if shape[1:] != (height, width):
            mend = f"Resize with --size {width}." if height == width else "Resize them first."
            raise DatasetError(
                f"sample {name!r} is {shape[2]}×{shape[1]} pixels, the model takes "
                f"{width}×{height}. {mend}"
            )
