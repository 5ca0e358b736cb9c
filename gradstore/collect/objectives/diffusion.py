"""The loss of diffusion models that predict noise, the sample or the velocity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradstore.collect import devices
from gradstore.collect.objectives.calling import (
    FURTHER,
    along,
    arguments,
    at,
    distance,
    predict,
    require_kind,
    takes_patches,
)
from gradstore.errors import CheckpointError, DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from gradstore.store.format.spec import Identity


class DiffusionLoss:
    """The denoising loss of a diffusers model and scheduler.

    The scheduler's `prediction_type` defines the target: the noise (`epsilon`), the clean sample
    (`sample`) or the velocity (`v_prediction`, arXiv 2202.00512). The loss of an event is the mean
    over the sample's elements of |prediction − target| (`l1`) or its square (`l2`). `square` is the
    mean of the prediction's square: not a loss, but D-TRAK's output function ‖ε_θ‖² (arXiv
    2311.00500, equation 7, up to the constant number of elements).

    The model is called as `predict` in `objectives/calling.py` says; of a learned variance only the
    prediction counts.

    Args:
        scheduler: a diffusers scheduler with `alphas_cumprod`.
        loss: `l1`, `l2` or `square`.

    Examples:
        >>> import gradstore as gs
        >>> from diffusers import DDIMScheduler
        >>> loss = gs.DiffusionLoss(DDIMScheduler(), "l1")
        >>> loss.loss, loss.prediction_type, loss.num_train_timesteps
        ('l1', 'epsilon', 1000)
    """

    thread_safe = True

    def __init__(self, scheduler: Any, loss: str = "l2") -> None:
        predicted = getattr(scheduler.config, "prediction_type", None)
        known = predicted in {"epsilon", "sample", "v_prediction"}
        if not known or not hasattr(scheduler, "alphas_cumprod"):
            raise CheckpointError(
                f"{type(scheduler).__name__} (prediction_type {predicted!r}) is not supported by "
                "DiffusionLoss, which needs alphas_cumprod and prediction_type epsilon, sample or "
                "v_prediction. Pass FlowLoss, EDMLoss or a custom objective to collect()."
            )
        self.prediction_type = str(predicted)
        self.loss = require_kind(loss)
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
        """Loss, target, and the parameters of the scheduler's noise levels."""
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
        signal, spread = (
            along(at(table, timesteps, inputs), inputs) for table in (self._signal, self._spread)
        )
        noisy = signal * inputs + spread * noise
        if self.prediction_type == "epsilon":
            target = noise
        elif self.prediction_type == "sample":
            target = inputs
        else:
            target = signal * noise - spread * inputs
        return distance(self.loss, predict(model, noisy, timesteps, conditions), target)


def class_count(model: Any) -> int | None:
    """Number of classes that a diffusers model is conditioned on; None if it is not.

    A model that is has an argument `class_labels`; the configuration alone does not tell, because
    PixArt's has a number of classes too.
    """
    if "class_labels" not in arguments(model):
        return None
    config = getattr(model, "config", None)
    for name in ("num_class_embeds", "num_embeds_ada_norm"):
        count = getattr(config, name, None)
        if isinstance(count, int):
            return count
    return None


def made_size(model: Any) -> tuple[int, int] | None:
    """Height and width that a diffusers image model was made for; None if it does not tell."""
    size = getattr(getattr(model, "config", None), "sample_size", None)
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else tuple(size)


def check_fits(
    model: Any,
    shape: tuple[int, ...],
    name: str,
    *,
    further: tuple[int, ...] | None = None,
    encoded: bool = False,
    sized: bool = False,
) -> None:
    """Raise `DatasetError` unless a diffusers image model takes samples of `shape`.

    `further` is the shape of their condition `further_channels`, if they have it.

    Latents that gradstore encoded (`encoded`), and samples whose size the user chose (`sized`), may
    have another size than the model was made for: pictures of 512 pixels may be used to fine-tune a
    model of 768.

    Models without `in_channels` in their configuration, and samples that are not images, are not
    checked, because a custom objective may use them.
    """
    config = getattr(model, "config", None)
    channels = getattr(config, "in_channels", None)
    if channels is None or len(shape) != 3:
        return
    if takes_patches(model):
        channels //= 4
    if further is not None:
        if further[1:] != shape[1:]:
            raise DatasetError(
                f"sample {name!r} has shape {list(shape)} and its {FURTHER} {list(further)}: "
                "height and width must be the same."
            )
        channels -= further[0]
    if shape[0] != channels:
        modes = {1: "L", 3: "RGB", 4: "RGBA"}
        mode = modes.get(channels)
        mend = f"Convert with --mode {mode}." if mode else "Use a dataset that fits the model."
        if encoded:
            mend = (
                "The VAE's latents alone are not this model's input: give latents and, as a "
                f"condition {FURTHER}, what it is given beside them, from Python."
            )
        raise DatasetError(
            f"sample {name!r} has {shape[0]} channel(s), the model takes {channels}. {mend}"
        )
    size = made_size(model)
    if size is not None and not encoded and not sized and shape[1:] != size:
        height, width = size
        mend = f"Resize with --size {width}" if height == width else "Resize the images first"
        raise DatasetError(
            f"sample {name!r} is {shape[2]}×{shape[1]} pixels, the model was made for "
            f"{width}×{height}. {mend}; or, if it was trained at another size, give that by --size "
            "or --resize keep."
        )
