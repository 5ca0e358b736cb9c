"""Objectives: the function of model and event whose per-sample gradient becomes a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from gradstore.errors import CheckpointError, DatasetError

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
    the mean over the sample's elements of |prediction − target| (`l1`) or its square (`l2`).
    """

    def __init__(self, scheduler: Any, loss: str = "l2") -> None:
        self.prediction_type = str(scheduler.config.prediction_type)
        if self.prediction_type not in {"epsilon", "sample", "v_prediction"}:
            raise CheckpointError(
                f"the scheduler predicts {self.prediction_type!r}; DiffusionLoss knows epsilon, "
                "sample and v_prediction. Pass an objective of your own to collect()."
            )
        self.loss = loss
        self.num_train_timesteps = int(scheduler.config.num_train_timesteps)
        self._alphas_cumprod = scheduler.alphas_cumprod.to(torch.float64)

    def identity(self) -> Identity:
        """Loss, target, and the noise levels that the scheduler amounts to."""
        from hashlib import blake2b

        # The float32 values that training used: rounding to 7 digits forgives the last bits.
        levels = "\n".join(f"{level:.7e}" for level in self._alphas_cumprod.tolist())
        return {
            "name": "diffusion",
            "loss": self.loss,
            "prediction_type": self.prediction_type,
            "num_train_timesteps": self.num_train_timesteps,
            "noise_levels": blake2b(levels.encode(), digest_size=16).hexdigest(),
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
        level = self._alphas_cumprod.to(inputs.device)[timesteps]
        level = level.reshape(-1, *[1] * (inputs.ndim - 1))
        signal, spread = level.sqrt().to(inputs.dtype), (1 - level).sqrt().to(inputs.dtype)
        noisy = signal * inputs + spread * noise
        if self.prediction_type == "epsilon":
            target = noise
        elif self.prediction_type == "sample":
            target = inputs
        else:
            target = signal * noise - spread * inputs
        output = model(noisy, timesteps, **conditions)
        error = (output.sample if hasattr(output, "sample") else output) - target
        distance: Tensor = error.abs() if self.loss == "l1" else error.square()
        return distance.flatten(1).mean(1)


def check_fits(model: Any, shape: tuple[int, ...], name: str) -> None:
    """Raise `DatasetError` unless a diffusers image model takes samples of `shape`.

    Models without `in_channels` in their configuration are not checked.
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
            raise DatasetError(
                f"sample {name!r} is {shape[2]}×{shape[1]} pixels, the model takes "
                f"{width}×{height}. Resize with --size {width}."
            )
