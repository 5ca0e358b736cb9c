"""Generating images with a checkpoint's own sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import DDIMPipeline

from gradstore.collect.checkpoints import load
from gradstore.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image


def generate(
    checkpoint: Path, count: int, *, seed: int = 0, steps: int = 50, device: str | None = None
) -> list[Image]:
    """Images of an unconditional checkpoint, by DDIM.

    Args:
        checkpoint: its folder.
        count: how many images.
        seed: seed of the starting noise.
        steps: denoising steps.
        device: torch device; by default cuda if there is one.

    Raises:
        CheckpointError: if the checkpoint cannot be loaded or wants conditions.
    """
    loaded = load(checkpoint)
    if getattr(loaded.model.config, "num_class_embeds", None) is not None:
        raise CheckpointError(
            f"checkpoint {checkpoint} is conditioned on classes: generate images with your own "
            "code and query with them as a folder."
        )
    pipeline = DDIMPipeline(loaded.model, loaded.scheduler)
    pipeline.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pipeline.set_progress_bar_config(desc="generating", delay=1)
    generator = torch.Generator().manual_seed(seed)
    output = pipeline(batch_size=count, generator=generator, num_inference_steps=steps)
    return list(output.images)
