"""Models are called as diffusers' own pipelines call them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from gradstore.collect.objectives.calling import predict, stands_for
from gradstore.collect.objectives.diffusion import check_fits, class_count
from gradstore.errors import CheckpointError, DatasetError
from tests.support.families import FAMILIES, given, made

TIMES = torch.tensor([3.0, 700.0])


def predicted(name: str, model: Any) -> Tensor:
    batch = given(name, 2, 1)
    conditions = {
        key: value.float() if value.is_floating_point() else value
        for key, value in batch.conditions.items()
    }
    with torch.no_grad():
        return predict(model, batch.inputs.float(), TIMES, conditions)


def inputs(name: str) -> Tensor:
    return given(name, 2, 1).inputs.float()


@pytest.mark.parametrize("name", ["SD3", "PixArt-Σ"])
def test_a_timestep_that_is_not_the_second_argument(name: str) -> None:
    model = made(name)
    with torch.no_grad():
        expected = model(
            hidden_states=inputs(name), timestep=TIMES, **FAMILIES[name].conditions(2)
        ).sample[:, :4]
    torch.testing.assert_close(predicted(name, model), expected)

    # Engines and wrappers pass a function in place of the model.
    def wrapped(called: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            return called(*args, **options)

        return stands_for(call, called)

    for call in (wrapped(model), wrapped(wrapped(model))):
        torch.testing.assert_close(predicted(name, call), expected)


@pytest.mark.parametrize(
    ("name", "added"),
    [("SDXL", ("text_embeds", "time_ids")), ("PixArt-α", ("resolution", "aspect_ratio"))],
)
def test_added_conditions(name: str, added: tuple[str, ...]) -> None:
    model = made(name)
    conditions = FAMILIES[name].conditions(2)
    nested = {key: conditions.pop(key) for key in added}
    with torch.no_grad():
        expected = model(
            inputs(name), timestep=TIMES, **conditions, added_cond_kwargs=nested
        ).sample[:, :4]
    torch.testing.assert_close(predicted(name, model), expected)


def test_flux_is_given_what_its_pipeline_gives() -> None:
    model, latents = made("Flux"), torch.randn(2, 2, 4, 6)
    conditions = FAMILIES["Flux"].conditions(2)
    packed = FluxPipeline._pack_latents(latents, 2, 2, 4, 6)
    ids = FluxPipeline._prepare_latent_image_ids(2, 2, 3, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        found = model(
            hidden_states=packed,
            timestep=TIMES / 1000,
            img_ids=ids,
            txt_ids=torch.zeros(3, 3),
            **conditions,
        ).sample
        # The factor of the VAE is twice its own: pixels are 8 to a latent, latents 2 to a patch.
        expected = FluxPipeline._unpack_latents(found, 4 * 8, 6 * 8, 8)
        torch.testing.assert_close(predict(model, latents, TIMES, conditions), expected)
        with pytest.raises(CheckpointError, match=r"2 × 2 patches.*\(2, 4, 5\).*even"):
            predict(model, latents[..., :5], TIMES, conditions)


def test_of_a_learned_variance_the_first_half_counts() -> None:
    model = made("DiT")
    with torch.no_grad():
        whole = model(inputs("DiT"), TIMES, **FAMILIES["DiT"].conditions(2)).sample
    assert whole.shape[1] == 8
    assert torch.equal(predicted("DiT", model), whole[:, :4])


def test_another_shape_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"predicts shape \(3,\) for samples of shape \(6,\)"):
        predict(lambda noisy, times: noisy[:, :3], torch.zeros(2, 6), TIMES, {})
    with pytest.raises(CheckpointError, match=r"predicts shape \(12,\)"):
        predict(lambda noisy, times: noisy.repeat(1, 2), torch.zeros(2, 6), TIMES, {})


def test_a_model_of_ones_own() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor, t: Tensor, extra: Tensor) -> Tensor:
            return x * t[:, None] + extra

    x = torch.ones(2, 3)
    assert torch.equal(predict(Own(), x, TIMES, {"extra": x}), x * TIMES[:, None] + 1)


def test_classes_are_what_a_model_takes() -> None:
    assert class_count(made("DiT")) == 5
    assert class_count(made("PixArt-α")) is None  # though its configuration has a number of them
    assert class_count(made("SD")) is None


def test_channels_of_flux_are_those_of_latents() -> None:
    check_fits(made("Flux"), (2, 4, 6), "x")
    with pytest.raises(DatasetError, match="'x' has 8 channel.*takes 2"):
        check_fits(made("Flux"), (8, 4, 6), "x")
