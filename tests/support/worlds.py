"""A small model, its training images and its saved checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from PIL import Image

from gradstore.collect import Recorder, Samples

SIDE = 8


NAMES = [f"image-{number}" for number in range(7)]


def unet(seed: int, channels: int = 1, **options: Any) -> UNet2DModel:
    torch.manual_seed(seed)
    options = {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    } | options
    model = UNet2DModel(
        sample_size=SIDE,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        norm_num_groups=2,
        **options,
    )
    return model.eval()


def save_checkpoint(
    folder: Path,
    *,
    epoch: int = 1,
    learning_rate_sum: float = 0.1,
    ids: list[str] = NAMES,
    model: UNet2DModel | None = None,
    scheduler: Any = None,
) -> Path:
    """Save a checkpoint like that of a recorded training run."""
    scheduler = scheduler or DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    DDIMPipeline(model or unet(epoch), scheduler).save_pretrained(folder)
    Recorder(0, 1000).save(
        folder, ids=ids, epoch=epoch, learning_rate_sum=learning_rate_sum, loss="l1"
    )
    return folder


def images(count: int, seed: int = 0, mode: str = "L") -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    shape = (count, SIDE, SIDE) + ((3,) if mode == "RGB" else ())
    return [Image.fromarray(pixels) for pixels in generator.integers(0, 256, shape, dtype=np.uint8)]


@dataclass(frozen=True)
class World:
    """Two checkpoints of a trained model, its training images and three queries."""

    checkpoints: list[Path]
    train: Samples
    queries: Samples
