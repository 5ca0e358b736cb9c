from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from gradstore.collect import Batch, DiffusionLoss, LoopEngine, VmapEngine
from gradstore.collect.conformance import check_engine
from tests.conftest import unet

OBJECTIVE = DiffusionLoss(DDIMScheduler(beta_schedule="squaredcos_cap_v2"), "l1")


def batch(rows: int, draws: int, **conditions: torch.Tensor) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        inputs=torch.rand(rows, 1, 8, 8, generator=generator) * 2 - 1,
        timesteps=torch.randint(0, 1000, (rows,), generator=generator),
        noise=torch.randn(rows, draws, 1, 8, 8, generator=generator),
        conditions=conditions,
    )


@pytest.mark.parametrize(("rows", "draws"), [(1, 1), (5, 1), (3, 4)])
def test_vmap_equals_the_loop(rows: int, draws: int) -> None:
    check_engine(VmapEngine, unet(0), OBJECTIVE, batch(rows, draws))


def test_vmap_equals_the_loop_with_conditions() -> None:
    labels = torch.tensor([0, 2, 1])
    model = unet(0, num_class_embeds=3)
    check_engine(VmapEngine, model, OBJECTIVE, batch(3, 2, class_labels=labels))


def test_frozen_parameters_are_left_out() -> None:
    model = unet(0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("attentions" in name)
    check_engine(VmapEngine, model, OBJECTIVE, batch(3, 1))
    _, pieces = VmapEngine(model, OBJECTIVE)(batch(3, 1))
    length = sum(piece.shape[1] for _, piece in pieces)
    assert length == sum(p.numel() for n, p in model.named_parameters() if "attentions" in n)


def test_the_check_can_fail() -> None:
    class Unaveraged(VmapEngine):
        def __call__(self, batch: Batch) -> Any:
            losses, pieces = super().__call__(batch)
            return losses, iter([(start, piece * 1.01) for start, piece in pieces])

    with pytest.raises(AssertionError, match="gradients are the loop's"):
        check_engine(Unaveraged, unet(0), OBJECTIVE, batch(2, 1))


def test_the_model_is_left_as_it_was() -> None:
    model = unet(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for engine in (VmapEngine, LoopEngine):
        engine(model, OBJECTIVE)(batch(2, 1))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
