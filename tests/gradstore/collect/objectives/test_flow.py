from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3
from torch import Tensor

from gradstore.collect import FlowLoss
from gradstore.collect.conformance import check_objective
from gradstore.errors import CheckpointError, ConfigError
from tests.support.families import FAMILIES, made

STEPS = torch.tensor([0, 10, 500, 999])


def batch() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    inputs, noise = (torch.randn(4, 4, 4, 4, generator=generator) for _ in range(2))
    return inputs, noise, FAMILIES["SD3"].conditions(4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("weighting", ["none", "sigma_sqrt", "cosmap", "sample"])
@pytest.mark.parametrize("loss", ["l1", "l2", "square"])
def test_losses_are_what_diffusers_own_functions_give(
    shift: float, weighting: str, loss: str
) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    model: Any = made("SD3")
    inputs, noise, conditions = batch()
    with torch.no_grad():
        found = FlowLoss(scheduler, loss, weighting).losses(model, inputs, STEPS, noise, conditions)
    for row, step in enumerate(STEPS.tolist()):
        index = scheduler.config.num_train_timesteps - 1 - step
        time, sigma = scheduler.timesteps[index, None], scheduler.sigmas[index]
        one = slice(row, row + 1)
        noisy = scheduler.scale_noise(inputs[one], time, noise[one])
        with torch.no_grad():
            predicted = model(
                hidden_states=noisy,
                timestep=time,
                **{name: value[one] for name, value in conditions.items()},
            ).sample
        target = noise[one] - inputs[one]
        weight = compute_loss_weighting_for_sd3(weighting, sigmas=sigma)
        if weighting == "sample" and loss == "l2":
            # As the scripts for SD3 compute it: the error of the predicted sample.
            predicted, target = noisy - sigma * predicted, inputs[one]
        elif weighting == "sample":
            weight = sigma**2
        expected = {
            "l1": lambda p, t, w: w * (p - t).abs().mean(),
            "l2": lambda p, t, w: w * (p - t).square().mean(),
            "square": lambda p, t, w: p.square().mean(),
        }[loss](predicted, target, weight)
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-7)


def test_noise_grows_with_the_timestep_and_dynamic_shifts_are_for_sampling_alone() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    sigmas = FlowLoss(scheduler).sigmas
    assert bool((sigmas.diff() > 0).all())
    assert float(sigmas[-1]) == 1
    torch.testing.assert_close(sigmas.float(), scheduler.sigmas.flip(0))
    dynamic = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    torch.testing.assert_close(FlowLoss(dynamic).sigmas.float(), dynamic.sigmas.flip(0))
    # A scheduler that sampled is the same.
    scheduler.set_timesteps(10)
    assert torch.equal(FlowLoss(scheduler).sigmas, sigmas)


def test_it_keeps_its_promises() -> None:
    inputs, _, conditions = batch()
    for weighting in ("none", "cosmap", "sample"):
        objective = FlowLoss(FlowMatchEulerDiscreteScheduler(shift=3.0), "l1", weighting)
        check_objective(objective, made("SD3"), inputs, conditions)


def test_identity_tells_losses_apart() -> None:
    def identity(shift: float = 1.0, **options: str) -> Any:
        return FlowLoss(FlowMatchEulerDiscreteScheduler(shift=shift), **options).identity()

    every = [identity(), identity(3.0), identity(loss="l1"), identity(weighting="sample")]
    assert all(every.count(one) == 1 for one in every)


def test_what_it_does_not_know_is_refused() -> None:
    with pytest.raises(CheckpointError, match="DDIMScheduler is not supported by FlowLoss"):
        FlowLoss(DDIMScheduler())
    with pytest.raises(ConfigError, match="there is no weighting 'mode'; use one of none, sigma"):
        FlowLoss(FlowMatchEulerDiscreteScheduler(), weighting="mode")
    with pytest.raises(ConfigError, match="there is no loss 'huber'"):
        FlowLoss(FlowMatchEulerDiscreteScheduler(), "huber")
