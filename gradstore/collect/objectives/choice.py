"""Chooses the objective that a model was trained by, from its scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradstore.collect.objectives.diffusion import DiffusionLoss
from gradstore.collect.objectives.edm import EDMLoss
from gradstore.collect.objectives.flow import FlowLoss
from gradstore.errors import ConfigError

if TYPE_CHECKING:
    from gradstore.collect.objectives.protocol import Objective
    from gradstore.store.format.spec import ObjectiveSpec


def objective_for(scheduler: Any, spec: ObjectiveSpec, recorded: str | None = None) -> Objective:
    """The objective of a scheduler: EDM's, that of flow matching, else that of diffusion.

    Args:
        scheduler: the checkpoint's.
        spec: what the user chose of it.
        recorded: the loss that the training run recorded.

    Raises:
        CheckpointError: if the chosen objective does not fit the scheduler.
        ConfigError: if the weighting is not one of the objective's.
    """
    name, loss = spec.objective or objective_name(scheduler), spec.loss or recorded or "l2"
    if name == "edm":
        return EDMLoss(scheduler, loss, spec.weighting or "edm")
    if name == "flow":
        return FlowLoss(scheduler, loss, spec.weighting or "none")
    if spec.weighting not in {None, "none"}:
        raise ConfigError(
            f"--weighting {spec.weighting} is of flow matching or EDM, and the objective is "
            "diffusion. Omit it, or choose with --objective flow or edm."
        )
    return DiffusionLoss(scheduler, loss)


def objective_name(scheduler: Any) -> str:
    """Name of the objective of a scheduler: `edm`, `flow` or `diffusion`."""
    config = scheduler.config
    if "sigma_data" in config and hasattr(scheduler, "precondition_noise"):
        return "edm"
    if "shift" in config and not hasattr(scheduler, "alphas_cumprod"):
        return "flow"
    return "diffusion"
