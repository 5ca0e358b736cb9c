"""The models of the benchmarks."""

from __future__ import annotations

from typing import Any, Final

from diffusers import UNet2DModel

MODELS: Final[dict[str, dict[str, Any]]] = {
    # 1.1 million parameters: attention in the middle level.
    "small": {
        "layers_per_block": 1,
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,
    },
    # 35.7 million: the architecture of google/ddpm-cifar10-32, the paper's size.
    "paper": {
        "layers_per_block": 2,
        "block_out_channels": (128, 256, 256, 256),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 32,
    },
    # 0.2 million, for scikit-learn's digits: small enough for a hundred training runs.
    "digits": {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,
    },
    # The same for colour images of 16 × 16.
    "pictures": {
        "sample_size": 16,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,
    },
    # For tests of the benchmarks.
    "tiny": {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,
    },
}


def build(name: str, **other: Any) -> UNet2DModel:
    """A model of `MODELS` with random weights; RGB images unless options say otherwise."""
    options = {"sample_size": 32, "in_channels": 3, "out_channels": 3, **MODELS[name], **other}
    return UNet2DModel(**options).eval()
