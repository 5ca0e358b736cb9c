"""Tiny models of the classes that people train, each with inputs that fit it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from torch import Tensor, nn

from gradstore.collect import Batch
from tests.support.gradients import batch


@dataclass(frozen=True)
class Family:
    """A class of models.

    Attributes:
        make: makes a tiny model.
        shape: shape of its samples.
        conditions: makes the further inputs of a number of rows.
    """

    make: Callable[..., Any]
    shape: tuple[int, ...]
    conditions: Callable[[int], dict[str, Tensor]]


def _normal(rows: int, *shape: int) -> Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(rows))


def _crossed(axes: str) -> dict[str, Any]:
    """Configuration of a small UNet with cross-attention, over `2D` or `3D`."""
    return {
        "sample_size": 4,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (4, 8),
        "down_block_types": (f"DownBlock{axes}", f"CrossAttnDownBlock{axes}"),
        "up_block_types": (f"CrossAttnUpBlock{axes}", f"UpBlock{axes}"),
        "cross_attention_dim": 6,
        "attention_head_dim": 2,
        "norm_num_groups": 2,
    }


def conditional_unet(**options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(**{**_crossed("2D"), **options})


def _beside(channels: int) -> Callable[[int], dict[str, Tensor]]:
    """Conditions of a model that is given further channels beside the noisy latents."""
    return lambda rows: {
        "encoder_hidden_states": _normal(rows, 3, 6),
        "further_channels": _normal(rows, channels, 4, 4),
    }


def _sdxl(**options: Any) -> UNet2DConditionModel:
    return conditional_unet(
        **options,
        addition_embed_type="text_time",
        addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=5 + 6 * 2,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
    )


def _sd3(**options: Any) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=6,
        caption_projection_dim=8,
        pooled_projection_dim=5,
        pos_embed_max_size=4,
        **options,
    )


def _sd3_conditions(rows: int) -> dict[str, Tensor]:
    return {
        "encoder_hidden_states": _normal(rows, 3, 6),
        "pooled_projections": _normal(rows, 5),
    }


def _flux() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=6,
        pooled_projection_dim=5,
        axes_dims_rope=(4, 2, 2),
        guidance_embeds=True,
    )


def _pixart(**options: Any) -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=6,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        norm_num_groups=2,
        cross_attention_dim=12,
        sample_size=4,
        patch_size=2,
        caption_channels=6,
        **options,
    )


def _pixart_conditions(rows: int) -> dict[str, Tensor]:
    mask = torch.ones(rows, 3)
    mask[0, 2] = 0
    return {"encoder_hidden_states": _normal(rows, 3, 6), "encoder_attention_mask": mask}


def _pixart_sized(rows: int) -> dict[str, Tensor]:
    return {
        **_pixart_conditions(rows),
        "resolution": _normal(rows, 2).abs(),
        "aspect_ratio": _normal(rows, 1).abs(),
    }


def _dit() -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        norm_num_groups=2,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=5,
    )


def _unet3d() -> UNet3DConditionModel:
    return UNet3DConditionModel(**_crossed("3D"))


class SpatioTemporal(nn.Module):
    """A video UNet on clips `[channels, frames, height, width]`."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNetSpatioTemporalConditionModel(
            sample_size=4,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            num_frames=2,
            block_out_channels=(32, 64),
            down_block_types=("DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"),
            up_block_types=("CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"),
            addition_time_embed_dim=2,
            projection_class_embeddings_input_dim=6,
            cross_attention_dim=6,
            num_attention_heads=(2, 2),
        )

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        encoder_hidden_states: Tensor,
        added_time_ids: Tensor,
    ) -> Tensor:
        found: Tensor = self.unet(
            noisy.transpose(1, 2), timesteps, encoder_hidden_states, added_time_ids
        ).sample
        return found.transpose(1, 2)


FAMILIES: dict[str, Family] = {
    "SD": Family(
        conditional_unet, (4, 4, 4), lambda rows: {"encoder_hidden_states": _normal(rows, 3, 6)}
    ),
    "InstructPix2Pix": Family(lambda: conditional_unet(in_channels=8), (4, 4, 4), _beside(4)),
    "inpainting": Family(lambda: conditional_unet(in_channels=9), (4, 4, 4), _beside(5)),
    "SDXL": Family(
        _sdxl,
        (4, 4, 4),
        lambda rows: {
            "encoder_hidden_states": _normal(rows, 3, 6),
            "text_embeds": _normal(rows, 5),
            "time_ids": _normal(rows, 6).abs(),
        },
    ),
    "SD3": Family(_sd3, (4, 4, 4), _sd3_conditions),
    "SD3.5": Family(
        lambda: _sd3(qk_norm="rms_norm", dual_attention_layers=(0,)), (4, 4, 4), _sd3_conditions
    ),
    "Flux": Family(
        _flux,
        (2, 4, 4),
        lambda rows: _sd3_conditions(rows) | {"guidance": torch.full((rows,), 3.5)},
    ),
    "PixArt-Σ": Family(
        lambda: _pixart(use_additional_conditions=False), (4, 4, 4), _pixart_conditions
    ),
    "PixArt-α": Family(lambda: _pixart(use_additional_conditions=True), (4, 4, 4), _pixart_sized),
    "DiT": Family(_dit, (4, 4, 4), lambda rows: {"class_labels": torch.arange(rows) % 5}),
    "UNet3D": Family(
        _unet3d, (4, 2, 4, 4), lambda rows: {"encoder_hidden_states": _normal(rows, 3, 6)}
    ),
    "SpatioTemporal": Family(
        SpatioTemporal,
        (4, 2, 4, 4),
        lambda rows: {
            "encoder_hidden_states": _normal(rows, 2, 6),
            "added_time_ids": _normal(rows, 3).abs(),
        },
    ),
}


def given(name: str, rows: int, draws: int) -> Batch:
    """Rows of a family, float64."""
    family = FAMILIES[name]
    plain = batch(rows, draws, family.shape, **family.conditions(rows))
    return Batch(
        plain.inputs.double(),
        plain.timesteps,
        plain.noise.double(),
        {
            key: value.double() if value.is_floating_point() else value
            for key, value in plain.conditions.items()
        },
    )


def made(name: str, seed: int = 0, **options: Any) -> nn.Module:
    """A tiny model whose parameters are all random, none zero or one as diffusers starts them."""
    torch.manual_seed(seed)
    model: nn.Module = FAMILIES[name].make(**options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model
