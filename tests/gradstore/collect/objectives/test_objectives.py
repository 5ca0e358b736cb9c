from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from gradstore.collect import DiffusionLoss
from gradstore.collect.conformance import check_objective
from gradstore.collect.objectives.diffusion import check_fits
from gradstore.errors import CheckpointError, DatasetError
from tests.support.worlds import unet

KINDS = ["epsilon", "sample", "v_prediction"]


def batch(count: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1
    noise = torch.randn(inputs.shape, generator=generator)
    return inputs, torch.tensor([0, 10, 500, 999])[:count], noise


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["l1", "l2", "square"])
@pytest.mark.parametrize("family", [DDIMScheduler, DDPMScheduler])
def test_losses_are_what_diffusers_own_functions_give(kind: str, loss: str, family: Any) -> None:
    scheduler = family(prediction_type=kind, beta_schedule="squaredcos_cap_v2")
    inputs, timesteps, noise = batch()
    model = unet(0)
    found = DiffusionLoss(scheduler, loss).losses(model, inputs, timesteps, noise, {})
    noisy = scheduler.add_noise(inputs, noise, timesteps)
    target = {
        "epsilon": noise,
        "sample": inputs,
        "v_prediction": scheduler.get_velocity(inputs, noise, timesteps),
    }[kind]
    for row in range(4):
        predicted = model(noisy[row : row + 1], timesteps[row : row + 1]).sample
        function = torch.nn.functional.l1_loss if loss == "l1" else torch.nn.functional.mse_loss
        aim = target[row : row + 1] if loss != "square" else torch.zeros_like(predicted)
        expected = function(predicted, aim)
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_its_promises(kind: str) -> None:
    objective = DiffusionLoss(DDIMScheduler(prediction_type=kind), "l1")
    check_objective(objective, unet(0), batch()[0])
    conditional = unet(0, num_class_embeds=3)
    labels = {"class_labels": torch.tensor([0, 1, 2, 1])}
    check_objective(objective, conditional, batch()[0], labels)


def test_the_check_can_fail() -> None:
    class Mixing(DiffusionLoss):
        def losses(self, *args: Any) -> torch.Tensor:
            found = super().losses(*args)
            return found + found.mean()

    with pytest.raises(AssertionError, match="does not depend on the other events"):
        check_objective(Mixing(DDIMScheduler()), unet(0), batch()[0])


def test_identity_tells_schedules_apart() -> None:
    linear = DiffusionLoss(DDIMScheduler()).identity()
    assert linear == DiffusionLoss(DDPMScheduler()).identity()
    assert linear != DiffusionLoss(DDIMScheduler(beta_schedule="squaredcos_cap_v2")).identity()
    assert linear != DiffusionLoss(DDIMScheduler(), "l1").identity()


def test_a_scheduler_without_noise_levels_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"FlowMatchEulerDiscreteScheduler.*custom objective"):
        DiffusionLoss(FlowMatchEulerDiscreteScheduler())


def test_images_that_do_not_fit_the_model() -> None:
    model = unet(0, channels=3)
    check_fits(model, (3, 8, 8), "x")
    with pytest.raises(DatasetError, match=r"'x' has 1 channel.*takes 3. Convert with --mode RGB"):
        check_fits(model, (1, 8, 8), "x")
    with pytest.raises(DatasetError, match=r"'x' is 9×8 .*made for 8×8. Resize with --size 8"):
        check_fits(model, (3, 8, 9), "x")
    check_fits(SimpleNamespace(), (5,), "x")
