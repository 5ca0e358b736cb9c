from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from gradstore.collect import EDMLoss
from gradstore.collect.conformance import check_objective
from gradstore.errors import CheckpointError, ConfigError
from tests.support.worlds import unet

STEPS = torch.tensor([0, 10, 500, 999])


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(4, 1, 8, 8, generator=generator) * 2 - 1
    return inputs, torch.randn(inputs.shape, generator=generator)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", ["karras", "exponential"])
@pytest.mark.parametrize("weighting", ["edm", "none"])
@pytest.mark.parametrize("loss", ["l1", "l2", "square"])
def test_losses_are_what_diffusers_own_functions_give(
    kind: str, schedule: str, weighting: str, loss: str
) -> None:
    scheduler = EDMEulerScheduler(
        prediction_type=kind, sigma_schedule=schedule, sigma_data=0.7, sigma_max=20.0
    )
    model = unet(0)
    inputs, noise = batch()
    with torch.no_grad():
        found = EDMLoss(scheduler, loss, weighting).losses(model, inputs, STEPS, noise, {})
    for row, step in enumerate(STEPS.tolist()):
        sigma = scheduler.sigmas[999 - step]
        clean = inputs[row : row + 1]
        noisy = clean + sigma * noise[row : row + 1]
        with torch.no_grad():
            output = model(
                scheduler.precondition_inputs(noisy, sigma), scheduler.timesteps[999 - step]
            ).sample
        denoised = scheduler.precondition_outputs(noisy, output, sigma)
        weight = (sigma**2 + 0.7**2) / (sigma * 0.7) ** 2 if weighting == "edm" else 1
        expected = {
            "l1": weight * (denoised - clean).abs().mean(),
            "l2": weight * (denoised - clean).square().mean(),
            "square": output.square().mean(),
        }[loss]
        torch.testing.assert_close(found[row], expected, rtol=2e-4, atol=1e-6)


def test_the_weight_gives_the_network_a_loss_of_equal_size_at_every_noise() -> None:
    """λ c_out² = 1: the weighted loss is the square of the network's own error."""
    objective = EDMLoss(EDMEulerScheduler())
    inputs, noise = batch()
    inputs, noise = inputs.double(), noise.double()
    steps = torch.tensor([100, 400, 700, 999])
    seen: list[tuple[Tensor, Tensor]] = []

    def network(noisy: Tensor, told: Tensor) -> Tensor:
        seen.append((noisy, told))
        return noisy.sin()

    found = objective.losses(network, inputs, steps, noise, {})
    sigma = objective.sigmas[steps].reshape(-1, 1, 1, 1)
    noisy, told = seen[0]
    torch.testing.assert_close(told, sigma.flatten().log() / 4)
    root = (sigma**2 + 0.25).sqrt()
    torch.testing.assert_close(noisy, (inputs + sigma * noise) / root)
    target = (inputs - 0.25 / root**2 * (inputs + sigma * noise)) / (sigma * 0.5 / root)
    torch.testing.assert_close(found, (noisy.sin() - target).square().flatten(1).mean(1))


def test_noise_grows_with_the_timestep_whatever_the_scheduler_sampled() -> None:
    scheduler = EDMEulerScheduler()
    sigmas = EDMLoss(scheduler).sigmas
    assert bool((sigmas.diff() > 0).all())
    assert float(sigmas[-1]) == 80
    scheduler.set_timesteps(10)
    assert torch.equal(EDMLoss(scheduler).sigmas, sigmas)


def test_it_keeps_its_promises() -> None:
    for weighting in ("edm", "none"):
        check_objective(EDMLoss(EDMEulerScheduler(), "l1", weighting), unet(0), batch()[0])


def test_identity_tells_losses_apart() -> None:
    def identity(loss: str = "l2", weighting: str = "edm", **options: Any) -> Any:
        return EDMLoss(EDMEulerScheduler(**options), loss, weighting).identity()

    every = [
        identity(),
        identity("l1"),
        identity(weighting="none"),
        identity(sigma_data=1.0),
        identity(sigma_schedule="exponential"),
        identity(prediction_type="v_prediction"),
    ]
    assert all(every.count(one) == 1 for one in every)


def test_what_it_does_not_know_is_refused() -> None:
    with pytest.raises(CheckpointError, match="FlowMatch.* is not supported by EDMLoss"):
        EDMLoss(FlowMatchEulerDiscreteScheduler())
    with pytest.raises(CheckpointError, match="prediction_type 'sample'; EDMLoss knows epsilon"):
        EDMLoss(EDMEulerScheduler.from_config(EDMEulerScheduler().config, prediction_type="sample"))
    with pytest.raises(ConfigError, match="there is no weighting 'snr'; use 'edm' or 'none'"):
        EDMLoss(EDMEulerScheduler(), weighting="snr")
