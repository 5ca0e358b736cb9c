"""Streaming on the models that people train, against one backward pass per row in float64."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from gradstore.collect import DiffusionLoss, EDMLoss, FlowLoss, StreamingEngine
from gradstore.collect.models.parameters import select, trainable
from tests.support.families import FAMILIES, given, made
from tests.support.naive_rows import largest_error, naive_rows, streamed_rows

FLOW = FlowLoss(FlowMatchEulerDiscreteScheduler(shift=3.0))
EDM = EDMLoss(EDMEulerScheduler())
OBJECTIVES: dict[str, Any] = dict.fromkeys(FAMILIES, DiffusionLoss(DDIMScheduler()))
OBJECTIVES |= {"SD3": FLOW, "SD3.5": FLOW, "Flux": FLOW, "SpatioTemporal": EDM}

# The last block of SD3 does not pass on its text tokens, and so does not ask with them.
UNUSED = ("transformer_blocks.1.attn.add_q_proj", "transformer_blocks.1.attn.norm_added_q")


def require_streamed(model: nn.Module, name: str, rows: int, draws: int) -> dict[str, Tensor]:
    objective, batch = OBJECTIVES[name], given(name, rows, draws)
    exact = naive_rows(model, objective, batch)
    found = streamed_rows(StreamingEngine(model, objective), model, batch)
    assert largest_error(found, exact) < 1e-6
    return exact


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("rows", "draws"), [(1, 2), (3, 2)])
def test_every_parameter_is_streamed(name: str, rows: int, draws: int) -> None:
    exact = require_streamed(made(name).double(), name, rows, draws)
    without = {key for key, one in exact.items() if not one.any()}
    assert without == {key for key in exact if name.startswith("SD3") and key.startswith(UNUSED)}


@pytest.mark.parametrize("name", ["PixArt-α", "SpatioTemporal"])
def test_bare_parameters_alone(name: str) -> None:
    model = made(name).double()
    select(model, "scale_shift_table|mix_factor")
    assert len(trainable(model)) > 1
    require_streamed(model, name, 3, 2)


@pytest.mark.parametrize("name", ["SD", "SDXL", "Flux"])
@pytest.mark.parametrize("dora", [False, True])
def test_adapters(name: str, dora: bool) -> None:
    from peft import LoraConfig

    model: Any = made(name)
    targets = ["to_q", "to_v", "proj_in" if name == "SD" else "to_k", "conv1"]
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False, use_dora=dora)
    model.add_adapter(config)
    model = model.double()
    assert all("lora_" in key for key in trainable(model))
    exact = require_streamed(model, name, 3, 2)
    assert all(one.any() for one in exact.values())


@pytest.mark.parametrize("name", ["SD3.5", "Flux", "PixArt-α"])
def test_gradient_checkpointing(name: str) -> None:
    model: Any = made(name).double()
    model.enable_gradient_checkpointing()
    model.train()
    require_streamed(model, name, 3, 2)
