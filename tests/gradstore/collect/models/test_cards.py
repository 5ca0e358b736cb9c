"""Memory of LoRA on the large published models, by arithmetic on models without data.

docs/how-to.md shows these figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from torch.nn import functional

from gradstore.collect.models.parameters import num_parameters, trainable
from gradstore.collect.objectives.diffusion import DiffusionLoss
from gradstore.collect.objectives.flow import FlowLoss
from gradstore.collect.objectives.wrappers import InBfloat16
from tests.support.pipelines import lora_config

CARD = 80e9


@dataclass(frozen=True)
class Published:
    """A model of the size that was published.

    Attributes:
        make: makes it.
        parameters: number of its parameters, as published.
        objective: makes its objective.
        channels: channels of its latents, an eighth of a picture's height and width.
        conditions: shapes of its further inputs, without the first axis.
    """

    make: Callable[[], Any]
    parameters: int
    objective: Callable[[], Any]
    channels: int
    conditions: dict[str, tuple[int, ...]]


def _sdxl() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def _flux() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=19,
        num_single_layers=38,
        attention_head_dim=128,
        num_attention_heads=24,
        joint_attention_dim=4096,
        pooled_projection_dim=768,
        guidance_embeds=True,
    )


PUBLISHED = {
    "SDXL": Published(
        _sdxl,
        2_567_463_684,
        lambda: DiffusionLoss(DDPMScheduler()),
        4,
        {"encoder_hidden_states": (77, 2048), "text_embeds": (1280,), "time_ids": (6,)},
    ),
    "Flux": Published(
        _flux,
        11_901_408_320,
        lambda: FlowLoss(FlowMatchEulerDiscreteScheduler()),
        16,
        {"encoder_hidden_states": (512, 4096), "pooled_projections": (768,), "guidance": ()},
    ),
}


def adapted(made: Published) -> nn.Module:
    """A model in bfloat16 under adapters in float32 of rank 16, none of which has data."""
    with torch.device("meta"):
        model: Any = made.make()
        assert sum(one.numel() for one in model.parameters()) == made.parameters
        model.to(torch.bfloat16).eval().requires_grad_(requires_grad=False)
        model.add_adapter(lora_config(r=16, lora_alpha=16))
    for parameter in trainable(model).values():
        parameter.data = parameter.data.float()
    found: nn.Module = model
    return found


class _Fused(torch.autograd.Function):
    """What a fused kernel of attention keeps: its inputs, its output, a number per query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, found, query.new_empty(query.shape[:-1]).float())
        return found


def held_for_backward(model: nn.Module, made: Published, side: int) -> int:
    """Bytes that the forward pass of one event keeps on a card, besides the model."""
    own = {one.untyped_storage()._cdata for one in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)  # its storage must not be another's later
        return tensor

    def attend(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        found: Tensor = _Fused.apply(query, key, value)  # type: ignore[no-untyped-call]
        return found

    latents = torch.empty(1, made.channels, side, side, device="meta")
    with (
        pytest.MonkeyPatch.context() as patched,
        torch.device("meta"),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one),
    ):
        patched.setattr(functional, "scaled_dot_product_attention", attend)
        InBfloat16(made.objective()).losses(
            model,
            latents,
            torch.zeros(1, dtype=torch.long),
            latents,
            {name: torch.empty(1, *shape) for name, shape in made.conditions.items()},
        )
    return sum(kept.values())


@pytest.mark.parametrize(
    ("name", "side", "gigabytes", "events"),
    [
        ("SDXL", 1024, (5.13, 0.093, 7.8), 9),
        ("Flux", 1024, (23.8, 0.075, 31.9), 1),
        ("Flux", 512, (23.8, 0.075, 10.3), 5),
    ],
)
def test_a_card_of_80_gigabytes(
    name: str, side: int, gigabytes: tuple[float, float, float], events: int
) -> None:
    """The base, a row's gradient and what an event keeps; events at once."""
    made = PUBLISHED[name]
    model = adapted(made)
    frozen = sum(
        one.numel() * one.element_size() for one in model.parameters() if not one.requires_grad
    )
    row = 4 * num_parameters(model)
    kept = held_for_backward(model, made, side // 8)
    assert [one / 1e9 for one in (frozen, row, kept)] == pytest.approx(list(gigabytes), rel=0.01)
    # Once: the base, adapters, the buckets of `sjlt` (8 bytes per parameter).
    assert (CARD - frozen - 3 * row) // (kept + row) == events
